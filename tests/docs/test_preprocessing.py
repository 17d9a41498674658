"""The study of preprocessing measures what it says, here of a small photo."""

from __future__ import annotations

import numpy as np

from docs.studies.preprocessing import photo, photos, short_cuts, sources, tokens
from vtc.runtime.image import open_image

SIZE = (90, 120)


def test_every_source_is_the_same_photo() -> None:
    image = photo(SIZE)
    wanted = np.asarray(image).astype(int)
    for name, source in sources(image).items():
        off = np.abs(np.asarray(open_image(source)) - wanted)
        assert off.mean() < 30 if "JPEG" in name else off.max() == 0, name  # mirrored it would be 73


def test_tables_have_a_row_for_each_source_short_cut_and_rule() -> None:
    image = photo(SIZE)
    rows = photos(image, 1).splitlines()[2:]
    assert len(rows) == len(sources(image))
    assert all(row.count("|") == 8 for row in rows)
    none, *cuts = short_cuts(image, 1).splitlines()[2:]
    assert none.startswith("| none |")
    assert float(cuts[2].split("|")[3]) > 0  # an eighth of the photo is not the photo
    assert len(tokens(100, 10, 1).splitlines()[2:]) == 7
