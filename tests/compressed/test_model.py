"""The compressed model computes what its recipe says, and the null recipe what the model itself computes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import RECIPES, WITHOUT_CLS, compressed, image, processor, write_checkpoint
from vtc.compressed.baselines import baseline, downsampled_grid
from vtc.compressed.model import CompressedModel
from vtc.errors import InputError
from vtc.evaluate.baselines import BASELINES
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.random.shapes import TINY, TINY_SIGLIP, Shape

Prompts = tuple[list[list[Any]], list[str]]


def hf_logits(adapter: VLMAdapter, images: list[Any], prompt: str) -> torch.Tensor:
    inputs = processor(adapter)(
        images=images or None, text=prompt, return_tensors="pt", add_special_tokens=not prompt.startswith("<s>")
    )
    with torch.inference_mode():
        return adapter.model(**inputs).logits[0, -1]


KINDS = {
    "clip-llama": TINY,
    "siglip-qwen2": TINY_SIGLIP,
    "siglip-mistral": replace(TINY_SIGLIP, decoder=replace(TINY.decoder, kind="mistral")),
}


@pytest.mark.parametrize("feature_layer", [-1, -2, 1])
@pytest.mark.parametrize("like", KINDS.values(), ids=KINDS)
def test_null_recipe_gives_the_models_own_logits(
    tmp_path: Path, prompts: Prompts, feature_layer: int, like: Shape
) -> None:
    adapter = load_adapter(write_checkpoint(tmp_path / "model", seed=1, feature_layer=feature_layer, like=like))
    model = compressed(adapter)
    for images, prompt in zip(*prompts, strict=True):
        with torch.inference_mode():
            ours, _ = model.prefill(*model.inputs([images], [prompt]))
        torch.testing.assert_close(ours[0, -1], hf_logits(adapter, images, prompt), atol=1e-5, rtol=1e-5)


def test_null_recipe_generates_what_the_model_generates(each_adapter: VLMAdapter, prompts: Prompts) -> None:
    adapter = each_adapter
    model = compressed(adapter)
    for images, prompt in zip(*prompts, strict=True):
        ids, mask, pixels = model.inputs([images], [prompt])
        extra = {} if pixels is None else {"pixel_values": pixels}
        theirs = adapter.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=12, **extra)
        new = theirs[0, ids.shape[1] :].tolist()
        expected = new[: new.index(adapter.eos_token_ids[0])] if adapter.eos_token_ids[0] in new else new
        assert model.generate([images], [prompt], 12)[0].token_ids == expected


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_answers_as_its_rows_alone(adapter: VLMAdapter, prompts: Prompts, name: str) -> None:
    model = compressed(adapter, *RECIPES[name])
    images, texts = prompts
    together = model.generate(images, texts, 8)
    alone = [model.generate([group], [text], 8)[0] for group, text in zip(images, texts, strict=True)]
    assert together == alone


@pytest.mark.parametrize("name", WITHOUT_CLS)
def test_a_batch_answers_as_its_rows_alone_without_a_cls_token(siglip: VLMAdapter, prompts: Prompts, name: str) -> None:
    test_a_batch_answers_as_its_rows_alone(siglip, prompts, name)


@pytest.mark.parametrize("name", RECIPES)
def test_teacher_forcing_agrees_with_generation(adapter: VLMAdapter, prompts: Prompts, name: str) -> None:
    model = compressed(adapter, *RECIPES[name])
    answers = [answer.token_ids for answer in model.generate(*prompts, 6)]
    for logits, ids in zip(model.score(*prompts, [ids or [0] for ids in answers]), answers, strict=True):
        assert logits.argmax(-1)[: len(ids)].tolist() == ids


def masked_reference(model: CompressedModel, adapter: VLMAdapter, sample: tuple[list[Any], str]) -> torch.Tensor:
    """Logits with all tokens computed in every layer, those that a layer must not see masked out of its attention."""
    images, prompt = sample
    full = compressed(adapter)
    ids, _, pixels = full.inputs([images], [prompt])
    visual = ids == adapter.image_token_id
    features, _ = full.vision(pixels)
    _, state = model.prefill(*model.inputs([images], [prompt]))
    present = visual.clone()
    kept = iter(state.kept[1:])
    cuts = model.plan.cut_layers
    hidden = adapter.embed_tokens(ids).masked_scatter(visual.unsqueeze(-1), features)
    length = ids.shape[1]
    rotation = adapter.rotation(hidden, torch.arange(length)[None])
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    for place, layer in enumerate(model.plan.decoder_layers):
        if layer in cuts:
            places = visual.nonzero()[:, 1].reshape(len(images), -1).gather(1, next(kept)).flatten()
            present = torch.zeros_like(visual).index_fill(1, places, True)
        gone = visual & ~present if model.plan.decoder_visual_tokens[place] else visual
        columns = torch.where(gone[:, None, None], torch.finfo(torch.float32).min, 0.0)
        mask = torch.clamp(causal + columns, min=torch.finfo(torch.float32).min)
        after = adapter.decoder_layers[layer](
            hidden, attention_mask=mask, position_embeddings=rotation, past_key_values=None
        )
        hidden = torch.where(gone.unsqueeze(-1), hidden, after)
    return adapter.head(adapter.final_norm(hidden[:, -1]))[0]


@pytest.mark.parametrize(
    "name", ["none", "exit", "visual_only", "visual_only_first", "depth", "cut", "cuts", "skip_after_cut"]
)
def test_leaving_tokens_out_equals_masking_them(adapter: VLMAdapter, prompts: Prompts, name: str) -> None:
    model = compressed(adapter, *RECIPES[name])
    for images, prompt in list(zip(*prompts, strict=True))[:3]:
        with torch.inference_mode():
            expected = masked_reference(model, adapter, (images, prompt))
            ours, _ = model.prefill(*model.inputs([images], [prompt]))
        torch.testing.assert_close(ours[0, -1], expected, atol=1e-4, rtol=1e-4)


def test_kept_tokens_at_original_positions_equal_masking_the_others(adapter: VLMAdapter) -> None:
    model = compressed(adapter, *RECIPES["original"])
    full = compressed(adapter)
    sample = ([image(0)], adapter.chat("what is it ?"))
    with torch.inference_mode():
        ids, mask, pixels = full.inputs([sample[0]], [sample[1]])
        _, keep = model.vision(pixels)
        visible = mask.clone()
        places = (ids[0] == adapter.image_token_id).nonzero()[:, 0]
        visible[0, places] = 0
        visible[0, places[keep[0]]] = 1
        features, _ = full.vision(pixels)
        images = (ids == adapter.image_token_id).unsqueeze(-1)
        hidden = adapter.embed_tokens(ids).masked_scatter(images, features)
        expected, _, _ = full.segments[0](hidden, visible, torch.arange(ids.shape[1])[None], full._no_past(4, hidden))
        ours, _ = model.prefill(*model.inputs([sample[0]], [sample[1]]))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_cache_lengths_are_those_of_the_plan(adapter: VLMAdapter, name: str) -> None:
    model = compressed(adapter, *RECIPES[name])
    ids, mask, pixels = model.inputs([[image(0)]], [adapter.chat("what is it ?")])
    text = int((ids != adapter.image_token_id).sum())
    with torch.inference_mode():
        _, state = model.prefill(ids, mask, pixels)
    lengths = [key.shape[2] for segment in state.past for key, _ in segment]
    assert lengths == [text + visual for visual in model.plan.decoder_visual_tokens]


def attention_maps(
    adapter: VLMAdapter, images: list[Any], prompt: str
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    inputs = processor(adapter)(
        images=images, text=prompt, return_tensors="pt", add_special_tokens=not prompt.startswith("<s>")
    )
    adapter.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.inference_mode():
            return inputs["input_ids"][0], adapter.model(**inputs, output_attentions=True).attentions
    finally:
        adapter.set_decoder_attention("sdpa")


@pytest.mark.parametrize("queries", ["text_after_image", "all_text", "last_token"])
def test_a_cut_keeps_what_the_models_own_attention_ranks_highest(
    adapter: VLMAdapter, prompts: Prompts, queries: str
) -> None:
    model = compressed(adapter, {"kind": "prune_in_decoder", "layer": 2, "keep": 5, "selector": {"queries": queries}})
    for images, prompt in list(zip(*prompts, strict=True))[:3]:
        ids, attentions = attention_maps(adapter, images, prompt)
        visual = (ids == adapter.image_token_id).nonzero()[:, 0].reshape(len(images), -1)
        _, state = model.prefill(*model.inputs([images], [prompt]))
        for places, kept in zip(visual, state.kept[1], strict=True):
            asking = [place for place in range(len(ids)) if ids[place] != adapter.image_token_id]
            if queries == "text_after_image":
                asking = [place for place in asking if place > places[-1]]
            elif queries == "last_token":
                asking = asking[-1:]
            score = attentions[2][0, :, asking][:, :, places].mean(dim=(0, 1))
            assert kept.tolist() == sorted(score.topk(5).indices.tolist())


@pytest.mark.parametrize(("selector", "layer"), [("fastv", 1), ("pyramiddrop", 2)])
def test_a_cut_reads_the_layer_that_its_authors_read(
    adapter: VLMAdapter, prompts: Prompts, selector: str, layer: int
) -> None:
    """FastV ranks by the layer before the cut, PyramidDrop by the one after it."""
    model = compressed(adapter, {"kind": "prune_in_decoder", "layer": 2, "keep": 5, "selector": selector})
    for images, prompt in list(zip(*prompts, strict=True))[:3]:
        ids, attentions = attention_maps(adapter, images, prompt)
        visual = (ids == adapter.image_token_id).nonzero()[:, 0].reshape(len(images), -1)
        _, state = model.prefill(*model.inputs([images], [prompt]))
        for places, kept in zip(visual, state.kept[1], strict=True):
            score = attentions[layer][0, :, -1][:, places].mean(dim=0)
            assert kept.tolist() == sorted(score.topk(5).indices.tolist())


def test_a_batch_is_cut_as_its_rows_alone(adapter: VLMAdapter, prompts: Prompts) -> None:
    model = compressed(adapter, *RECIPES["cuts"])
    images, texts = prompts
    _, together = model.prefill(*model.inputs(images, texts))
    alone = [model.prefill(*model.inputs([group], [text]))[1] for group, text in zip(images, texts, strict=True)]
    for number, kept in enumerate(together.kept):
        rows = [row for state in alone if len(state.kept) > 1 for row in state.kept[number].tolist()]
        assert kept.tolist() == rows


def test_exported_attention_equals_the_fused_one(each_adapter: VLMAdapter, prompts: Prompts) -> None:
    adapter = each_adapter
    model = compressed(adapter, *RECIPES["exit"])
    fused = model.score(*prompts, [[1, 2]] * 4)
    adapter.set_decoder_attention("grouped")
    try:
        grouped = model.score(*prompts, [[1, 2]] * 4)
    finally:
        adapter.set_decoder_attention("sdpa")
    for ours, theirs in zip(grouped, fused, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_answer_within_their_budget(adapter: VLMAdapter, name: Any) -> None:
    model = baseline(adapter, name, keep=6)
    assert model.keep_per_span <= 6
    assert len(model.generate([[image(0)]], [adapter.chat("what is it ?")], 3)[0].token_ids) <= 3


def test_blind_baseline_does_not_see_the_image(adapter: VLMAdapter) -> None:
    model = baseline(adapter, "blind", keep=6)
    prompt = adapter.chat("what is it ?")
    first, second = (model.score([[image(seed)]], [prompt], [[1]])[0] for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("grid", "keep", "expected"),
    [((16, 16), 14, (3, 4)), ((16, 16), 64, (8, 8)), ((24, 24), 1, (1, 1)), ((4, 8), 8, (2, 4))],
)
def test_downsampled_grid(grid: tuple[int, int], keep: int, expected: tuple[int, int]) -> None:
    assert downsampled_grid(grid, keep) == expected


def test_prompt_without_placeholder_is_refused(adapter: VLMAdapter) -> None:
    with pytest.raises(InputError, match=r"0 <image> placeholder\(s\) for 1 image"):
        compressed(adapter).generate([[image(0)]], ["hello"])


def test_prompt_beyond_the_context_is_refused(adapter: VLMAdapter) -> None:
    with pytest.raises(InputError, match="beyond the model's context of 1024"):
        compressed(adapter).generate([[image(0)]], [adapter.chat("what " * 1100)])


def test_prompt_that_ends_in_an_image_cannot_exit(adapter: VLMAdapter) -> None:
    with pytest.raises(InputError, match="must end in text"):
        compressed(adapter, *RECIPES["exit"]).generate([[image(0)]], [f"<s>what {adapter.image_token}"])


QUESTION_FIRST = (
    "{% for message in messages %}{% for part in message['content'] | sort(attribute='type', reverse=true) %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>' }} {% endfor %}{% endfor %}ASSISTANT:"
)


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"kind": "prune", "keep": 4, "selector": "mmtok"}, "refused"),
        ({"kind": "prune", "keep": 4, "selector": "cdpruner"}, "refused"),
        ({"kind": "prune_in_decoder", "layer": 1, "keep": 4, "selector": "sparsevlm"}, "noted"),
        ({"kind": "prune_in_decoder", "layer": 1, "keep": 4, "selector": "fastv"}, ""),
        ({"kind": "prune", "keep": 4, "selector": "divprune"}, ""),
    ],
)
def test_a_selector_that_reads_the_question_must_find_it_after_the_image(
    checkpoint: Path, tmp_path: Path, stage: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    compressed(load_adapter(checkpoint), stage)
    assert caplog.text == ""
    path = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (path / "chat_template.jinja").write_text(QUESTION_FIRST)
    words = f"test: stages.0: {stage['selector']} reads the question in the text after the image"
    if told == "refused":
        with pytest.raises(InputError, match=rf"^{words}, and the chat template of .* puts the question before it; "):
            compressed(load_adapter(path), stage)
        return
    compressed(load_adapter(path), stage)
    assert (words in caplog.text) == bool(told)
