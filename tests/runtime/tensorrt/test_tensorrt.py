"""A bundle on engines gives the tokens that ONNX Runtime gives; on stand-ins for the GPU and for TensorRT."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.conftest import picture
from tests.runtime.nvidia import FakeContext, FakeCuda, nvidia, write_engine_set
from tests.runtime.test_vlm import CONTINUATIONS, IMAGES, PROMPTS
from tests.runtime.toy import Toy, make_toy, write_toy_bundle
from vtc.bundle.engines import Limits
from vtc.errors import InputError, VtcError
from vtc.runtime import past
from vtc.runtime.tensorrt.backend import RECORDINGS
from vtc.runtime.vlm import VLM

ANSWER = 14


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def library(request: pytest.FixtureRequest) -> str:
    """Either TensorRT."""
    name: str = request.param
    return name


def copied(path: Path, tmp_path: Path) -> Path:
    """A bundle that a test may add to."""
    return Path(shutil.copytree(path, tmp_path / path.name))


def endless(model: VLM) -> VLM:
    """A model whose answers have the length asked for."""
    model.text.facts = replace(model.manifest.generation, eos_token_ids=())
    return model


def test_answers_are_those_of_onnx_runtime(
    toy_and_bundle: tuple[Toy, Path], library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(toy_and_bundle[1], tmp_path)
    cuda = nvidia(monkeypatch)
    write_engine_set(bundle, library=library)
    monkeypatch.setattr(past, "STEP", 8)
    wanted = VLM.load(bundle, provider="cpu")
    model = VLM.load(bundle, backend="tensorrt")
    assert (model.provider, model.precision) == (library, "fp32")
    for scores, expected in zip(
        model.score(IMAGES, PROMPTS, CONTINUATIONS), wanted.score(IMAGES, PROMPTS, CONTINUATIONS), strict=True
    ):
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    answers, expected_answers = (endless(each).generate(IMAGES, PROMPTS, ANSWER) for each in (model, wanted))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected_answers]
    assert answers[0].timings.segment_lengths == expected_answers[0].timings.segment_lengths
    assert answers[0].timings.kv_bytes == expected_answers[0].timings.kv_bytes
    assert answers[0].timings.vision_ms == 0.5
    for kept, expected_kept in zip(model.kept(IMAGES, PROMPTS), wanted.kept(IMAGES, PROMPTS), strict=True):
        np.testing.assert_array_equal(kept, expected_kept)
    features, expected_features = (each.encode(IMAGES, PROMPTS)[0] for each in (model, wanted))
    np.testing.assert_allclose(features, expected_features, atol=1e-5)
    assert (cuda.launches > 0) == (library == "tensorrt")


def test_half_precision_stays_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_toy_bundle(make_toy(half=True), tmp_path / "half")
    nvidia(monkeypatch)
    write_engine_set(bundle)
    model, wanted = VLM.load(bundle, backend="tensorrt"), VLM.load(bundle, provider="cpu")
    assert [one.token_ids for one in model.generate(IMAGES, PROMPTS, 8)] == [
        one.token_ids for one in wanted.generate(IMAGES, PROMPTS, 8)
    ]


def test_only_places_and_logits_come_to_the_host(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(toy_bundle, tmp_path)
    cuda = nvidia(monkeypatch)
    write_engine_set(bundle)
    model = endless(VLM.load(bundle, backend="tensorrt"))
    model.generate([IMAGES[0]], [PROMPTS[0]], 5)
    keep_indices, logits = 3 * 8, 22 * 4
    assert cuda.downloads == [keep_indices] + [logits] * 5


def test_a_step_is_recorded_once_and_replayed_for_the_next_answers_too(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(toy_bundle, tmp_path)
    cuda = nvidia(monkeypatch)
    write_engine_set(bundle)
    model = endless(VLM.load(bundle, backend="tensorrt"))
    first = model.generate([IMAGES[0]], [PROMPTS[0]], ANSWER)[0].token_ids
    assert cuda.launches == ANSWER - 2  # the first token is prefill's, the second is run while it is recorded
    assert model.generate([IMAGES[0]], [PROMPTS[0]], ANSWER)[0].token_ids == first
    assert cuda.launches == 2 * ANSWER - 3
    taken = cuda.allocations
    assert model.generate([IMAGES[0]], [PROMPTS[0]], ANSWER)[0].token_ids == first
    assert cuda.allocations == taken


def test_engines_that_cannot_be_captured_are_run_each_time(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(toy_bundle, tmp_path)
    cuda = nvidia(monkeypatch)
    write_engine_set(bundle)
    wanted = endless(VLM.load(bundle, provider="cpu")).generate([IMAGES[0]], [PROMPTS[0]], ANSWER)[0].token_ids
    execute = FakeContext.execute_async_v3
    monkeypatch.setattr(
        FakeContext, "execute_async_v3", lambda self, stream: not cuda.recording and execute(self, stream)
    )
    model = endless(VLM.load(bundle, backend="tensorrt"))
    with pytest.warns(UserWarning, match="goes on without CUDA graphs, which is slower: TensorRT refuses"):
        assert model.generate([IMAGES[0]], [PROMPTS[0]], ANSWER)[0].token_ids == wanted
    assert cuda.launches == 0


def test_two_answers_at_once_do_not_share_a_cache(
    toy_bundle: Path, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(toy_bundle, tmp_path)
    nvidia(monkeypatch)
    write_engine_set(bundle, library=library)
    model = endless(VLM.load(bundle, backend="tensorrt"))
    alone = [model.generate([IMAGES[0]], [PROMPTS[0]], 9)[0], model.generate([[]], [PROMPTS[3]], 9)[0]]
    running = [model.start([IMAGES[0]], [PROMPTS[0]], 9), model.start([[]], [PROMPTS[3]], 9)]
    for _ in zip(*running, strict=True):
        pass
    assert [each.token_ids[0] for each in running] == [each.token_ids for each in alone]


def test_recordings_are_bounded_and_a_full_gpu_lets_go_of_them(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(toy_bundle, tmp_path)
    monkeypatch.setattr(past, "STEP", 1)  # a cache, and a recording, for every token
    cuda = nvidia(monkeypatch)
    write_engine_set(bundle)
    model = endless(VLM.load(bundle, backend="tensorrt"))
    wanted = model.generate([IMAGES[0]], [PROMPTS[0]], ANSWER)[0].token_ids
    assert len(model.backend._recordings) == RECORDINGS  # type: ignore[attr-defined]
    cuda.capacity = cuda.used
    monkeypatch.setattr(past, "STEP", 64)
    assert model.generate([IMAGES[0]], [PROMPTS[0]], ANSWER)[0].token_ids == wanted
    assert cuda.used <= cuda.capacity
    cuda.capacity = 0
    with pytest.raises(VtcError, match=r"the GPU has no .* MiB left"):
        model.generate([IMAGES[0]] * 4, [PROMPTS[0]] * 4, ANSWER)


def test_memory_goes_back_with_the_model(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = copied(toy_bundle, tmp_path)
    cuda = nvidia(monkeypatch)
    write_engine_set(bundle)
    model = VLM.load(bundle, backend="tensorrt")
    model.generate([IMAGES[0]], [PROMPTS[0]], 4)
    assert cuda.used > 0
    del model
    gc.collect()
    assert cuda.used == 0


@pytest.mark.parametrize(
    ("images", "text", "new_tokens", "message"),
    [
        ([1, 1, 1], 3, 4, r"3 prompts at a time are more than the 2 .*--max-batch 3"),
        ([2], 3, 4, r"2 images in a prompt are more than the 1 .*--max-images 2"),
        ([1], 30, 4, r"32 text tokens in a prompt are more than the 20 .*--max-text 32"),
        ([1], 3, 9, r"9 tokens of an answer are more than the 8 .*--max-new-tokens 9"),
    ],
)
def test_what_the_engines_were_not_built_for_is_refused_by_the_limit(
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: list[int],
    text: int,
    new_tokens: int,
    message: str,
) -> None:
    bundle = copied(toy_bundle, tmp_path)
    nvidia(monkeypatch)
    write_engine_set(bundle, Limits(batch=2, images=1, text=20, new_tokens=8))
    model = VLM.load(bundle, backend="tensorrt")
    prompts = [model.chat(" ".join(["red"] * text), count) for count in images]
    with pytest.raises(InputError, match=message):
        model.generate([[picture(0)] * count for count in images], prompts, new_tokens)
    model.generate([[picture(0)]], [model.chat("red " * 18)], 8)


def test_a_shape_outside_all_profiles_is_named(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(toy_bundle, tmp_path)
    nvidia(monkeypatch)
    write_engine_set(bundle, Limits(batch=1, images=1, text=20, new_tokens=8))
    model = VLM.load(bundle, backend="tensorrt")
    with pytest.raises(InputError, match=r"embed_tokens.engine was built for input_ids from \[1, 1\] to \[1, 23\]"):
        model.embedding.run({"input_ids": np.zeros((1, 24), dtype=np.int64)})


def test_stand_in_catches_what_a_gpu_would_not_forgive() -> None:
    cuda = FakeCuda()
    address = cuda.allocate(64)
    with pytest.raises(AssertionError, match="not allocated"):
        cuda.clear(address, 65)
    with pytest.raises(AssertionError, match="allocates in a recording"):
        cuda.record(lambda: cuda.allocate(8))
