"""OpenVINO gives what the same model in plain numpy gives, with the cache in its own keeping."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from tests.runtime.conftest import picture
from tests.runtime.test_vlm import CONTINUATIONS, IMAGES, PROMPTS, expected
from tests.runtime.toy import Toy, make_toy, write_toy_bundle
from vtc.benchmark.memory import measure_memory
from vtc.bundle.manifest import load_manifest
from vtc.errors import BundleError, InputError, MissingDependency
from vtc.runtime.backends import open_backend
from vtc.runtime.openvino import device
from vtc.runtime.openvino.device import choose_device
from vtc.runtime.openvino.graph import IDLE, Graph
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.vlm import VLM

ANSWER = 14
needs_bf16 = pytest.mark.skipif(not choose_device().computes("bf16"), reason="this processor does not compute in bf16")


def load(path: Path, precision: str | None = None) -> VLM:
    """A bundle in OpenVINO, one thread."""
    return VLM.load(path, backend="openvino", precision=precision, threads=1)


def endless(model: VLM) -> VLM:
    """A model whose answers have the length asked for."""
    model.text.facts = replace(model.manifest.generation, eos_token_ids=())
    return model


def test_scores_are_those_of_the_plain_model(toy_and_bundle: tuple[Toy, Path]) -> None:
    toy, path = toy_and_bundle
    model = load(path)
    assert (model.provider, model.precision) == ("openvino CPU", "fp32")
    for number, scores in enumerate(model.score(IMAGES, PROMPTS, CONTINUATIONS)):
        np.testing.assert_allclose(scores, expected(toy, model, number, CONTINUATIONS[number]), atol=2e-3)
        assert scores.dtype == np.float32


def test_answers_are_those_of_onnx_runtime(toy_and_bundle: tuple[Toy, Path]) -> None:
    model, wanted = load(toy_and_bundle[1]), VLM.load(toy_and_bundle[1], provider="cpu")
    answers, expected_answers = (endless(each).generate(IMAGES, PROMPTS, ANSWER) for each in (model, wanted))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected_answers]
    assert answers[0].timings.segment_lengths == expected_answers[0].timings.segment_lengths
    assert answers[0].timings.kv_bytes == expected_answers[0].timings.kv_bytes
    assert answers[0].timings.vision_ms > 0
    alone = [model.generate([images], [prompt], ANSWER)[0] for images, prompt in zip(IMAGES, PROMPTS, strict=True)]
    assert [answer.token_ids for answer in alone] == [answer.token_ids for answer in answers]
    for kept, expected_kept in zip(model.kept(IMAGES, PROMPTS), wanted.kept(IMAGES, PROMPTS), strict=True):
        np.testing.assert_array_equal(kept, expected_kept)
    features, expected_features = (each.encode(IMAGES, PROMPTS)[0] for each in (model, wanted))
    np.testing.assert_allclose(features, expected_features, atol=1e-5)


def test_the_cache_has_the_size_that_is_reported(toy_and_bundle: tuple[Toy, Path]) -> None:
    model = endless(load(toy_and_bundle[1]))
    running = model.start(IMAGES, PROMPTS, 5)
    for _ in running:
        for past, segment in zip(running._cache.past, model.decoder.segments, strict=True):
            states = past._request.query_state()  # type: ignore[attr-defined]
            assert past.bytes == sum(state.state.byte_size for state in states) > 0
            assert {state.state.shape[2] for state in states} == {past.length}
            assert past.tensors == ()
            assert not any(name.startswith(("past_key_values", "present")) for name in segment.graph.inputs)
            assert not any(name.startswith(("past_key_values", "present")) for name in segment.graph.outputs)


def test_running_generations_keep_apart(toy_and_bundle: tuple[Toy, Path]) -> None:
    model = endless(load(toy_and_bundle[1]))
    asked = list(zip(IMAGES, PROMPTS, strict=True))
    alone = [model.generate([images], [prompt], ANSWER)[0].token_ids for images, prompt in asked]
    running = [model.start([images], [prompt], ANSWER) for images, prompt in asked]
    turns = zip(*running, strict=True)  # a token of each in turn
    assert [[token for (token,) in tokens] for tokens in zip(*turns, strict=True)] == alone


def test_threads_are_answered_as_one(toy_bundles: dict[str, Path]) -> None:
    model = endless(load(toy_bundles["visual exit"]))
    questions = [(picture(number, (16 + number * 7, 24)), "what is red " * (1 + number % 3)) for number in range(4)]
    wanted = [model.ask(*question, ANSWER) for question in questions]
    assert len(set(wanted)) > 1
    together = Barrier(len(questions))

    def ask_all(first: int) -> list[str]:
        together.wait()
        numbers = [(first + turn) % len(questions) for turn in range(len(questions))]
        answers = {number: "".join(model.stream(*questions[number], ANSWER)) for number in numbers}
        return [answers[number] for number in range(len(questions))]

    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(ask_all, range(len(questions)))) == [wanted] * len(questions)


def test_requests_are_used_again(toy_bundle: Path) -> None:
    model = endless(load(toy_bundle))
    graph = model.decoder.segments[0].graph
    assert isinstance(graph, Graph)
    running = [model.start([IMAGES[0]], [PROMPTS[0]], 3) for _ in range(IDLE + 2)]
    in_use = [one._cache.past[0]._request for one in running]  # type: ignore[attr-defined]
    assert len(set(map(id, in_use))) == IDLE + 2
    del running
    gc.collect()
    assert len(graph._idle) == IDLE
    model.generate([IMAGES[0]], [PROMPTS[0]], 3)
    gc.collect()
    assert len(graph._idle) == IDLE


def test_half_precision_runs_and_is_close(tmp_path: Path) -> None:
    toy = make_toy(half=True)
    model = load(write_toy_bundle(toy, tmp_path / "half"))
    assert model.precision == "fp16"
    for number, scores in enumerate(model.score(IMAGES, PROMPTS, CONTINUATIONS)):
        whole = expected(toy, model, number, CONTINUATIONS[number])
        assert np.abs(scores - whole).max() < 0.1 * np.abs(whole).max()


@needs_bf16
def test_bfloat16_is_computed_from_float32_graphs(toy_and_bundle: tuple[Toy, Path]) -> None:
    toy, path = toy_and_bundle
    model = load(path, "bf16")
    assert model.precision == "bf16"
    last = len(PROMPTS) - 1  # without images: rounded scores choose other visual tokens
    scores, wanted = model.score(IMAGES, PROMPTS, CONTINUATIONS)[last], expected(toy, model, last, CONTINUATIONS[last])
    assert 1e-4 < np.abs(scores - wanted).max() / np.abs(wanted).max() < 0.05
    exact = load(path).generate(IMAGES, PROMPTS, 4)[0].timings
    assert model.generate(IMAGES, PROMPTS, 4)[0].timings.kv_bytes * 2 == exact.kv_bytes


@needs_bf16
def test_bfloat16_rounds_no_place(tmp_path: Path) -> None:
    toy = make_toy(
        image_size=80, keep=300, context=1000
    )  # of 400 visual tokens; whole numbers above 256 are beyond bfloat16
    path = write_toy_bundle(toy, tmp_path / "many")
    whole, rounded = (load(path, precision).kept([IMAGES[0]], [PROMPTS[0]])[0][0] for precision in ("fp32", "bf16"))
    assert (np.diff(rounded) > 0).all()
    assert len(np.intersect1d(whole, rounded)) > 280
    assert {257, 259, 261} & set(rounded.tolist())


def test_bfloat16_is_refused_where_it_is_not_to_be_had(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = write_toy_bundle(make_toy(half=True), tmp_path / "half")
    monkeypatch.setattr(device.Device, "computes", lambda self, numbers: True)
    with pytest.raises(
        InputError, match=r"half: OpenVINO computes bf16 from fp32 graphs, and there are only fp16; exp"
    ):
        load(half, "bf16")
    with pytest.raises(InputError, match=r"computes q4-bf16 from q4 graphs, and there are only fp16; export it with"):
        load(half, "q4-bf16")
    with pytest.raises(InputError, match=r"computes fp32, q4, q4-static, int8 graphs in bfloat16, not fp16"):
        load(half, "fp16-bf16")
    monkeypatch.setattr(device.Device, "computes", lambda self, numbers: numbers == "f32")
    for name in ("bf16", "q4-bf16"):
        told = f"{name} is not to be had: this machine's CPU does not compute in bfloat16"
        with pytest.raises(InputError, match=told):
            load(toy_bundle, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "npu9"}, "provider 'npu9' is no device that OpenVINO finds here; available: .*cpu"),
        ({"precision": "int4"}, "holds no int4 graphs, only fp32"),
        ({"engines": "x"}, "--engines goes with --backend tensorrt"),
    ],
)
def test_what_is_not_to_be_had_is_refused(toy_bundle: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_backend(load_manifest(toy_bundle), RuntimeOptions(backend="openvino", **options))  # type: ignore[arg-type]


def test_threads_are_for_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("CPU").properties("f32", 3, False)["INFERENCE_NUM_THREADS"] == 3

    class Gpu:
        def get_property(self, name: str, what: str) -> list[str]:
            return ["INFERENCE_PRECISION_HINT"]

    monkeypatch.setattr(device, "core", Gpu)
    assert device.Device("GPU").properties("f16", None, False) == {"INFERENCE_PRECISION_HINT": "f16"}
    with pytest.raises(InputError, match="--threads is for the processor; openvino GPU has none"):
        device.Device("GPU").properties("f32", 2, False)


def test_a_graph_that_it_cannot_read_is_named(toy_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "embed_tokens.onnx"
    broken.write_bytes((toy_bundle / "onnx" / "embed_tokens.onnx").read_bytes()[:40])
    with pytest.raises(BundleError, match=r"^\S+embed_tokens.onnx: OpenVINO cannot load the graph \(.+\)$"):
        Graph(broken, "CPU", {}, (1, 4))


def test_a_run_that_fails_is_told_in_one_line(toy_bundle: Path) -> None:
    model = load(toy_bundle)
    graph = model.vision.open(model.manifest.images[0])
    with pytest.raises(BundleError, match=r"^\S+vision_encoder.onnx: OpenVINO cannot run the graph \(.+\)$"):
        graph.run({"pixel_values": np.zeros((1, 3, 5, 5))})


def test_without_openvino_the_extra_is_named(toy_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "import vtc.runtime.vlm as vlm\n"
        f"vlm.VLM.load({str(toy_bundle)!r}, backend='openvino')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert MissingDependency.__name__ in ended.stderr
    assert ended.stderr.rstrip().endswith("pip install 'vtc[openvino]'")


def test_openvino_is_not_imported_before_it_is_wanted(toy_bundle: Path) -> None:
    code = (
        "import sys\nfrom vtc.runtime.vlm import VLM\n"
        f"VLM.load({str(toy_bundle)!r}, provider='cpu')\nassert 'openvino' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_is_measured_in_a_process_of_its_own(toy_bundle: Path) -> None:
    options = RuntimeOptions(backend="openvino", threads=1)
    measured = measure_memory(toy_bundle, [picture(0)], "what is red", 2, options)
    assert measured.peak_mb is None or measured.peak_mb > (measured.before_load_mb or 0)
