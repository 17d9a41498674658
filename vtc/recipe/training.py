"""How parts of any kind are trained, as a recipe says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vtc.recipe.values import Written


class DistillationTraining(Written):
    """Training of a part by distillation from the model as it is."""

    steps: Annotated[int, Field(ge=1)] = 300
    """Number of steps."""
    questions: Annotated[int, Field(ge=1)] = 2000
    """Number of questions to learn from."""
    validation: Annotated[int, Field(ge=1)] = 100
    """Number of other questions that the part is checked on at every logged step."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Questions of one step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    """Learning rate."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws questions and first weights."""
