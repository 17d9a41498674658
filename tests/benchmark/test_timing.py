"""Timing a real (toy) bundle: answers of a fixed length, lengths from the graphs themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.bundles import bundle_with_plan
from tests.runtime.toy import Segment, make_toy
from vtc.benchmark.timing import BenchPrompt, EndlessSampler, runner
from vtc.runtime.vlm import VLM

QUESTION = BenchPrompt((Image.new("RGB", (16, 16), "red"),), "what is the colour ?")


def test_the_end_token_is_never_taken() -> None:
    logits = np.array([[0.0, 9.0, 5.0], [7.0, 9.0, 5.0]], np.float32)
    assert EndlessSampler([1]).__call__(logits).tolist() == [2, 0]
    assert logits[0, 1] == 9.0


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_answers_have_the_length_asked_for(pruned_bundle: Path, new_tokens: int) -> None:
    vlm = VLM.load(pruned_bundle, provider="cpu")
    sample = runner("toy", vlm, [QUESTION], new_tokens).ask(0)
    assert sample.new_tokens == new_tokens
    assert (sample.tpot_ms is None) == (new_tokens == 1)
    assert 0 < sample.ttft_ms < sample.e2e_ms


def test_fewer_visual_tokens_are_really_seen(original_bundle: Path, pruned_bundle: Path) -> None:
    whole, pruned = (
        runner("toy", VLM.load(path, provider="cpu"), [QUESTION], 2) for path in (original_bundle, pruned_bundle)
    )
    before, after = whole.ask(0), pruned.ask(0)
    assert before.segment_lengths[0] - after.segment_lengths[0] == 16 - 3
    assert after.kv_bytes < before.kv_bytes
    assert (whole.facts["visual_tokens"], pruned.facts["visual_tokens"]) == (16, 3)


def test_each_segment_reports_its_own_length(tmp_path: Path) -> None:
    toy = make_toy(segments=(Segment((0, 1)), Segment((2,), "text")), positions="original")
    vlm = VLM.load(bundle_with_plan(toy, tmp_path / "exit"), provider="cpu")
    seen, text = runner("exit", vlm, [QUESTION], 2).ask(0).segment_lengths
    assert seen - text == toy.keep
