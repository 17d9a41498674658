"""A runtime that shares no code with ours loads the same bundles and generates the same tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from exporters import writing
from exporters.onnx import ExportRequest, export
from tests.exporters.export_request import request
from tests.runtime.conftest import picture
from tests.runtime.toy import make_toy, write_toy_bundle
from tests.tiny import IMAGE, RECIPES, image, recipe
from vtc.bundle.manifest import WEIGHTS
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin
from vtc.data.samples import Sample
from vtc.models import load_adapter, model_digest, resolve_model
from vtc.models.base import VLMAdapter
from vtc.reference.scenes import question_set
from vtc.runtime.vlm import VLM

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.js,
    pytest.mark.skipif(
        shutil.which("node") is None or not (HERE / "node_modules").is_dir(), reason="run `make test-js`"
    ),
]
NEW_TOKENS = 8


def generate(
    bundle: Path, precision: str, cases: Sequence[tuple[Image.Image, str]], work: Path
) -> list[dict[str, Any]]:
    """What transformers.js makes of whole prompts and of images of the model's size, which it resizes otherwise."""
    query_tokens = []
    for number, (picture_, prompt) in enumerate(cases):
        picture_.save(work / f"{number}.png")
        query_tokens.append({"image": str(work / f"{number}.png"), "prompt": prompt})
    request = {"bundle": str(bundle), "dtype": precision, "max_new_tokens": NEW_TOKENS, "cases": query_tokens}
    done = subprocess.run(
        ["node", HERE / "generate.mjs"], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def assert_same(bundle: Path, precision: str, cases: Sequence[tuple[Image.Image, str]], work: Path) -> None:
    """Same prompt ids, with as many placeholders, and same generated ids."""
    model = VLM.load(bundle, provider="cpu", precision=precision)
    ends = model.manifest.generation.eos_token_ids
    for (picture_, prompt), theirs in zip(cases, generate(bundle, precision, cases, work), strict=True):
        ours = model.generate([[picture_]], [prompt], NEW_TOKENS)[0]
        assert theirs["prompt_ids"] == model.text.encode([prompt], [1], model.manifest.images[0])[0]
        assert [token for token in theirs["token_ids"] if token not in ends] == ours.token_ids
        assert theirs["text"].strip() == ours.text


@pytest.mark.parametrize(("seed", "keep"), [(1, 3), (2, 16), (3, 1)])
def test_toy_bundles_generate_the_same(tmp_path: Path, seed: int, keep: int) -> None:
    toy = make_toy(seed, keep=keep)
    bundle = write_toy_bundle(toy, tmp_path / "bundle")
    side = (toy.image_size, toy.image_size)
    prompts = ["<image> what is red", "what <image> is the colour of shape", "<s><image> red what"]
    assert_same(bundle, "fp32", [(picture(n, side), prompt) for n, prompt in enumerate(prompts)], tmp_path)


@pytest.mark.parametrize(("name", "beside"), [*product(["none", "cls", "fourier", "depth"], [False]), ("cls", True)])
def test_exported_bundles_generate_the_same(
    adapter: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, beside: bool
) -> None:
    if beside:
        monkeypatch.setattr(writing, "EXTERNAL_DATA_BYTES", 50_000)
    precisions = ("fp32", "fp16") if name == "cls" else ("fp32",)
    export(request(adapter, *RECIPES[name], precisions=precisions), tmp_path / "bundle")
    assert any((tmp_path / "bundle/onnx").glob(f"*{WEIGHTS}")) == beside
    questions = ["what is it ?", "how many red circles are there ?", "is there a 7 ?"]
    cases = [(image(n, (IMAGE, IMAGE)), adapter.chat(question)) for n, question in enumerate(questions)]
    for precision in precisions:
        assert_same(tmp_path / "bundle", precision, cases, tmp_path)


@pytest.mark.slow
def test_reference_model_generates_the_same(tmp_path: Path) -> None:
    path = resolve_model("reference")
    adapter = load_adapter(path)
    resolved = recipe({"kind": "prune", "keep": 0.055, "selector": "cls_attention"})
    cases = []
    for _, scene, question in question_set("test", 7, 16):
        cases.append((Image.fromarray(scene.image), adapter.chat(question.text)))
    samples = [Sample([picture_], prompt) for picture_, prompt in cases[:2]]
    export(
        ExportRequest([apply_recipe(adapter, resolved)], resolved, Origin("reference", model_digest(path)), samples),
        tmp_path / "b",
    )
    assert_same(tmp_path / "b", "fp32", cases, tmp_path)
