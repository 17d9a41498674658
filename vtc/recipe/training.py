"""How parts of any kind are trained, as a recipe says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from vtc.recipe.values import Weight, Written


class DistillationTraining(Written):
    """Training of a part: the compressed model is to say what the model as it is says, and what the answers are."""

    steps: Annotated[int, Field(ge=1)] = 300
    """Number of steps."""
    questions: Annotated[int, Field(ge=1)] = 2000
    """Number of questions to learn from."""
    validation: Annotated[int, Field(ge=1)] = 100
    """Number of other questions that the part is checked on at every logged step."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Questions of one step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.003
    """Learning rate, as a share of each parameter's root mean square."""
    lm_weight: Weight = 1.0
    """Weight of the answers' cross-entropy."""
    kl_weight: Weight = 1.0
    """Weight of the KL divergence to the model as it is."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws questions and first weights."""
    memory_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0
    """Encoded images and the model's own answers of up to so many gigabytes are computed only once."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> DistillationTraining:
        if self.lm_weight == 0 and self.kl_weight == 0:
            raise ValueError("lm_weight and kl_weight are both 0, there is nothing to learn from")
        return self
