"""The runtime computes what the same model in plain numpy computes, in batches as alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtc
from tests.runtime.conftest import picture
from tests.runtime.toy import EOS, Toy, logits_of, make_toy, write_toy_bundle
from vtc.artifact import publish, staging_dir
from vtc.bundle.manifest import draft_manifest, load_manifest
from vtc.errors import BundleError, InputError, NumericError
from vtc.inputs.generation import GenerationRules, RuledLogits
from vtc.runtime.backends import open_backend
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.sampling import Sampler
from vtc.runtime.vlm import VLM

# One image, two of them in the middle of a longer prompt, one at the start of a short one, none at all.
PROMPTS = [
    "<image> what is red",
    "what <image> left <image> is the colour of shape where how many",
    "<image> red",
    "green blue",
]
IMAGES = [[picture(0)], [picture(1), picture(2, (16, 16))], [picture(3, (9, 50))], []]
CONTINUATIONS = [[5, 6, 7, 8], [9, 10], [11], [12, 13, 14]]


def expected(toy: Toy, model: VLM, number: int, continuation: list[int]) -> np.ndarray[Any, Any]:
    ids = model.text.tokenizer.encode(PROMPTS[number]).ids
    pixels = list(model.preprocess(IMAGES[number])) if IMAGES[number] else []
    return np.array([logits_of(toy, ids + continuation[:at], pixels) for at in range(len(continuation))])


def test_scores_are_those_of_the_plain_model(toy_and_bundle: tuple[Toy, Path]) -> None:
    toy, path = toy_and_bundle
    model = VLM.load(path, provider="cpu")
    for number, scores in enumerate(model.score(IMAGES, PROMPTS, CONTINUATIONS)):
        np.testing.assert_allclose(scores, expected(toy, model, number, CONTINUATIONS[number]), atol=2e-3)
        assert scores.dtype == np.float32


def test_greedy_tokens_are_the_best_of_the_plain_model(toy_and_bundle: tuple[Toy, Path]) -> None:
    toy, path = toy_and_bundle
    model = VLM.load(path, provider="cpu")
    for number, answer in enumerate(model.generate(IMAGES, PROMPTS, max_new_tokens=8)):
        best = expected(toy, model, number, [*answer.token_ids, EOS]).argmax(axis=1).tolist()
        assert best[: len(answer.token_ids)] == answer.token_ids
        assert len(answer.token_ids) == 8 or best[-1] == EOS


def test_batch_answers_as_each_prompt_alone(toy_and_bundle: tuple[Toy, Path]) -> None:
    _, path = toy_and_bundle
    model = VLM.load(path, provider="cpu")
    together = model.generate(IMAGES, PROMPTS, 8)
    alone = [model.generate([images], [prompt], 8)[0] for images, prompt in zip(IMAGES, PROMPTS, strict=True)]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


def test_half_precision_bundle_runs_and_is_close(tmp_path: Path) -> None:
    toy = make_toy(half=True)
    model = VLM.load(write_toy_bundle(toy, tmp_path / "half"), provider="cpu")
    assert model.precision == "fp16"
    for number, scores in enumerate(model.score(IMAGES, PROMPTS, CONTINUATIONS)):
        whole = expected(toy, model, number, CONTINUATIONS[number])
        assert np.abs(scores - whole).max() < 0.1 * np.abs(whole).max()


def test_segments_report_the_lengths_and_bytes_of_their_tensors(toy_and_bundle: tuple[Toy, Path]) -> None:
    toy, path = toy_and_bundle
    model = VLM.load(path, provider="cpu")
    model.text.facts = replace(model.manifest.generation, eos_token_ids=())
    timings = model.generate([IMAGES[0]], [PROMPTS[0]], 4)[0].timings
    text = 4  # <s> what is red
    lengths = [text + (toy.keep if segment.sees == "all" else 0) for segment in toy.segments]
    assert list(timings.segment_lengths) == lengths
    layers = [len(segment.layers) for segment in toy.segments]
    assert timings.kv_bytes == sum(2 * 4 * toy.head_dim * n * length for n, length in zip(layers, lengths, strict=True))
    assert timings.ttft_ms >= timings.vision_ms + timings.prefill_ms > timings.vision_ms > 0
    assert len(timings.step_ms) == 3


def test_cache_stays_with_the_session_and_grows_by_a_token_a_step(toy_bundle: Path) -> None:
    model = VLM.load(toy_bundle, provider="cpu")
    running = model.start([IMAGES[0]], [PROMPTS[0]], 3)
    lengths = [running._cache.lengths[0] for _ in running]
    assert np.diff(lengths).tolist() == [1] * (len(lengths) - 1)
    assert not any(isinstance(tensor, np.ndarray) for past in running._cache.past for tensor in past.tensors)


def test_three_lines_answer_a_question(toy_bundle: Path, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "photo.png")
    model = vtc.load(toy_bundle)
    answer = model.ask(tmp_path / "photo.png", "what is red", max_new_tokens=6)
    assert answer == model.ask(picture(0), "what is red", max_new_tokens=6)
    assert answer == model.ask(np.asarray(picture(0)), "what is red", max_new_tokens=6)
    assert answer == model.ask((tmp_path / "photo.png").read_bytes(), "what is red", max_new_tokens=6)
    assert "".join(model.stream(picture(0), "what is red", max_new_tokens=6)) == answer
    assert isinstance(model.ask(picture(0), "what does <image> mean", max_new_tokens=2), str)
    assert isinstance(model.ask([picture(0), picture(1)], "what is red", max_new_tokens=2), str)
    assert isinstance(model.ask(None, "what is red", max_new_tokens=2), str)


def test_generation_stops_at_the_end_token_and_at_the_limit(toy_bundle: Path) -> None:
    model = VLM.load(toy_bundle)
    free = replace(model.manifest.generation, eos_token_ids=())
    model.text.facts = free
    whole = model.generate([IMAGES[0]], [PROMPTS[0]], 12)[0].token_ids
    assert len(whole) == 12
    end = whole[5]
    model.text.facts = replace(free, eos_token_ids=(end,))
    assert model.generate([IMAGES[0]], [PROMPTS[0]], 12)[0].token_ids == whole[: whole.index(end)]


RULES = {
    "penalty": GenerationRules(repetition_penalty=1.5),
    "n-grams": GenerationRules(no_repeat_ngram_size=1),
    "suppressed": GenerationRules(suppress_tokens=(5, 6, 7), begin_suppress_tokens=(8, 9, 10)),
    "forced end": GenerationRules(forced_eos_token_ids=(EOS,), min_new_tokens=4),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_generation_follows_the_rules_of_its_checkpoint(toy_bundle: Path, rules: GenerationRules) -> None:
    model = VLM.load(toy_bundle, provider="cpu")
    plain = [answer.token_ids for answer in model.generate(IMAGES, PROMPTS, 8)]
    model.text.facts = replace(model.manifest.generation, rules=rules)
    answers = [answer.token_ids for answer in model.generate(IMAGES, PROMPTS, 8)]
    alone = [model.generate([images], [prompt], 8)[0].token_ids for images, prompt in zip(IMAGES, PROMPTS, strict=True)]
    assert answers == alone != plain
    counts = [len(images) for images in IMAGES]
    for number, prompt in enumerate(model.text.encode(PROMPTS, counts, model.manifest.images[0])):
        ids, padding = np.array([prompt]), np.ones((1, len(prompt)), dtype=np.int64)
        ruled = RuledLogits(rules, [EOS], ids, padding, 8)
        for token in [*answers[number], EOS][:8]:
            (logits,) = model.score([IMAGES[number]], [PROMPTS[number]], [[*answers[number], EOS]])
            best = ruled(logits[[ruled.new]]).argmax(axis=-1)
            assert best.tolist() == [token]
            ruled.took(best)


def test_the_lowest_temperatures_are_greedy() -> None:
    logits = np.array([[1.0, 3.0, -np.inf, 2.9999]], dtype=np.float32)
    assert [Sampler(temperature, seed=0)(logits).tolist() for temperature in (0.0, 1e-320, 1e-9)] == [[1]] * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_no_answer(
    toy_bundle: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VLM.load(toy_bundle, provider="cpu")
    step = model.step
    monkeypatch.setattr(model, "step", lambda *given: step(*given) * np.array([1] * 8 + [np.nan] * 14))
    with pytest.raises(NumericError, match="logits are not numbers"):
        model.ask(IMAGES[0][0], "what is red", temperature=temperature)


def test_generation_stops_where_the_context_ends(tmp_path: Path) -> None:
    model = VLM.load(write_toy_bundle(make_toy(context=10), tmp_path / "short"))
    model.text.facts = replace(model.manifest.generation, eos_token_ids=())
    prompt = len(model.text.encode([PROMPTS[0]], [1], model.manifest.images[0])[0])
    # The last token has the last position; the one before it has nowhere to go from there.
    assert len(model.generate([IMAGES[0]], [PROMPTS[0]], 99)[0].token_ids) == 10 - prompt + 1


@pytest.mark.parametrize("positions", ["renumber", "original"])
def test_prompt_longer_than_the_context_is_refused(tmp_path: Path, positions: str) -> None:
    toy = make_toy(context=20, positions=positions)
    model = VLM.load(write_toy_bundle(toy, tmp_path / "short"))
    room = 20 - 1 - (toy.keep if positions == "renumber" else toy.tokens)
    model.generate([IMAGES[0]], ["<image>" + " red" * room], 1)
    with pytest.raises(InputError, match="prompt of 21 tokens is longer than the model's context of 20"):
        model.generate([IMAGES[0]], ["<image>" + " red" * (room + 1)], 1)


@pytest.mark.parametrize(("prompt", "found"), [("what is red", 0), ("<image> and <image>", 2)])
def test_placeholders_must_match_images(toy_bundle: Path, prompt: str, found: int) -> None:
    with pytest.raises(InputError, match=rf"{found} <image> placeholder\(s\) for 1 image\(s\)"):
        VLM.load(toy_bundle).generate([IMAGES[0]], [prompt])


def test_prompt_that_ends_in_an_image_is_refused_where_images_leave(toy_bundles: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="must end in text"):
        VLM.load(toy_bundles["visual exit"]).generate([IMAGES[0]], ["what <image>"])
    VLM.load(toy_bundles["one segment"]).generate([IMAGES[0]], ["what <image>"])


def test_drawn_answers_repeat_with_their_seed(toy_bundle: Path) -> None:
    model = VLM.load(toy_bundle)
    draws = {model.ask(IMAGES[0][0], "what is red", 12, temperature=3.0, seed=seed) for seed in range(6)}
    assert len(draws) > 1
    assert len({model.ask(IMAGES[0][0], "what is red", 12, temperature=3.0, seed=5) for _ in range(3)}) == 1
    greedy = model.ask(IMAGES[0][0], "what is red", 12)
    assert model.ask(IMAGES[0][0], "what is red", 12, temperature=3.0, top_p=1e-9) == greedy


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"seed": -1}])
def test_impossible_sampling_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        Sampler(**options)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], dtype=np.float32)).repeat(4000, axis=0)
    counts = np.bincount(Sampler(1.0, seed=0)(logits), minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    nucleus = np.bincount(Sampler(1.0, top_p=0.7, seed=0)(logits), minlength=4) / 4000
    np.testing.assert_allclose(nucleus, [0.625, 0.375, 0, 0], atol=0.03)


def test_limits_and_precisions_that_make_no_sense_are_refused(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="max-new-tokens"):
        VLM.load(toy_bundle).generate([IMAGES[0]], [PROMPTS[0]], 0)
    with pytest.raises(InputError, match="holds no fp16 graphs, only fp32; give another --precision"):
        VLM.load(toy_bundle, precision="fp16")
    assert VLM.load(toy_bundle).generate([], []) == []


def test_draft_can_be_run_before_it_is_published(toy_bundle: Path, tmp_path: Path) -> None:
    whole = load_manifest(toy_bundle)
    data = json.loads((toy_bundle / "manifest.json").read_text())
    work = staging_dir(tmp_path / "out")
    for name in whole.files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes((toy_bundle / name).read_bytes())
    fields = {name: data[name] for name in data if name not in ("files", "digest")}
    manifest = draft_manifest(work, fields)
    draft = VLM(manifest, open_backend(manifest, RuntimeOptions(precision="fp32")))
    finished = VLM.load(toy_bundle)
    assert draft.ask(picture(0), "what is red") == finished.ask(picture(0), "what is red")
    publish(work, tmp_path / "out", fields)
    assert VLM.load(tmp_path / "out").ask(picture(0), "what is red") == finished.ask(picture(0), "what is red")


def test_graph_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    work = staging_dir(tmp_path / "bad")
    path = write_toy_bundle(make_toy(), tmp_path / "good")
    data = json.loads((path / "manifest.json").read_text())
    path.rename(work)
    (work / "onnx/vision_encoder.onnx").write_bytes(b"no graph")
    fields = {name: data[name] for name in data if name not in ("files", "digest")}
    with pytest.raises(BundleError, match=r"vision_encoder\.onnx: is not an ONNX graph; export it again"):
        VLM.load(publish(work, tmp_path / "bad", fields))


def test_options_of_a_bundle_are_given_by_name_or_whole(toy_bundle: Path) -> None:
    by_name = vtc.load(toy_bundle, provider="cpu", threads=1)
    whole = vtc.load(toy_bundle, vtc.RuntimeOptions(provider="cpu", threads=1))
    assert by_name.provider == whole.provider == "cpu"
    with pytest.raises(TypeError, match="unexpected keyword argument 'tread'"):
        vtc.load(toy_bundle, tread=1)
