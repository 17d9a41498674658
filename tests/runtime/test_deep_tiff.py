"""TIFFs of many types of samples, which Pillow gives as others: levels are those that the file means."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtc.errors import InputError
from vtc.inputs.rgb import levels
from vtc.runtime.image import open_image

RAMP = np.arange(256).reshape(16, 16)


def tiff(values: np.ndarray[Any, Any], bits: int, numbers: int, black: int = 1, order: str = "<") -> bytes:
    """A grey TIFF; `numbers` are 1 for unsigned integers, 2 for signed ones, 3 for floats, `black` is 0 if white is."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    rows, columns = RAMP.shape
    entries = {256: columns, 257: rows, 258: bits, 259: 1, 262: black, 273: 8, 277: 1, 278: rows, 279: len(data)}
    entries[339] = numbers
    tags = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(entries.items())]  # type SHORT
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return b"".join([head, data, struct.pack(f"{order}H", len(tags)), *tags, b"\0" * 4])


@pytest.mark.parametrize("black", [1, 0], ids=["black is 0", "white is 0"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize(
    ("values", "bits", "numbers"),
    [
        (RAMP.astype(np.uint8), 8, 1),
        ((RAMP * 257).astype(np.uint16), 16, 1),
        ((RAMP * 128).astype(np.int16), 16, 2),
        ((RAMP * 2**24).astype(np.uint32), 32, 1),
        ((RAMP * 257).astype(np.uint32), 32, 1),
        ((RAMP * 2**23).astype(np.int32), 32, 2),
        ((RAMP / 255).astype(np.float32), 32, 3),
    ],
    ids=["uint8", "uint16", "int16", "uint32", "16 bits in uint32", "int32", "float32"],
)
def test_levels_are_those_of_the_file_or_it_is_refused(
    values: np.ndarray[Any, Any], bits: int, numbers: int, order: str, black: int
) -> None:
    file = tiff(values, bits, numbers, black, order)
    wanted = RAMP if black else 255 - RAMP
    for way in (file, Image.open(io.BytesIO(file)) if readable(file) else file):
        if readable(file):
            assert (np.asarray(open_image(way)) == wanted[..., None]).all()
        else:
            with pytest.raises(InputError, match="not an image of a known format; save it as"):
                open_image(way)


def readable(file: bytes) -> bool:
    """Whether Pillow knows such a TIFF."""
    try:
        Image.open(io.BytesIO(file))
    except OSError:
        return False
    return True


def test_samples_of_12_bits_are_scaled_by_12() -> None:
    assert (np.asarray(open_image(tiff(np.full(384, 255, np.uint8), 12, 1))) == 255).all()


def test_signed_bytes_are_not_taken_for_others() -> None:
    with pytest.raises(InputError, match="integer values from -128"):
        open_image(tiff(RAMP.astype(np.uint8), 8, 2))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_wide_integers_that_would_all_be_black_are_refused(dtype: type[np.generic]) -> None:
    with pytest.raises(InputError, match="do not say what is white"):
        levels(np.array([[0, 2**20]], dtype))


def test_floats_that_were_rounded_a_little_beyond_white_are_white() -> None:
    assert levels(np.array([[-1e-4, 1.0 + 1e-4, 1.00195]])).tolist() == [[0, 255, 255]]
    with pytest.raises(InputError, match=r"1\.01"):
        levels(np.array([[0, 1.01]]))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_metadata_that_cannot_be_read_are_no_reason_to_refuse(kind: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 2)).save(stream, kind, exif=b"x" * 100)
    assert open_image(stream.getvalue()).size == (4, 2)


def test_the_transparent_level_of_a_deep_png_is_white() -> None:
    image = Image.fromarray((RAMP * 257).astype(np.uint16))
    image.info["transparency"] = 0
    assert open_image(image).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(image).getpixel((1, 0)) == (1, 1, 1)
