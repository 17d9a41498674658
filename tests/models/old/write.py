"""Writes the files beside this one: checkpoints as older versions of transformers save them.

Not a test: it runs in an environment of its own, with the transformers of the version that is to save. The weights are
those of vtc's tiny checkpoints and are not kept. Its own processor says what it makes of a question, in `own.json`::

    python tests/models/old/write.py DIRECTORY_OF_TINY_CHECKPOINTS tests/models/old FAMILY...
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image

QUESTION = "what is red ?"
STRIDE = 499
"""Of the pixels that are kept, one in so many."""


def picture() -> Image.Image:
    """Ramps, 120 wide and 90 high."""
    y, x = np.mgrid[:90, :120]
    return Image.fromarray(np.stack([x * 255 // 120, y * 255 // 90, (x + y) * 255 // 210], axis=-1).astype(np.uint8))


def read(file: Path) -> dict[str, Any]:
    """Content of a JSON file, without the names of classes; nothing where there is none."""
    content = json.loads(file.read_text()) if file.exists() else {}
    return {name: value for name, value in content.items() if name != "processor_class"}


def processor_of(tiny: Path) -> Any:
    """The family's processor, of this version's classes, with the settings of a tiny checkpoint."""
    family, version = tiny.name, tuple(map(int, transformers.__version__.split(".")[:2]))
    told, images = read(tiny / "tokenizer_config.json"), read(tiny / "preprocessor_config.json")
    tokens = {name: token for name, token in told.items() if name.endswith("_token")}
    special = {name: tokens.pop(name) for name in ("bos_token", "eos_token", "pad_token") if name in tokens}
    qwen = "qwen" in family or family == "internvl"
    tokenizer_class = transformers.Qwen2TokenizerFast if qwen else transformers.PreTrainedTokenizerFast
    more = {"extra_special_tokens": tokens} if version >= (4, 51) and tokens else {}
    tokenizer = tokenizer_class(
        tokenizer_file=str(tiny / "tokenizer.json"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=told["model_max_length"],
        additional_special_tokens=told.get("extra_special_tokens", []),
        **special,
        **more,
    )
    if family.startswith("qwen") and version < (4, 52):
        size = images.pop("size")
        images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    name = images.pop("image_processor_type")
    fast = version >= (4, 51) and hasattr(transformers, f"{name}Fast") and name != "SmolVLMImageProcessor"
    kind = getattr(transformers, json.loads((tiny / "processor_config.json").read_text())["processor_class"])
    taken = inspect.signature(kind.__init__).parameters
    own = read(tiny / "processor_config.json") | tokens
    settings = {name: value for name, value in own.items() if name in taken and name != "image_processor"}
    if "video_processor" in taken:
        videos = read(tiny / "video_preprocessor_config.json")
        settings["video_processor"] = getattr(transformers, videos.pop("video_processor_type"))(**videos)
    image_processor = getattr(transformers, f"{name}Fast" if fast else name)(**images)
    template = (tiny / "chat_template.jinja").read_text()
    return kind(image_processor=image_processor, tokenizer=tokenizer, chat_template=template, **settings)


def write(tiny: Path, out: Path) -> None:
    """Save a checkpoint's files but its weights, and what its processor makes of a question about a picture."""
    processor = processor_of(tiny)
    processor.save_pretrained(out)
    (out / "tokenizer.json").write_text(json.dumps(json.loads((out / "tokenizer.json").read_text())) + "\n")
    transformers.AutoConfig.from_pretrained(tiny).save_pretrained(out)
    transformers.GenerationConfig.from_pretrained(tiny).save_pretrained(out)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    made = processor(images=[picture()], text=[prompt], return_tensors="pt")
    pixels = np.asarray(made["pixel_values"], dtype=np.float32).ravel()
    own = {
        "transformers": transformers.__version__,
        "prompt": prompt,
        "input_ids": made["input_ids"][0].tolist(),
        "pixels": [round(float(value), 5) for value in pixels[::STRIDE]],
        "count": len(pixels),
    }
    (out / "own.json").write_text(json.dumps(own) + "\n")


if __name__ == "__main__":
    for one in sys.argv[3:]:
        write(Path(sys.argv[1], one), Path(sys.argv[2], f"{transformers.__version__}-{one}"))
