"""What a photo and a token cost beside the graphs: ``python -m docs.studies.preprocessing``.

Draws a photo of 12 megapixels, opens it in every way that one comes in, makes a model's pixels of it, and measures what
Pillow's short cuts would change in those; then what rules and sampling take of a vocabulary of 152k. Prints the tables
of ``docs/performance.md``. Times are medians of the processor time of one thread.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from docs.studies.pages import table
from vtc.inputs.generation import GenerationRules, RuledLogits
from vtc.inputs.pixels import Picture, PixelSpec, to_pixels
from vtc.runtime.image import open_image
from vtc.runtime.sampling import Sampler

SIZE = (3000, 4000)
VOCABULARY = 151_936
CONTEXT = 800
LEVELS: dict[str, Any] = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
SPECS = {
    "CLIP, 336": PixelSpec((Picture(shortest_edge=336, crop=(336, 336)),), **LEVELS),
    "SigLIP, 384": PixelSpec((Picture(resize=((384, 384),)),), (0.5,) * 3, (0.5,) * 3, resample=2),
    "Qwen2-VL, 728 x 952": PixelSpec((Picture(resize=((728, 952),)),), **LEVELS, patches=(14, 2, 2)),
}
SHORT_CUTS = [("draft", 2), ("draft", 4), ("draft", 8), ("reducing_gap", 2), ("reducing_gap", 3), ("reducing_gap", 4)]


def photo(size: tuple[int, int]) -> Image.Image:
    """Gradients, three hundred shapes, lines and noise, of (rows, columns)."""
    random = np.random.default_rng(0)
    y, x = (axis.astype(np.float32) for axis in np.mgrid[: size[0], : size[1]])
    waves = [np.sin(x / 700) * np.cos(y / 500), np.cos(x / 900 + y / 400), np.sin((x + y) / 800)]
    image = Image.fromarray((120 + 80 * np.stack(waves, axis=2)).astype(np.uint8))
    draw, largest = ImageDraw.Draw(image), max(size) // 10
    for number in range(500):
        left, top = int(random.integers(size[1])), int(random.integers(size[0]))
        right, bottom = left + int(random.integers(2, largest)), top + int(random.integers(2, largest))
        colour: Any = tuple(random.integers(0, 256, 3).tolist())
        shape: Any = (draw.ellipse, draw.rectangle, draw.line)[number % 3]
        shape((left, top, right, bottom), fill=colour)
    noisy = np.asarray(image) + random.normal(0, 5, (*size, 3)).astype(np.float32)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sources(image: Image.Image) -> dict[str, Any]:
    """Every way in which a photo comes."""
    turned = Image.Exif()
    turned[0x0112] = 6
    frame = np.asarray(image)
    return {
        "JPEG": written(image, "JPEG", quality=90),
        "JPEG, progressive": written(image, "JPEG", quality=90, progressive=True),
        "JPEG, upright by EXIF": written(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=turned),
        "PNG": written(image, "PNG", compress_level=1),
        "frame, RGB": frame,
        "frame of OpenCV's, `[..., ::-1]`": np.ascontiguousarray(frame[..., ::-1])[..., ::-1],
        "frame, RGBA": np.dstack([frame, np.full(frame.shape[:2], 255, np.uint8)]),
    }


def took(work: Callable[[], Any], repeats: int) -> float:
    """Median milliseconds of processor time, the first run left out."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(1000 * (time.process_time() - begin))
    return statistics.median(times)


def decoded(file: bytes) -> Image.Image:
    """What Pillow alone makes of a file."""
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        return image


def photos(image: Image.Image, repeats: int) -> str:
    """Milliseconds from each source to an image and on to pixels."""
    rows = []
    for name, source in sources(image).items():
        opened = open_image(source)
        alone = f"{took(partial(decoded, source), repeats):.0f}" if isinstance(source, bytes) else ""
        ours = took(partial(open_image, source), repeats)
        again = took(partial(open_image, opened), repeats)
        pixels = [took(partial(to_pixels, spec, [opened]), repeats) for spec in SPECS.values()]
        rows.append([name, alone, f"{ours:.1f}", f"{again:.3f}", *(f"{one:.1f}" for one in pixels)])
    return table(["source", "Pillow's decoder alone", "opened", "opened again", *SPECS], rows)


def short_cuts(image: Image.Image, repeats: int) -> str:
    """What Pillow's short cuts save of a JPEG's way to 448 x 336 levels, and what they change."""
    file = written(image, "JPEG", quality=90)
    size = (max(336 * image.width // image.height, 1), 336)

    def small(kind: str, value: int) -> NDArray[np.int16]:
        with Image.open(io.BytesIO(file)) as photo:
            if kind == "draft":
                photo.draft("RGB", (photo.width // value, photo.height // value))
            gap = float(value) if kind == "reducing_gap" else None
            return np.asarray(photo.resize(size, Image.Resampling.BICUBIC, reducing_gap=gap), dtype=np.int16)

    whole, level = small("", 1), 1 / 255 / min(LEVELS["std"])
    rows = [["none", f"{took(partial(small, '', 1), repeats):.0f}", "", "", ""]]
    for kind, value in SHORT_CUTS:
        off = np.abs(small(kind, value) - whole)
        spent = took(partial(small, kind, value), repeats)
        name = f"draft 1/{value}" if kind == "draft" else f"reducing_gap {value}"
        most, mean = level * off.max(), level * off.mean()
        rows.append([name, f"{spent:.0f}", f"{off.max()}", f"{most:.3f}", f"{mean:.4f}"])
    return table(["short cut", "ms", "largest difference, levels", "largest, normalised", "mean, normalised"], rows)


def tokens(vocabulary: int, context: int, repeats: int) -> str:
    """Microseconds of a token's rules and of the choice."""
    random = np.random.default_rng(0)
    logits = (3 * random.normal(size=(1, vocabulary))).astype(np.float32)
    ids = random.integers(0, vocabulary, (1, context))
    rules = {
        "no rules": GenerationRules(),
        "repetition_penalty 1.05": GenerationRules(repetition_penalty=1.05),
        "no_repeat_ngram_size 3": GenerationRules(no_repeat_ngram_size=3),
        "min_new_tokens 5": GenerationRules(min_new_tokens=5),
    }
    works: dict[str, Callable[[NDArray[np.float32]], object]] = {
        name: RuledLogits(rule, [2], ids, np.ones_like(ids), 64) for name, rule in rules.items()
    }
    works["greedy"] = Sampler()
    works |= {f"temperature 0.7, top_p {top_p}": Sampler(0.7, top_p, seed=0) for top_p in (0.9, 1.0)}

    def often(work: Callable[[NDArray[np.float32]], object]) -> None:
        for _ in range(20):
            work(logits)

    rows = [[name, f"{took(partial(often, work), repeats) / 20 * 1000:.1f}"] for name, work in works.items()]
    return table([f"of {vocabulary} logits, after {context} tokens", "µs"], rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=9)
    repeats = options.parse_args().repeats
    image = photo(SIZE)
    print(photos(image, repeats), short_cuts(image, repeats), tokens(VOCABULARY, CONTEXT, repeats), sep="\n\n")


if __name__ == "__main__":
    main()
