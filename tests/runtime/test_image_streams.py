"""Image files that would keep a decoder busy: refused by what they are made of, before they are decoded."""

from __future__ import annotations

import io
import time
import zlib

import pytest
from PIL import Image

from tests.runtime.conftest import picture
from vtc.errors import InputError
from vtc.runtime import image_streams
from vtc.runtime.image import open_image


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (image or picture(0)).save(stream, kind, **options)
    return stream.getvalue()


def many_small_parts(kind: str) -> bytes:
    """A whole image with 2,000 parts that say nothing."""
    data = saved(kind)
    part, at = {
        "JPEG": (b"\xff\xe5\0\2", 2),
        "PNG": (b"\0\0\0\0teSt" + zlib.crc32(b"teSt").to_bytes(4, "big"), 33),
        "GIF": (b"\x21\xfe\1a\0", data.find(b"\x2c\0\0\0\0")),
        "PPM": (b"#\n", 3),
    }[kind]
    return data[:at] + part * 2000 + data[at:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "PPM"])
def test_a_file_of_very_many_parts_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    file = many_small_parts(kind)
    assert open_image(file).mode == "RGB"
    monkeypatch.setattr(image_streams, "MAX_READS", 1000)
    assert open_image(saved(kind)).mode == "RGB"
    with pytest.raises(InputError, match="too many small parts"):
        open_image(file)


def test_pages_are_not_counted() -> None:
    data = saved("TIFF", Image.new("L", (2, 2)))
    at = int.from_bytes(data[4:8], "little")
    page = data[at : at + 2 + 12 * int.from_bytes(data[at : at + 2], "little")]
    pages = bytearray(data[:at])
    for _ in range(20_000):
        pages += page + (len(pages) + len(page) + 4).to_bytes(4, "little")
    begin = time.perf_counter()
    with pytest.raises(InputError, match="several frames or pages"):
        open_image(bytes(pages))
    assert time.perf_counter() - begin < 1


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = saved("JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert open_image(data[:-2] + scan * 20 + data[-2:]).mode == "RGB"
    with pytest.raises(InputError, match="too many scans"):
        open_image(data[:-2] + scan * 300 + data[-2:])


def test_what_phones_put_behind_or_into_a_picture_is_no_scan() -> None:
    data = saved("JPEG")
    note = b"\xff\xe3" + (2 + 2000).to_bytes(2, "big") + b"\xff\xda" * 1000
    assert open_image(data[:2] + note + data[2:] + b"\xff\xda" * 1000).mode == "RGB"


@pytest.mark.parametrize("text", [b"#\n" * 2000, b" " * (33 * 2**20)], ids=["comments", "blanks"])
def test_pixels_as_endless_text_are_refused(text: bytes) -> None:
    assert open_image(b"P2 2 1 255\n#two\n 0 255").size == (2, 1)
    with pytest.raises(InputError, match="as text, and at too great length"):
        open_image(b"P2 2 1 255\n" + text + b" 0 255")
