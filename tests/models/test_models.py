"""Checkpoints that cannot be used are refused in one line that says what to do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import RECIPES, compressed, write_checkpoint
from vtc.errors import ModelError, RecipeError
from vtc.models import load_adapter, model_digest, read_facts, resolve_model
from vtc.models.base import VLMAdapter
from vtc.models.random.shapes import TINY
from vtc.reference import reference_dir


def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def test_reference_is_a_model() -> None:
    assert resolve_model("reference") == reference_dir()
    assert read_facts(reference_dir()).visual_tokens >= 256


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such checkpoint directory"):
        resolve_model(tmp_path / "nowhere")


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        resolve_model(tmp_path)


def test_config_that_is_not_json(checkpoint: Path, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path)
    (path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        read_facts(path)


def test_language_model_is_not_a_vlm(checkpoint: Path, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"not a vision-language model: 'llama'; supported families: .*llava"):
        read_facts(path)


def test_unsupported_family_names_the_supported(checkpoint: Path, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path)
    edit_config(path, model_type="qwen9_vl")
    with pytest.raises(ModelError, match=r"unsupported family 'qwen9_vl'; supported families: .*llava"):
        read_facts(path)


@pytest.mark.parametrize(
    ("model_type", "told"),
    [
        ("mllama", "unsupported family 'mllama': images enter by cross-attention.*nearest that is supported is llava"),
        ("llava_nxt", "the nearest in name is llava"),
    ],
)
def test_unsupported_family_names_the_nearest(checkpoint: Path, tmp_path: Path, model_type: str, told: str) -> None:
    path = copy(checkpoint, tmp_path)
    edit_config(path, model_type=model_type)
    with pytest.raises(ModelError, match=told):
        read_facts(path)


@pytest.mark.parametrize("layer", [0, 99, -99])
def test_features_of_no_layer_are_refused(checkpoint: Path, tmp_path: Path, layer: int) -> None:
    path = copy(checkpoint, tmp_path)
    edit_config(path, vision_feature_layer=layer)
    with pytest.raises(ModelError, match=f"vision_feature_layer {layer} of config.json is the output of none"):
        read_facts(path)


def test_features_of_several_layers_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path)
    edit_config(path, vision_feature_layer=[-2, -1])
    with pytest.raises(ModelError, match="only one vision_feature_layer"):
        read_facts(path)


def test_facts_of_a_siglip_tower_and_a_qwen2_decoder(siglip: VLMAdapter) -> None:
    facts = read_facts(siglip.path)
    assert not facts.encoder.has_cls
    assert (facts.grid, facts.visual_tokens, facts.encoder.feature_layer) == ((4, 4), 16, 1)
    assert (facts.decoder.kv_heads, facts.decoder.head_dim, facts.decoder.context) == (2, 12, 1024)
    assert siglip.head.weight is siglip.embed_tokens.weight
    assert siglip.decoder_layers[0].self_attn.q_proj.bias is not None


def test_cls_attention_needs_a_cls_token(siglip: VLMAdapter) -> None:
    with pytest.raises(RecipeError, match="needs a CLS token, and this encoder has none"):
        compressed(siglip, *RECIPES["cls"])


def test_layers_with_a_sliding_window_are_known(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", like=replace(TINY, decoder=replace(TINY.decoder, kind="mistral")))
    text = json.loads((path / "config.json").read_text())["text_config"]
    assert read_facts(path).decoder.window == 0
    edit_config(path, text_config={**text, "sliding_window": 100})
    decoder = read_facts(path).decoder
    assert (decoder.window, decoder.window_layers, decoder.context) == (100, (0, 1, 2, 3), 1024)


@pytest.mark.parametrize(("fixture", "strategy"), [("adapter", "full"), ("siglip", "default")])
def test_strategy_that_does_not_leave_the_grid_whole_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, strategy: str
) -> None:
    path = copy(request.getfixturevalue(fixture).path, tmp_path)
    edit_config(path, vision_feature_select_strategy=strategy)
    with pytest.raises(ModelError, match="only one vision_feature_layer with vision_feature_select_strategy"):
        read_facts(path)


def test_unsupported_decoder_names_the_supported(checkpoint: Path, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path)
    edit_config(path, text_config={"model_type": "gpt2"})
    with pytest.raises(ModelError, match="decoder 'gpt2' is not supported; supported: clip_vision_model or siglip"):
        read_facts(path)


def test_truncated_weights(checkpoint: Path, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_adapter(path)


@pytest.mark.parametrize(
    ("settings", "config", "found"),
    [
        ({"repetition_penalty": 1.25, "eos_token_id": [2, 3]}, {"repetition_penalty": 1.5}, (1.25, [2, 3])),
        ({"eos_token_id": 0}, {"repetition_penalty": 1.5}, (1.0, [0])),
        (None, {"repetition_penalty": 1.5, "eos_token_id": 5}, (1.5, [5])),
    ],
)
def test_generation_settings_are_read_where_transformers_reads_them(
    checkpoint: Path,
    tmp_path: Path,
    settings: dict[str, object] | None,
    config: dict[str, object],
    found: tuple[float, list[int]],
) -> None:
    """From their own file, and only where there is none from the model's configuration, as with older checkpoints."""
    path = copy(checkpoint, tmp_path)
    edit_config(path, **config)
    (path / "generation_config.json").unlink()
    if settings is not None:
        (path / "generation_config.json").write_text(json.dumps(settings))
    adapter = load_adapter(path)
    assert (adapter.rules.repetition_penalty, adapter.eos_token_ids) == found


def test_generation_settings_are_refused_or_told_when_a_checkpoint_is_loaded(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copy(checkpoint, tmp_path)
    settings = path / "generation_config.json"
    settings.write_text(json.dumps({"do_sample": True, "temperature": 0.7, "eos_token_id": 2}))
    load_adapter(path)
    assert "draws answers at random (temperature 0.7)" in caplog.text
    settings.write_text(json.dumps({"num_beams": 4, "eos_token_id": 2}))
    with pytest.raises(ModelError, match=rf"^{settings}: num_beams 4 is not served: .*set it to 1$"):
        load_adapter(path)


def test_missing_weights(checkpoint: Path, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_adapter(path)


def test_digest_follows_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path)
    before = model_digest(path)
    assert before == model_digest(checkpoint)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert model_digest(path) != before
