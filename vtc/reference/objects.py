"""The objects of a scene: what they are and where they stand."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes
    ----------
    kind : str
        "shape", "digit", "number", "ring" or "disc".
    value : str
        The shape's name, the digit(s), the side of the gap, or the direction of the stripes.
    color : str
        One of ``COLORS``.
    box : tuple of int
        x0, y0, x1, y1 in pixels, the end excluded.
    seam : int
        For a number, the x coordinate where its second digit begins; otherwise -1.
    """

    kind: str
    value: str
    color: str
    box: Box
    seam: int = -1

    @property
    def noun(self) -> str:
        """The word that questions use for the object."""
        return self.value if self.kind == "shape" else self.kind

    @property
    def center(self) -> tuple[float, float]:
        """Centre of the box in pixels, x then y."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2
