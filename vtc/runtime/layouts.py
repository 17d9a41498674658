"""Which of a bundle's layouts a prompt may take, by how many images it has."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.bundle.manifest import ServedImage
from vtc.inputs.prompts import check_several


def layouts_for(images: Sequence[ServedImage], inputs: int) -> list[ServedImage]:
    """Layouts for a prompt, those first that the original model's own processor would take.

    Some families see an image that is alone in its prompt in tiles, and each of several whole.

    Parameters
    ----------
    images : sequence of ServedImage
        All layouts of a bundle.
    inputs : int
        Images, or clips, of the prompt.

    Returns
    -------
    list of ServedImage
        At least one. A bundle that was made for several images alone also takes one.

    Raises
    ------
    InputError
        If the prompt has several and no layout is for those.
    """
    fitting = [served for served in images if (served.several if inputs > 1 else served.alone)]
    check_several(inputs, several=bool(fitting))
    return fitting or list(images)
