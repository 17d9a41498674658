"""Image files: what opens is upright RGB, and there is a clear line for every file that is not an image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import picture
from vtc.errors import InputError
from vtc.inputs.pixels import to_rgb
from vtc.runtime.image import open_image


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of any size, without its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000), (100_000, 100_000)])
@pytest.mark.filterwarnings("error")
def test_huge_image_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(width, height) + b"\0\0\0\0IDAT")
    with pytest.raises(InputError, match="64 megapixels"):
        open_image(path)


def test_animation_is_refused(tmp_path: Path) -> None:
    frames = [picture(seed) for seed in range(3)]
    for name in ("a.gif", "a.png", "a.webp", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="several frames or pages"):
            open_image(tmp_path / name)
    frames[0].save(tmp_path / "still.gif")
    assert open_image(tmp_path / "still.gif").mode == "RGB"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tiff"])
def test_truncated_image_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    picture(0, (200, 200)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for part in (10, len(whole) // 3, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:part])
        with pytest.raises(InputError) as refused:
            open_image(tmp_path / name)
        assert "\n" not in str(refused.value)
        assert name in str(refused.value)


def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such image file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a directory"):
        open_image(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match="not an image of a known format"):
        open_image(tmp_path / "text.png")
    # PostScript would run a program.
    (tmp_path / "drawing.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(InputError, match="not an image of a known format"):
        open_image(tmp_path / "drawing.png")


def test_colours_and_sizes_of_all_kinds_open(tmp_path: Path) -> None:
    picture(0).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert open_image(tmp_path / "cmyk.jpg").mode == "RGB"
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "dot.png")
    assert open_image(tmp_path / "dot.png").getpixel((0, 0)) == (9, 8, 7)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)


def test_picture_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture(0, (40, 30)).save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (30, 40)


def test_rgb_is_left_as_it_is() -> None:
    image = picture(0)
    assert to_rgb(image).tobytes() == image.tobytes()
