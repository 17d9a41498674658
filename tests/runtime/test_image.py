"""Image files: what opens is upright RGB, and there is a clear line for every file that is not an image."""

from __future__ import annotations

import errno
import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import picture
from vtc.errors import InputError, OutOfResources
from vtc.runtime import image as images
from vtc.runtime.image import FORMATS, MAX_BYTES, open_image, open_several


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


RAMP = np.tile(np.arange(256), (4, 1))
"""Every level once a row."""

DEEP: dict[str, np.ndarray[Any, Any]] = {
    "bool": RAMP > 127,
    "uint8": RAMP.astype(np.uint8),
    "uint16": (RAMP * 257).astype(np.uint16),
    "int16": (RAMP * 128).astype(np.int16),
    "levels in int64": RAMP,
    "16 bits in int32": (RAMP * 257).astype(np.int32),
    "int32": (RAMP * 2**23).astype(np.int32),
    "uint32": (RAMP * 2**24).astype(np.uint32),
    "float16": (RAMP / 255).astype(np.float16),
    "float32": (RAMP / 255).astype(np.float32),
    "float64": RAMP / 255,
}


@pytest.mark.parametrize("name", DEEP)
def test_numbers_are_scaled_by_their_type(name: str) -> None:
    wanted = np.where(RAMP > 127, 255, 0) if name == "bool" else RAMP
    for array in (DEEP[name], DEEP[name][..., None], np.stack([DEEP[name]] * 3, axis=2)):
        found = np.asarray(open_image(array))
        assert (found == wanted[..., None]).all(), array.shape


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.pgm", "uint16"),
        ("a.png", "uint16"),
        ("a.tif", "uint16"),
        ("a.tif", "16 bits in int32"),
        ("a.tif", "int32"),
        ("a.tif", "float32"),
    ],
)
def test_files_of_deep_images_keep_their_levels(tmp_path: Path, name: str, kind: str) -> None:
    Image.fromarray(DEEP[kind]).save(tmp_path / name)
    assert (np.asarray(open_image(tmp_path / name)) == RAMP[..., None]).all()
    assert (np.asarray(open_image(Image.open(tmp_path / name))) == RAMP[..., None]).all()


def test_a_dark_file_of_16_bits_stays_dark(tmp_path: Path) -> None:
    Image.fromarray((RAMP // 2).astype(np.uint16)).save(tmp_path / "dark.pgm")
    assert np.asarray(open_image(tmp_path / "dark.pgm")).max() == 0


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (RAMP.astype(np.float32), "floating-point values from 0 to 255"),
        (RAMP / 255 - 1, "floating-point values from -1 to 0"),
        (np.full((4, 4), np.nan), "floating-point values from nan"),
        (np.full((4, 4), np.inf, np.float32), "to inf"),
        (RAMP - 5, "integer values from -5"),
        (RAMP.astype(complex), "complex128"),
        (RAMP.astype(object), "object"),
        (RAMP.astype(str), "str"),
        (np.zeros(9, np.uint8), "shape"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((3, 40, 40), np.uint8), "channels first"),
        (np.zeros((2, 40, 40, 3), np.uint8), "give them as a list"),
        (np.zeros((0, 40, 3), np.uint8), "no pixel"),
        (np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (10_000, 10_000, 3), (0, 0, 0)), "64 megapixels"),
        (3, "int: is no image"),
        (None, "NoneType: is no image"),
        ({"a": 1}, "dict: is no image"),
        (b"\0" * 5000, "image of 5000 bytes: is not an image"),
        (io.StringIO("text"), "open it in binary mode"),
        ("https://example.com/a.png", "download it first"),
        (Path("https://example.com/a.png"), "download it first"),
        ("s3://bucket/a.png", "download it first"),
        ("data:image/png;base64," + "A" * 9000, "decode it"),
        ("a" * 9000, "File name too long"),
        ("a\0b.png", "is not a path"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() and len(value) < 60 else "image",
)
def test_what_is_no_image_is_refused_in_few_words(array: Any, words: str) -> None:
    with pytest.raises(InputError) as refused:
        open_image(array)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


EVERY_WAY: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "string": str,
    "PIL image": Image.open,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file object": lambda path: path.open("rb"),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
}


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_picture_is_the_same_upright_one_however_it_comes(tmp_path: Path, way: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    wanted = open_image(tmp_path / "turned.jpg")
    found = open_image(EVERY_WAY[way](tmp_path / "turned.jpg"))
    assert (found.size, found.tobytes()) == ((30, 40), wanted.tobytes())
    assert open_image(found).tobytes() == wanted.tobytes()  # not turned again
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:-300])
    with pytest.raises(InputError, match="truncated"):
        open_image(EVERY_WAY[way](tmp_path / "cut.jpg"))


def test_one_image_or_several_are_told_apart() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    counts = [len(open_several(given)) for given in (None, frame, [frame], [frame, picture(0)], (picture(0),))]
    assert counts == [0, 1, 1, 2, 1]


@pytest.mark.parametrize("format_name", FORMATS)
def test_files_are_bounded_before_they_are_read(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "huge"
    picture(0).save(path, "TIFF" if format_name == "TIFF" else format_name)
    os.truncate(path, 3 * 2**30)  # sparse
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=f"{MAX_BYTES // 2**20} MiB"):
        open_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), Path("/dev/stdin")):
        if path.is_file():
            continue
        with pytest.raises(InputError, match=r"is a (named pipe|device), not"):
            open_image(path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "no file handle is left"),
        (OSError(errno.ENFILE, "Too many open files in system"), "no file handle is left"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory does not suffice"),
        (MemoryError(), "memory does not suffice"),
        (OSError("out of memory error when reading image file"), "memory does not suffice"),
    ],
)
def test_a_lack_of_handles_or_memory_is_not_blamed_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    picture(0).save(tmp_path / "a.png")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(images.Image, "open", fail)
    with pytest.raises(OutOfResources, match=words) as refused:
        open_image(tmp_path / "a.png")
    assert "truncated" not in str(refused.value)


def test_libtiff_prints_nothing(tmp_path: Path) -> None:
    picture(0, (60, 60)).save(tmp_path / "a.tif", compression="tiff_lzw")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[:200] + b"\xff" * 600 + whole[800:])
    code = "import sys; from vtc.runtime.image import open_image\ntry: open_image(sys.argv[1])\nexcept Exception: pass"
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.tif"], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


def test_a_palette_that_is_missing_is_not_taken_for_black() -> None:
    stream = io.BytesIO()
    picture = Image.effect_noise((8, 8), 90).convert("P")
    picture.save(stream, "PNG")
    data = stream.getvalue()
    at = data.index(b"PLTE") - 4
    assert open_image(data).getextrema() != ((0, 0),) * 3
    with pytest.raises(InputError, match="a palette that it does not have"):
        open_image(data[:at] + data[at + 12 + int.from_bytes(data[at : at + 4], "big") :])
