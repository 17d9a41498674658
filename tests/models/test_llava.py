"""A bundle's LLaVA processor, told of fewer tokens, writes as many placeholders as are kept."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vtc.models.llava import placeholder_config
from vtc.reference import reference_dir


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), patch=st.integers(2, 32), keep=st.integers(1, 1600))
def test_processors_count_as_many_placeholders_as_are_kept(rows: int, columns: int, patch: int, keep: int) -> None:
    height, width = rows * patch + patch // 2, columns * patch
    config = placeholder_config((height, width), keep, patch)
    # As LlavaProcessor of transformers.js counts; transformers' takes one off where the strategy is "default".
    count = (height // config["patch_size"]) * (width // config["patch_size"]) + config["num_additional_image_tokens"]
    assert count == keep
    assert config["vision_feature_select_strategy"] == "full"


def test_transformers_counts_as_many_placeholders_as_are_kept(tmp_path: Path) -> None:
    for file in reference_dir().glob("*.json*"):
        content = file.read_bytes()
        if file.name == "processor_config.json":
            content = json.dumps(json.loads(content) | placeholder_config((224, 224), 14, 14)).encode()
        (tmp_path / file.name).write_bytes(content)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    made = processor(text=["<image> what ?"], images=[Image.new("RGB", (50, 40))])
    assert list(made["input_ids"][0]).count(processor.image_token_id) == 14
