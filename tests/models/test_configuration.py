"""Files of a checkpoint that libraries read without looking are bounded first, and numbers of no model are refused."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.models.changes import edit, edit_part, write
from vtc.errors import ModelError
from vtc.models import check_model, load_adapter, read_facts
from vtc.models.checkpoint_files import CONFIGURATIONS, TOKENIZERS
from vtc.models.configuration import MOST, check_small_files
from vtc.reference import reference_dir

NUMBERS = {
    "layers": edit_part("text_config", num_hidden_layers=10**12),
    "negative": edit_part("vision_config", num_hidden_layers=-1),
    "zero": edit_part("text_config", num_attention_heads=0),
    "width": edit_part("text_config", hidden_size=10**9),
    "word": edit_part("text_config", vocab_size="many"),
    "fraction": edit_part("vision_config", patch_size=3.5),
    "list of numbers": edit_part("text_config", num_experts=[1, 2]),
    "object of numbers": edit_part("text_config", num_local_experts={"a": 1}),
    "no experts": edit_part("text_config", num_local_experts=None),
    "backwards": edit_part("vision_config", tokens_per_second=-1),
    "norm": edit_part("vision_config", layer_norm_eps=1e300),
    "theta": edit_part("text_config", rope_parameters={"rope_type": "default", "rope_theta": 0}),
    "theta in a list": edit_part("text_config", rope_theta=[10000.0]),
    "truth": edit_part("vision_config", image_size=True),
    "merge": edit("preprocessor_config.json", merge_size=0),
    "crop": edit("preprocessor_config.json", crop_size={"height": 10**9, "width": 56}),
    "any": edit("config.json", some_number=10**30),
    "digits": write("config.json", '{"model_type": "llava", "a": ' + "1" * 10_000 + "}"),
    "depth": write("config.json", '{"a":' * 100_000),
    "infinite": write("config.json", '{"model_type": "llava", "a": 1e999}'),
    "part": edit("config.json", text_config=[1]),
    "processor": edit("processor_config.json", image_processor=3),
    "list": write("generation_config.json", "[]"),
}


@pytest.mark.parametrize("fault", NUMBERS)
def test_numbers_of_no_model_are_refused_at_once(fault: str, copy: Path) -> None:
    NUMBERS[fault](copy)
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"\.json: ") as caught:
        read_facts(copy)
    assert time.monotonic() - began < 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "huge"])
@pytest.mark.parametrize(
    "name",
    [
        *(*CONFIGURATIONS, *TOKENIZERS),
        "chat_template.jinja",
        "additional_chat_templates/other.jinja",
    ],
)
def test_what_is_no_small_file_is_refused_before_a_library_reads_it(name: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 3 * 2**30)
    with pytest.raises(ModelError, match=f"{re.escape(str(file))}: cannot be read"):
        check_small_files(tmp_path)


def test_published_configurations_are_within_the_bounds() -> None:
    published = Path(__file__).parent / "published"
    for path in [reference_dir(), *(file.parent for file in published.glob("*/config.json"))]:
        check_small_files(path)
    assert set(MOST.values()) <= {2**n for n in range(32)}


def test_other_faults_of_settings_are_no_surprise(copy: Path) -> None:
    for changes in ({"image_mean": [1]}, {"size": None}, {"resample": "x"}, {"image_mean": None}):
        edit("preprocessor_config.json", **changes)(copy)
        edit("processor_config.json", image_processor=None)(copy)
        with pytest.raises(ModelError):
            check_model(copy)


def test_a_configuration_of_a_much_larger_model_is_refused_before_it_is_built(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtc.models.parameter_count.SLACK", 0)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 64
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json: describes a model of .* million parameters, and the weights"):
        load_adapter(copy)
