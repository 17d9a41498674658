"""A training that learned nothing says so, in its file and wherever the model is used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vtc.artifact import publish, staging_dir
from vtc.cli.verb import tell_warnings
from vtc.compressed.inspection import warnings_of
from vtc.errors import InputError
from vtc.training.verdict import check_finite, learned_nothing


@pytest.mark.parametrize(
    ("losses", "accuracies", "untrained", "best", "said"),
    [
        ((2.0, 1.0), (0.5, 0.7), 0.4, 0.9, None),
        ((1.0, 2.0), (0.5, 0.7), 0.4, 0.9, "its loss rose from 1 to 2"),
        ((2.0, 1.0), (0.5, 0.4), 0.4, 0.9, "validation accuracy is 0.4 and was 0.4 untrained"),
        ((2.0, 1.0), (0.0, 0.0), 0.0, 0.0, "answers no held-out question"),
    ],
)
def test_warns_of_a_loss_that_rose_and_of_validation_that_did_not_improve(
    losses: tuple[float, ...], accuracies: tuple[float, ...], untrained: float, best: float, said: str | None
) -> None:
    log = [{"loss": loss, "validation_accuracy": share} for loss, share in zip(losses, accuracies, strict=True)]
    warning = learned_nothing(log, "pruner", "loss", "validation_accuracy", untrained, higher_is_better=True, best=best)
    assert (warning is None) == (said is None)
    assert said is None or said in str(warning)


@pytest.mark.parametrize(("last", "warns"), [(0.5, False), (1.0, True), (1.5, True)])
def test_divergence_is_better_the_lower_it_is(last: float, warns: bool) -> None:
    log = [{"kl": 2.0, "validation_kl": 1.0}, {"kl": 1.0, "validation_kl": last}]
    assert bool(learned_nothing(log, "relevance network", "kl", "validation_kl", 1.0)) == warns


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_that_diverged_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"training of the pruner diverged: loss is .*learning_rate"):
        check_finite({"step": 1.0, "loss": value}, "pruner")


@pytest.mark.parametrize("kind", ["compressed", "bundle"])
def test_an_artifact_repeats_what_its_training_warned_of(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "artifact"
    staging_dir(out).mkdir()
    publish(staging_dir(out), out, {"kind": kind, "schema": 3, "warnings": ["the pruner learned nothing"]})
    tell_warnings(out)
    assert capsys.readouterr().err == "warning: the pruner learned nothing\n"
    assert warnings_of(tmp_path) == []
