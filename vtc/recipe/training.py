"""How parts of any kind are trained, as a recipe says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vtc.recipe.values import Written


class DistillationTraining(Written):
    """Training by distillation: ``steps`` of ``batch`` questions each, out of ``questions``.

    At every logged step the part is checked on ``validation`` other questions.
    """

    steps: Annotated[int, Field(ge=1)] = 300
    questions: Annotated[int, Field(ge=1)] = 2000
    validation: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
