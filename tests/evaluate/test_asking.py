"""A question that cannot be asked is left out and named; an interrupted validation goes on where it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.evaluate.fakes import FakeGeneration, FakePredictor, contestant, dataset
from tests.tiny import image
from vtc.cli.report import validate_tables
from vtc.data.datasets import Dataset
from vtc.errors import BundleError, InputError, MissingDependency, ModelError, OutOfResources
from vtc.evaluate.answers import Contestant
from vtc.evaluate.asking import Effort, Faults
from vtc.evaluate.notes import Notes, notes_of
from vtc.evaluate.validate import validate


@dataclass
class Picky(FakePredictor):
    """Refuses some prompts, and stops after so many batches."""

    refused: frozenset[str] = frozenset()
    error: type[Exception] = InputError
    stop_after: int = 10**9
    calls: list[int] = field(default_factory=list)

    def _look(self, prompts: list[str]) -> None:
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(prompts))
        if bad := self.refused & set(prompts):
            raise self.error(f"{min(bad)} is too long")

    def generate(
        self, images: list[list[Image.Image]], prompts: list[str], max_new_tokens: int = 32
    ) -> list[FakeGeneration]:
        self._look(prompts)
        return super().generate(images, prompts, max_new_tokens)

    def score(
        self, images: list[list[Image.Image]], prompts: list[str], continuations: list[list[int]]
    ) -> list[NDArray[np.float32]]:
        self._look(prompts)
        return super().score(images, prompts, continuations)


def picky(name: str, data: Dataset, refused: set[int] = frozenset(), **options: object) -> Contestant:  # type: ignore[assignment]
    one = contestant(name, data, wrong={1, 11})
    prompts = frozenset(f"<image>q{number}" for number in refused)
    return replace(one, predictor=Picky(one.predictor.answers, refused=prompts, **options))  # type: ignore[attr-defined, arg-type]


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_questions_that_cannot_be_asked_are_left_out_for_all(size: int) -> None:
    data = dataset(40)
    data = Dataset("d", (*data.items[:3], replace(data.items[3], where="d/data.jsonl:4"), *data.items[4:]))
    rivals = [picky("random", data, {9})]
    report = validate(picky("o", data, {3}), picky("c", data, {7}), rivals, data, effort=Effort(size))
    assert report["data"]["skipped"] == [
        {"id": "id3", "where": "d/data.jsonl:4", "why": "<image>q3 is too long"},
        {"id": "id7", "where": "", "why": "<image>q7 is too long"},
        {"id": "id9", "where": "", "why": "<image>q9 is too long"},
    ]
    rest = Dataset("d", tuple(item for item in data.items if item.id not in ("id3", "id7", "id9")))
    without = validate(contestant("o", rest, {1}), contestant("c", rest, {1}), [], rest)
    assert report["results"]["c"]["n"] == report["data"]["items"] == without["data"]["items"] == 37
    assert report["data"]["images"] == 37
    assert report["fidelity"]["tokens"] == without["fidelity"]["tokens"]
    lines = [part for part in validate_tables(report) if isinstance(part, str)]
    assert "3 more could not be asked and are left out:" in lines
    assert "  d/data.jsonl:4: item 'id3': <image>q3 is too long" in lines


def test_a_damaged_picture_is_left_out_by_name(tmp_path: Path) -> None:
    data = dataset(12)
    image(0).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-500])
    items = [replace(item, image=tmp_path / ("cut.png" if item.id == "id5" else "a.png")) for item in data.items]
    data = Dataset("d", tuple(items))
    report = validate(contestant("o", data), contestant("c", data), [], data, effort=Effort(4))
    (skipped,) = report["data"]["skipped"]
    assert skipped["id"] == "id5"
    assert "cut.png: cannot be decoded, the file is truncated" in skipped["why"]


@pytest.mark.parametrize(
    ("share", "count", "refused", "passes"),
    [(0.1, 40, 4, True), (0.1, 40, 5, False), (0, 40, 1, False), (0.1, 5, 1, True), (1, 5, 4, True), (1, 5, 5, False)],
)
def test_only_so_many_are_left_out(share: float, count: int, refused: int, passes: bool) -> None:
    data = dataset(count)
    asked = picky("o", data, set(range(refused)))
    if passes:
        assert len(validate(asked, None, [], data, max_skipped=share)["data"]["skipped"]) == refused
    else:
        with pytest.raises(InputError, match=rf"item 'id0' cannot be asked: .*too long .*of {count} .*--max-skipped"):
            validate(asked, None, [], data, max_skipped=share)


@pytest.mark.parametrize("error", [BundleError, ModelError, MissingDependency, OutOfResources, RuntimeError])
def test_other_faults_end_it(error: type[Exception]) -> None:
    data = dataset(40)
    with pytest.raises(error, match="too long"):
        validate(picky("o", data, {3}, error=error), None, [], data)


def test_faults_are_of_an_item_once() -> None:
    faults = Faults(0.5, 4)
    for _ in range(3):
        faults.add(dataset(1).items[0], InputError("x"))
    assert len(faults.found) == 1


@pytest.mark.parametrize("stop", [1, 3, 6, 9, 11])
def test_an_interrupted_run_goes_on(tmp_path: Path, stop: int) -> None:
    data = dataset(12)
    effort = Effort(4)
    wanted = validate(picky("o", data), picky("c", data), [], data, effort=effort)
    shared: list[int] = []

    def run(notes: Notes, stop_after: int) -> dict[str, object]:
        both = [picky(name, data, stop_after=stop_after, calls=shared) for name in "oc"]
        return validate(*both, [], data, effort=effort, notes=notes)

    with pytest.raises(KeyboardInterrupt):
        run(Notes(tmp_path / "notes", "k"), stop)
    again = Notes(tmp_path / "notes", "k")
    assert (again.damaged, len(again)) == (0, 4 * min(stop, 6) + 4 * (max(stop - 6, 0) // 2))
    assert run(again, 10**9) == wanted
    done = 4 * (min(stop, 6) + max(stop - 6, 0) // 2 * 2)
    assert sum(shared[stop:]) == 12 * 4 - done
    again.remove()
    assert list(tmp_path.iterdir()) == []


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda notes: notes[:-20],
    "empty": lambda _: b"",
    "noise": lambda notes: notes[:200] + b"\xff\x00\n" + notes[200:],
    "another key": lambda notes: notes.replace(b'"key": "k"', b'"key": "j"'),
    "another version": lambda notes: notes.replace(b'"version": 1', b'"version": 0'),
    "no head": lambda notes: notes.split(b"\n", 1)[1],
    "another type": lambda notes: notes.replace(b'"text": ', b'"text": [], "other": ').replace(b"[3, 3]", b'"x"'),
    "a list": lambda notes: notes.replace(b'"note": {', b'"note": [{').replace(b"}}", b"}]}"),
    "deep": lambda notes: notes + b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_notes_are_thrown_away(tmp_path: Path, name: str) -> None:
    data, path = dataset(12), tmp_path / "notes"
    wanted = validate(picky("o", data), picky("c", data), [], data)
    validate(picky("o", data), picky("c", data), [], data, notes=Notes(path, "k"))
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    assert validate(picky("o", data), picky("c", data), [], data, notes=Notes(path, "k")) == wanted
    whole = Notes(path, "k")
    assert (whole.damaged, len(whole)) == (0, 36)


def test_notes_of_a_changed_image_are_not_used(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    item = replace(dataset(1).items[0], image=tmp_path / "a.png")
    notes = Notes(tmp_path / "notes", "k")
    notes.add("original", [(item, {"text": "a", "token_ids": [1]})])
    assert Notes(tmp_path / "notes", "k").get("original", item) == {"text": "a", "token_ids": [1]}
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png", compress_level=0)
    assert Notes(tmp_path / "notes", "k").get("original", item) is None


def test_notes_are_kept_by_what_answers_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[tuple[str, int, int]] = []
    notes_of(["a", "b"]).add("original", [(dataset(1).items[0], {"text": "x", "token_ids": []})])
    assert len(notes_of(["a", "b"], lambda *step: told.append(step))) == 1
    assert len(notes_of(["a", "c"])) == 0
    assert "interrupted run" in told[0][0]
    # Where nothing can be written, a validation runs without notes.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    lost = notes_of(["a"])
    lost.add("original", [(dataset(1).items[0], {"text": "x", "token_ids": []})])
    lost.remove()


def test_random_draws_do_not_depend_on_batches() -> None:
    data = dataset(40)
    right, wrong = contestant("random", data), contestant("random", data, wrong=set(range(40)))
    rival = replace(right, others=(wrong.predictor, right.predictor))
    shuffled = Dataset("d", tuple(random.Random(0).sample(data.items, len(data.items))))
    reports = [
        validate(contestant("o", given), None, [rival], given, effort=Effort(size))
        for given in (data, shuffled)
        for size in (1, 3, 8)
    ]
    found = {report["baselines"]["random"]["accuracy"] for report in reports}
    assert len(found) == 1
    assert 0.3 < found.pop() < 0.9
