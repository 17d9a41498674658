"""Relevance: labels are what the rule says, the network learns them, and what it learnt travels with the model."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.tiny import image, recipe
from vtc.cli import main
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import load_compressed
from vtc.compressed.model import CompressedModel
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.errors import InputError
from vtc.models import load_adapter, model_digest
from vtc.models.base import VLMAdapter
from vtc.recipe import load_recipe
from vtc.recipe.selectors import LearnedEntry, RelevanceEntry
from vtc.recipe.selectors.decoder.relevance import RelevanceTraining
from vtc.reference import reference_dir, reference_part
from vtc.selectors.decoder.relevance import Relevance
from vtc.selectors.learned import Learned
from vtc.selectors.trained import fits, log_path, read_metadata, save_trained
from vtc.staging import open_work
from vtc.training import explanations, relevance
from vtc.training.auto import AutoTrained
from vtc.training.examples import Data, Example
from vtc.training.explanations import Explained, RelevanceSubject, explain, label, rollout
from vtc.training.frozen import tensors_digest
from vtc.training.packing import QuestionTokens
from vtc.training.relevance import LOG_FIELDS, fit, train_relevance

CONFIG = RelevanceTraining(images=20, questions=2, validation=2, epochs=4, batch=8)
RECIPE = """version: 1
name: small
stages:
{before}- kind: prune_in_decoder
  layer: 1
  keep: 5
  selector:
    name: relevance
    training: {{images: 20, questions: 2, validation: 2, epochs: 2, batch: 8}}
"""


@pytest.fixture
def eager(adapter: VLMAdapter) -> Iterator[VLMAdapter]:
    adapter.set_decoder_attention("eager")
    yield adapter
    adapter.set_decoder_attention("sdpa")


def subject(adapter: VLMAdapter) -> RelevanceSubject:
    return RelevanceSubject(adapter, "abc", 1, 0)


def network(adapter: VLMAdapter) -> Relevance:
    torch.manual_seed(0)
    return subject(adapter).network()


def visual(adapter: VLMAdapter, examples: list[Example]) -> torch.Tensor:
    with torch.no_grad():
        pixels = adapter.preprocess([example.items[0].load() for example in examples])
        return VisionEncoder(adapter, range(2))(pixels)[0]


def explained(adapter: VLMAdapter, data: Data) -> tuple[list[Example], list[QuestionTokens], Explained]:
    """The first question about each of six images; they differ in length."""
    examples = list(data.train[:6])
    questions = [example.questions[number % len(example.questions)] for number, example in enumerate(examples)]
    found = explain(network(adapter), questions, data.beginning, visual(adapter, examples))
    return examples, questions, found


# Labels -----------------------------------------------------------------------------------------------------------


def test_two_layers_by_hand() -> None:
    # Three tokens, two heads. Layer 1: token 1 takes from 0, token 2 from 1. Layer 2: token 2 takes from 0 and from 1.
    first = torch.tensor([[[[1.0, 0, 0], [0.5, 0.5, 0], [0, 0.4, 0.6]], [[1.0, 0, 0], [0.5, 0.5, 0], [0, 0.4, 0.6]]]])
    second = torch.tensor([[[[1.0, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5]], [[1.0, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5]]]])
    slopes = torch.zeros(2, 1, 2, 3, 3)
    slopes[0, 0, :, 1, 0] = torch.tensor([2.0, -8.0])  # of the two heads, the negative one counts as nothing
    slopes[0, 0, :, 2, 1] = 5.0
    slopes[1, 0, :, 2, 0] = 3.0
    slopes[1, 0, :, 2, 1] = torch.tensor([4.0, 0.0])
    found = rollout([first, second], [slopes[0], slopes[1]], torch.tensor([[0.0, 0, 1]]))
    into_1, into_2 = 0.5 * 2.0 / 2, 0.4 * 5.0
    from_0, from_1 = 0.2 * 3.0, 0.3 * 4.0 / 2
    expected = [from_0 + from_1 * into_1 + into_2 * 0.0, from_1 + into_2, 1.0]
    assert found[0].tolist() == pytest.approx(expected)


def test_rollout_is_the_products_of_whole_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 5, 5, generator=generator).tril() for _ in range(4)]
    slopes = [torch.randn(2, 3, 5, 5, generator=generator) for _ in range(4)]
    start = torch.tensor([[0.0, 0, 0, 1, 1], [0, 0, 0, 0, 2]])
    chain = torch.eye(5, dtype=torch.float64).expand(2, -1, -1)
    for attention, slope in zip(maps, slopes, strict=True):
        chain = chain + (attention * slope).clamp(min=0).mean(dim=1).double() @ chain
    torch.testing.assert_close(rollout(maps, slopes, start), (start.double().unsqueeze(1) @ chain).squeeze(1))


def test_label_is_the_upper_half_as_a_distribution() -> None:
    found = label(torch.tensor([[1.0, 5.0, 0.0, 3.0, 2.0], [0.0, 0, 0, 0, 0], [0.0, 4e-30, 0, 0, 0]]).double())
    assert found[0].tolist() == pytest.approx([0, 0.5, 0, 0.3, 0.2])
    assert found[1].tolist() == [0] * 5
    assert found[2].tolist() == [0, 1, 0, 0, 0]


def test_labels_equal_those_of_the_whole_model_asked_alone(eager: VLMAdapter, data: Data) -> None:
    examples, questions, found = explained(eager, data)
    assert len({len(question.question) + len(question.answer) for question in questions}) > 1
    assert torch.allclose(found.labels.sum(dim=1), torch.ones(6))
    assert ((found.labels == 0).sum(dim=1) == 8).all()
    start = len(data.beginning)
    for example, question, labels in zip(examples, questions, found.labels, strict=True):
        ids = [*data.beginning, *[eager.image_token_id] * 16, *question.question, *question.answer[:-1]]
        pixels = eager.preprocess([example.items[0].load()]).requires_grad_()
        output = eager.model(input_ids=torch.tensor([ids]), pixel_values=pixels, output_attentions=True)
        places = range(len(ids) - len(question.answer), len(ids))
        likely = output.logits[0, list(places)].log_softmax(dim=-1)
        total = sum(likely[number, token] for number, token in enumerate(question.answer))
        chain = torch.eye(len(ids))
        for attention, slope in zip(output.attentions, torch.autograd.grad(total, output.attentions), strict=True):
            chain = chain + (attention * slope).clamp(min=0).mean(dim=1)[0] @ chain
        whole = label(chain[list(places)].sum(dim=0)[start : start + 16].unsqueeze(0))
        torch.testing.assert_close(labels, whole[0], atol=1e-4, rtol=1e-3)


def test_nothing_is_relevant_where_attention_moves_nothing(checkpoint: Path, data: Data) -> None:
    cut_off = load_adapter(checkpoint)
    cut_off.set_decoder_attention("eager")
    for layer in cut_off.decoder_layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)  # type: ignore[union-attr, arg-type]
    *_, found = explained(cut_off, data)
    assert not found.labels.any()
    assert bool(found.rows.all())


def test_what_the_network_learns_from_is_what_it_reads_at_the_cut(
    eager: VLMAdapter, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, questions, found = explained(eager, data)
    read: list[torch.Tensor] = []
    logits = Relevance.logits
    monkeypatch.setattr(Relevance, "logits", lambda self, row: read.append(row) or logits(self, row))
    stage = {"kind": "prune_in_decoder", "layer": 1, "keep": 5, "selector": {"name": "relevance", "checkpoint": "auto"}}
    model = apply_recipe(eager, recipe(stage), from_state=True)
    query = [
        example.items[example.questions.index(question)] for example, question in zip(examples, questions, strict=True)
    ]
    model.kept([[item.load()] for item in query], [eager.chat(item.question) for item in query])
    torch.testing.assert_close(read[0], found.rows, atol=1e-5, rtol=1e-4)


# Training ---------------------------------------------------------------------------------------------------------


def planted(count: int) -> Explained:
    """Tokens that get much attention are relevant, and so is the one after each: a pattern that can be learnt."""
    rows = torch.rand(count, 16, generator=torch.Generator().manual_seed(count)) ** 4
    return Explained(rows, label(rows + rows.roll(1, dims=1)))


def test_training_lowers_the_loss_on_what_it_has_not_seen(adapter: VLMAdapter, tmp_path: Path) -> None:
    config = RelevanceTraining(epochs=40, batch=16)
    _, log = fit(subject(adapter), planted(96), planted(33), config, tmp_path / "state.safetensors", "run")
    assert log[-1]["kl"] < 0.8 * log[0]["kl"], log
    assert log[-1]["validation_kl"] < 0.8 * log[0]["validation_kl"], log
    assert log[-1]["validation_overlap"] > 0.7


def train(adapter: VLMAdapter, data: Data, path: Path, config: RelevanceTraining = CONFIG) -> dict[str, torch.Tensor]:
    path.parent.mkdir(exist_ok=True)
    train_relevance(subject(adapter), data, config, path, "data")
    return load_file(path)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_seed_makes_one_network_and_the_model_stays(adapter: VLMAdapter, data: Data, tmp_path: Path) -> None:
    before = tensors_digest(adapter.model)
    first = train(adapter, data, tmp_path / "a" / "r.safetensors")
    torch.manual_seed(5)
    assert same(first, train(adapter, data, tmp_path / "b" / "r.safetensors"))
    assert not same(
        first, train(adapter, data, tmp_path / "c" / "r.safetensors", CONFIG.model_copy(update={"seed": 1}))
    )
    assert tensors_digest(adapter.model) == before
    assert adapter.model.config.text_config._attn_implementation == "sdpa"


def test_file_says_what_it_is(adapter: VLMAdapter, data: Data, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    train(adapter, data, path)
    assert {"validation_kl", "validation_overlap", "training_questions", "vtc_version", "epochs"} <= read_metadata(
        path
    ).keys()
    assert fits(path, Relevance(RelevanceEntry(), adapter, 1, 0), "abc")
    assert not fits(path, Relevance(RelevanceEntry(), adapter, 2, 1), "abc")
    assert not fits(path, Relevance(RelevanceEntry(), adapter, 1, 0), "other")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["r.safetensors", "r_log.csv"]
    with log_path(path).open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == LOG_FIELDS
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("where", ["explaining", "training"])
def test_interrupted_training_ends_as_an_uninterrupted_one(
    adapter: VLMAdapter, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(explanations, "BATCH", 4)
    whole = train(adapter, data, tmp_path / "a" / "r.safetensors")
    module, name = (explanations, "explain") if where == "explaining" else (relevance, "validate")
    function, calls = getattr(module, name), []

    def counted(*arguments: object) -> object:
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(module, name, counted)
    path = tmp_path / "b" / "r.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(adapter, data, path)
    assert not path.exists()
    assert same(whole, train(adapter, data, path))
    done = len(calls)
    assert done == (7 if where == "explaining" else 6)  # what was saved is not done again
    train(adapter, data, path)
    assert len(calls) == done  # finished: nothing is


# In recipes and on disk -------------------------------------------------------------------------------------------


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def kept(model: CompressedModel) -> list[list[int]]:
    images, prompts = [[image(number)] for number in range(4)], [model.adapter.chat("what is it ?")] * 4
    return list(model.kept(images, prompts)[1].tolist())


def test_compress_trains_a_network_that_travels_with_the_model(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE.format(before=""))
    out = tmp_path / "c"
    with open_work(out, "test") as work:
        work.claim("pruner.safetensors")
        (work.path / "pruner.safetensors").write_bytes(b"of another recipe")
    invoke("compress", checkpoint, "--recipe", tmp_path / "small.yaml", "--data", source, "-o", out)
    files = {"manifest.json", "recipe.yaml", "state.safetensors", "relevance.safetensors", "relevance_log.csv"}
    assert {path.name for path in out.iterdir()} == files
    resolved = load_recipe(out / "recipe.yaml")
    assert not resolved.autos
    assert resolved.checkpoint(0) == (out / "relevance.safetensors").resolve()
    model = apply_recipe(load_adapter(checkpoint), resolved, model_digest=model_digest(checkpoint))
    loaded, _, _ = load_compressed(out)
    assert same(dict(model.trained.state_dict()), dict(loaded.trained.state_dict()))
    assert kept(model) == kept(loaded)
    torch.manual_seed(9)
    untrained = apply_recipe(model.adapter, resolved, from_state=True)
    assert kept(untrained) != kept(model)


def test_two_kinds_of_trained_parts_go_side_by_side(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    before = "- {kind: prune, keep: 9, selector: {name: learned, checkpoint: p.safetensors}}\n"
    (tmp_path / "both.yaml").write_text(RECIPE.format(before=before))
    digest = model_digest(checkpoint)
    save_trained(tmp_path / "p.safetensors", Learned(LearnedEntry(), 32, (0, 1)), digest)
    out = tmp_path / "c"
    invoke("compress", checkpoint, "--recipe", tmp_path / "both.yaml", "--data", source, "-o", out)
    model, resolved, _ = load_compressed(out)
    assert [resolved.checkpoint(number).name for number in (0, 1)] == ["p.safetensors", "relevance.safetensors"]
    assert {name.split(".")[0] for name in model.trained.state_dict()} == {"0", "handoffs"}


def test_network_of_another_model_is_refused(adapter: VLMAdapter, tmp_path: Path) -> None:
    save_trained(tmp_path / "r.safetensors", network(adapter), "another")
    (tmp_path / "r.yaml").write_text(
        "version: 1\nname: r\nstages:\n- kind: prune_in_decoder\n  layer: 1\n  keep: 4\n"
        "  selector: {name: relevance, checkpoint: r.safetensors}\n"
    )
    with pytest.raises(InputError, match="was trained on model another"):
        apply_recipe(adapter, load_recipe(tmp_path / "r.yaml"), model_digest="this")


def test_shipped_network_is_used_for_its_own_model_and_layer_only(adapter: VLMAdapter, tmp_path: Path) -> None:
    reference = load_adapter(reference_dir())
    auto = AutoTrained(reference, model_digest(reference.path), tmp_path, None)
    path = auto(load_recipe("relevance"), 0)
    assert path.read_bytes() == reference_part("relevance").read_bytes()
    assert log_path(path).read_bytes() == log_path(reference_part("relevance")).read_bytes()
    with pytest.raises(InputError, match="give --data"):
        auto(load_recipe("relevance", ["stages.0.layer=2"]), 0)
    with pytest.raises(InputError, match="give --data"):
        AutoTrained(adapter, "abc", tmp_path, None)(load_recipe("relevance"), 0)


def test_shipped_network_has_learnt_something() -> None:
    metadata = read_metadata(reference_part("relevance"))
    assert metadata["data"] == "reference"
    assert float(metadata["validation_overlap"]) > 0.4  # a quarter by chance, 0.31 by place alone
