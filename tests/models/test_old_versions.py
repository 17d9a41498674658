"""Checkpoints that older versions of transformers saved are asked as those versions asked them.

The files of ``old/VERSION-FAMILY`` were written by that version itself (``old/write.py``), weights left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from tests.models.old.write import QUESTION, STRIDE, picture
from vtc.facts.layout import ImageOptions
from vtc.models import load_adapter
from vtc.models.random.tiny import write_tiny_checkpoint

SAVED = sorted(path for path in Path(__file__).with_name("old").iterdir() if path.is_dir() and "-" in path.name)
A_LEVEL = 1 / 255 / 0.22
"""A grey level, in the pixels that a tower takes: fast processors resize in integers, and round another way."""


@pytest.mark.parametrize("saved", SAVED, ids=lambda path: path.name)
def test_a_checkpoint_of_an_older_version_is_asked_as_that_version_asks(saved: Path, tmp_path: Path) -> None:
    _, family = saved.name.split("-")
    own = json.loads((saved / "own.json").read_text())
    tiny = write_tiny_checkpoint(family, tmp_path / "tiny", encoder_layers=2, decoder_layers=2)
    path = tmp_path / "model"
    path.mkdir()
    (path / "model.safetensors").symlink_to(tiny / "model.safetensors")
    for file in saved.iterdir():
        (path / file.name).symlink_to(file)
    size = None if family == "llava" else picture().size[::-1]
    adapter = load_adapter(path, ImageOptions(image_size=size))
    assert adapter.chat(QUESTION) == own["prompt"]
    ids, _ = adapter.tokenize([own["prompt"]], [1], adapter.facts.layout.tokens)
    assert ids[0].tolist() == own["input_ids"]
    pixels = adapter.preprocess([picture()]).flatten()
    assert len(pixels) == own["count"]
    settings = (path / "preprocessor_config.json").read_text()
    np.testing.assert_allclose(pixels[::STRIDE], own["pixels"], atol=A_LEVEL if "Fast" in settings else 1e-4)


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3", "gemma3"])
def test_a_checkpoint_that_the_installed_version_saves_is_asked_as_it_asks(family: str, tmp_path: Path) -> None:
    tiny = write_tiny_checkpoint(family, tmp_path / "tiny", encoder_layers=2, decoder_layers=2)
    path = tmp_path / "model"
    own: Any = AutoProcessor.from_pretrained(tiny, local_files_only=True)
    own.save_pretrained(path)
    assert not (path / "preprocessor_config.json").exists()  # settings are nested in processor_config.json
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (path / name).symlink_to(tiny / name)
    size = None if family in ("llava", "gemma3") else picture().size[::-1]
    adapter = load_adapter(path, ImageOptions(image_size=size))
    prompt = adapter.chat(QUESTION)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    assert prompt == own.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    made = own(images=[[picture()]], text=[prompt], return_tensors="pt")
    ids, _ = adapter.tokenize([prompt], [1], adapter.facts.layout.tokens)
    assert ids.tolist() == made["input_ids"].tolist()
    pixels = adapter.preprocess([picture()])
    torch.testing.assert_close(pixels, made["pixel_values"].reshape(pixels.shape).float(), atol=1e-4, rtol=1e-4)
