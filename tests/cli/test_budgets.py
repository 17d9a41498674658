"""Models of several budgets at the shell and in Python: each budget, one of them, or a policy that chooses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import vtc
from tests.tiny import image
from vtc.cli import main

RECIPE = "version: 1\nname: elastic\nstages:\n  - {kind: prune, keep: [4, 8], selector: cls_attention}\n"
QUESTIONS = ("what digit is red ?", "how many ?", "is there a star ?")
QUICK = ("--max-new-tokens", "2", "--baselines", "uniform,blind")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vtc")


def report_of(*args: str | Path, code: int = 5) -> dict[str, Any]:
    """The JSON report of a command; three questions prove nothing, so that a gate leaves with 5."""
    done = run(*args, "--json")
    assert done.exit_code == code, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@dataclass(frozen=True)
class Made:
    """A tiny model at budgets 4 and 8, in PyTorch and as a bundle, and questions with an image each."""

    checkpoint: Path
    recipe: Path
    compressed: Path
    bundle: Path
    data: Path

    @property
    def photo(self) -> Path:
        return self.data / "0.png"


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("elastic")
    one = Made(checkpoint, root / "elastic.yaml", root / "c", root / "b", root)
    one.recipe.write_text(RECIPE)
    vtc.compress(checkpoint, one.recipe, out=one.compressed)
    vtc.export(one.compressed, out=one.bundle, samples=2)
    lines = []
    for number, question in enumerate(QUESTIONS):
        image(number).save(root / f"{number}.png")
        record = {"id": str(number), "image": f"{number}.png", "question": question, "answers": ["red"]}
        lines.append(json.dumps(record | {"category": f"kind {number % 2}"}))
    (root / "data.jsonl").write_text("\n".join(lines) + "\n")
    return one


def test_each_budget_is_judged_as_it_is_alone(made: Made) -> None:
    how = ("validate", made.bundle, "--data", made.data, *QUICK)
    report = report_of(*how)
    assert list(report["budgets"]) == ["4", "8"]
    for keep, part in report["budgets"].items():
        alone = report_of(*how, "--keep", keep)
        assert part == {name: alone[name] for name in part}
        assert {name: report[name] for name in ("original", "data")} == {
            name: alone[name] for name in ("original", "data")
        }
        result = part["results"][f"b at {keep}"]
        assert result["visual_tokens"] == result["layer_average"] == part["baselines"]["uniform"]["visual_tokens"]
        assert result["visual_tokens"] == int(keep)
    assert [(check["budget"], check["name"]) for check in report["gate"]["checks"]] == [
        (4, "retention"),
        (8, "retention"),
    ]
    shown = run(*how)
    assert "retention at 4, retention at 8" in shown.stderr
    for words in ("each budget beside the original", "accuracy at each budget", "kind 1", "uniform", "run as fp32"):
        assert words in shown.stdout, words


def test_the_original_is_measured_once_for_all_budgets(made: Made) -> None:
    done = run("validate", made.compressed, "--data", made.data, *QUICK)
    assert done.exit_code == 5, done.output
    told = done.stderr.splitlines()
    assert [told.count(f"{name}: answers 3/3") for name in ("original", "c at 4", "c at 8", "blind at 4")] == [1] * 4
    assert told.count("fidelity at every budget 3/3") == 1


@pytest.mark.parametrize("target", ["compressed", "bundle"])
def test_a_policy_is_judged_beside_the_budgets_that_it_chooses_from(made: Made, target: str) -> None:
    path: Path = getattr(made, target)
    report = report_of("validate", path, "--data", made.data, *QUICK, "--entropy", "0")
    (name, result), *_ = report["results"].items()
    assert name == f"{path.name} by entropy 0"
    assert (result["answered_at"], result["passes"]) == ({"4": 0, "8": 3}, 2)
    assert (result["visual_tokens"], result["tokens_answered"]) == (12, 8)
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p95"]
    assert list(report["baselines"]) == ["keep 4", "keep 8", "blind"]
    assert report["baselines"]["keep 4"]["visual_tokens"] == 4
    assert report["baselines"]["keep 8"]["latency_ms"]["p50"] > 0
    assert report["baselines"]["keep 8"]["after_by"] == 0


def test_a_policy_answers_as_the_budget_that_it_ends_at(made: Made) -> None:
    how = ("validate", made.bundle, "--data", made.data, "--max-new-tokens", "2", "--baselines")
    up, down = run(*how, "uniform", "--entropy", "0"), report_of(*how, "none", "--entropy", "100")
    assert "answered 3 at 8: 2 passes and 12 visual tokens a question, 8 of them in the pass that answered" in up.stdout
    assert "p95, ms" in up.stdout
    assert next(iter(down["results"].values()))["answered_at"] == {"4": 3, "8": 0}
    assert down["baselines"] == {}
    smallest = report_of(*how, "none", "--keep", "4")
    assert down["fidelity"]["kld_mean"] == pytest.approx(smallest["fidelity"]["kld_mean"], abs=1e-6)


def test_every_budget_is_timed_in_one_run(made: Made) -> None:
    how = ("bench", made.bundle, "--image", made.photo, "--repeats", "2", "--warmup", "1", "--max-new-tokens", "2")
    report = report_of(*how, "--against", made.bundle, "--no-memory", code=0)
    original, small, large = report["runs"]
    assert [run["name"] for run in report["runs"]] == ["b", "b at 4", "b at 8"]
    assert large["segment_lengths"][0] - small["segment_lengths"][0] == 4
    assert small["flops"] < large["flops"] == original["flops"]
    assert report["speedup"] == large["speedup"] != small["speedup"]
    table = run(*how, "--against", made.bundle, "--no-memory").stdout
    assert "speedup [95 % interval]" in table
    (one,) = report_of(*how, "--keep", "4", code=0)["runs"]
    assert (one["name"], one["visual_tokens"], one["flops"]) == ("b at 4", 4, small["flops"])
    assert one["peak_memory_mb"] > 0


def test_one_budget_is_shown(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "kept.png"
    by_recipe = ("--recipe", made.recipe, "--model", made.checkpoint)
    told = [
        run("show", made.photo, *what, "--keep", "4", "-o", out)
        for what in ([made.bundle], [made.compressed], by_recipe)
    ]
    assert [one.exit_code for one in told] == [0, 0, 0], told[-1].output
    assert all("into the decoder: 4; answer: " in one.stdout for one in told)
    assert len({one.stdout for one in told}) == 1
    assert "into the decoder: 8" in run("show", made.photo, made.bundle, "-o", out).stdout


def test_a_bundle_tells_its_plan_at_each_budget(made: Made) -> None:
    told, planned = (
        report_of("inspect", *what, code=0) for what in ([made.bundle], [made.checkpoint, "--recipe", made.recipe])
    )
    assert told["budgets"] == planned["budgets"]
    assert list(told["budgets"]) == ["4", "8"]


def test_a_compressed_model_is_loaded_and_asked_as_its_bundle_is(made: Made) -> None:
    bundle, model = vtc.load(made.bundle), vtc.load(made.compressed)
    assert bundle.budgets == model.budgets == (4, 8)
    prompts = [model.chat(question) for question in QUESTIONS]
    assert prompts == [bundle.chat(question) for question in QUESTIONS]
    asked = [[Image.open(made.data / f"{number}.png")] for number in range(3)], prompts
    for keep in (None, 4, vtc.Entropy(0.0), vtc.Entropy(100.0)):
        ours, theirs = (each.generate(*asked, 3, keep=keep) for each in (model, bundle))
        assert [(one.token_ids, one.text, one.budgets) for one in ours] == [
            (one.token_ids, one.text, one.budgets) for one in theirs
        ]
        assert model.ask(made.photo, QUESTIONS[0], 3, keep) == bundle.ask(made.photo, QUESTIONS[0], 3, keep)
    drawn = {"temperature": 1.0, "seed": 3}
    assert model.ask(made.photo, "how many ?", 4, **drawn) == bundle.ask(made.photo, "how many ?", 4, **drawn)
    assert model.kept(*asked)[0].tolist() == bundle.kept(*asked)[0].tolist()
    assert model.score(*asked, [[1], [2], [3]])[0].shape == bundle.score(*asked, [[1], [2], [3]])[0].shape


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["validate", "{bundle}", "--data", "{data}", "--keep", "5"],
            "b: has no budget of 5 visual tokens; it has 4, 8",
        ),
        (
            ["validate", "{compressed}", "--data", "{data}", "--keep", "5"],
            "c: has no budget of 5 visual tokens; it has 4",
        ),
        (["validate", "{bundle}", "--data", "{data}", "--keep", "4", "--entropy", "1"], "give one of the two"),
        (["validate", "{bundle}", "--data", "{data}", "--entropy", "-1"], "'--entropy'"),
        (["validate", "--against", "{checkpoint}", "--data", "{data}", "--keep", "4"], "the original has no budgets"),
        (["bench", "{bundle}", "--keep", "5"], "has no budget of 5 visual tokens; it has 4, 8"),
        (["bench", "--shape", "llava-next-7b", "--keep", "5"], "--keep goes with a BUNDLE"),
        (["show", "{photo}", "{bundle}", "--keep", "5", "-o", "{data}/k.png"], "has no budget of 5 visual tokens"),
        (
            ["show", "{photo}", "--recipe", "uniform", "--keep", "5", "-o", "{data}/k.png"],
            "it has one for all questions",
        ),
    ],
)
def test_a_budget_that_is_none_is_told_in_one_line(made: Made, args: list[str], message: str) -> None:
    named = {name: getattr(made, name) for name in ("bundle", "compressed", "checkpoint", "data", "photo")}
    done = run(*(arg.format(**named) for arg in args))
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_policy_needs_budgets(made: Made, tmp_path: Path) -> None:
    vtc.compress(made.checkpoint, "uniform", out=tmp_path / "one", overrides=["stages.0.keep=4"])
    done = run("validate", tmp_path / "one", "--data", made.data, "--entropy", "1")
    assert done.exit_code == 2
    assert "there is one budget for all questions here" in done.stderr
    one = vtc.load(tmp_path / "one")
    assert one.budgets == ()
    with pytest.raises(vtc.errors.InputError, match="it has one for all questions"):
        one.ask(made.photo, "how many ?", keep=4)


def test_options_of_the_other_kind_of_model_are_refused(made: Made) -> None:
    with pytest.raises(vtc.errors.InputError, match="device and dtype are a compressed model's"):
        vtc.load(made.bundle, dtype="bfloat16")
    with pytest.raises(vtc.errors.InputError, match="PyTorch runs a compressed model"):
        vtc.load(made.compressed, provider="cpu")
