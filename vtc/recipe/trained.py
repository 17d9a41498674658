"""What a recipe says of a part with parameters of its own: a file, or how to train one."""

from __future__ import annotations

import re
import reprlib
from pathlib import PurePosixPath
from typing import Any, ClassVar

from pydantic import field_validator, model_validator
from typing_extensions import Self

from vtc.recipe.values import Written


class Trained(Written):
    """A selector or a stage that is trained."""

    stem: ClassVar[str]
    """What a file of this kind is called, without its suffix."""
    checkpoint: str = "auto"
    """A ``.safetensors`` file below the recipe's own directory. ``auto`` takes the file that ships with the model, if
    there is one that fits, and trains one as ``training`` says, if there is none."""
    training: Written | None = None
    """How it is trained; goes with ``checkpoint: auto``."""

    @property
    def shipped(self) -> str:
        """What the file that ships with the reference model is called, without its suffix."""
        return self.stem

    @model_validator(mode="before")
    @classmethod
    def _default_training(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("checkpoint", "auto") == "auto" and data.get("training") is None:
            return {**data, "training": {}}
        return data

    @model_validator(mode="after")
    def _training_goes_with_auto(self) -> Self:
        if self.checkpoint != "auto" and self.training is not None:
            raise ValueError("training is only for checkpoint: auto, here the checkpoint is trained already")
        return self

    @field_validator("checkpoint")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if value == "auto":
            return value
        path = PurePosixPath(value)
        if not value or path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00]", value):
            raise ValueError(f"is a path below the recipe's own directory, not {reprlib.repr(value)}")
        if path.suffix != ".safetensors":
            raise ValueError(f"is a .safetensors file, not {reprlib.repr(value)}")
        return value
