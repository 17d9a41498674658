"""A second question about an image: ``python -m docs.studies.asked_again WHOLE SPLIT``, half a minute on a core.

Both are bundles of the reference model by one recipe that reads the question before the decoder, SPLIT with
``split_text: true``. Each is asked in turns, without and with an image cache, and has to give the same answers.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import median

from docs.studies.pages import table
from vtc.data.datasets import load_dataset
from vtc.errors import VtcError
from vtc.runtime.generation import Timings
from vtc.runtime.vlm import VLM

CACHE_BYTES = 2**28
MAX_NEW_TOKENS = 6
UNTIMED = 3
"""Images that are asked about before times count."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("whole", type=Path)
    parser.add_argument("split", type=Path)
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args()
    models = {
        f"{name}, {'with' if cache else 'without'} a cache": VLM.load(path, threads=1, image_cache=cache)
        for name, path in (("one graph", options.whole), ("split", options.split))
        for cache in (0, CACHE_BYTES)
    }
    print(study(models, options.images))


def study(models: dict[str, VLM], images: int) -> str:
    """Ask each model two questions about each image, in turns; return a table of median milliseconds.

    Raises
    ------
    VtcError
        If they do not answer alike.
    """
    found: dict[str, list[tuple[Timings, Timings]]] = defaultdict(list)
    items = load_dataset("reference", images + UNTIMED, seed=0, split="test").items
    for item, other in zip(items, [*items[1:], items[0]], strict=True):
        answers = set()
        for name, model in models.items():
            asked = [model.chat(question) for question in (item.question, other.question)]
            first, second = (model.generate([[item.load()]], [prompt], MAX_NEW_TOKENS)[0] for prompt in asked)
            found[name].append((first.timings, second.timings))
            answers.add((first.text, second.text))
        if len(answers) > 1:
            raise VtcError(f"{item.id}: answers differ: {answers}")
    rows = []
    for name, timings in found.items():
        columns = [
            [getattr(one, part) for one in asked]
            for asked in zip(*timings[UNTIMED:], strict=True)
            for part in ("vision_ms", "ttft_ms")
        ]
        rows.append([name, *(f"{median(column):.1f}" for column in columns)])
    head = ["median ms", "first: vision graphs", "first: to the first token", "second: vision graphs"]
    return table([*head, "second: to the first token"], rows)


if __name__ == "__main__":
    main()
