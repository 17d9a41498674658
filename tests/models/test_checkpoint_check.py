"""What a checkpoint holds is checked before any work: each fault is one line with the remedy."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.models.changes import Change, edit, edit_part, write
from tests.tiny import IMAGE
from vtc.cli import main
from vtc.errors import CheckpointError, ModelError
from vtc.models import check_model, load_adapter, model_digest, resolve_model
from vtc.models.random.tiny_families import write_tiny


def rename(name: str, new: str) -> Change:
    return lambda path: (path / name).rename(path / new)


def remove(*names: str) -> Change:
    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
    save_file({"q.lora_A.weight": torch.zeros(2, 2)}, path / "adapter_model.safetensors")


def shards(path: Path, *names: str) -> None:
    """Weights in two files, with an index that names others if asked to."""
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    parts = list(weights.items())
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    save_file(dict(parts[::2]), path / files[0], metadata={"format": "pt"})
    save_file(dict(parts[1::2]), path / files[1], metadata={"format": "pt"})
    told = names or files
    index = {"metadata": {}, "weight_map": {name: told[number % 2] for number, (name, _) in enumerate(parts)}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def packed(path: Path) -> None:
    save_file({"a.qweight": torch.zeros(64, 64, dtype=torch.int32)}, path / "model.safetensors")


def more_tokens(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_tokens([f"<extra{number}>" for number in range(2000)])
    tokenizer.save(str(path / "tokenizer.json"))


def no_end(path: Path) -> None:
    (path / "generation_config.json").unlink()
    edit_part("text_config", eos_token_id=None)(path)
    edit("tokenizer_config.json", eos_token=None)(path)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change tensors by their names."""

    def changed(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return changed


def named(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in tensors if name.endswith(end))


def below_module(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[named(tensors, "layers.1.mlp.up_proj.weight")] = torch.ones(3, 4)


def as_type(dtype: torch.dtype) -> Change:
    return weights(lambda tensors: tensors.update({name: part.to(dtype) for name, part in tensors.items()}))


def twice(path: Path) -> None:
    shards(path)
    first, second = (path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor + 1}, second, metadata={"format": "pt"})


def dangling(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("nowhere")


def no_template(path: Path) -> None:
    (path / "chat_template.jinja").unlink()
    edit("tokenizer_config.json", chat_template=None)(path)


def pipe(name: str) -> Change:
    def change(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)

    return change


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
INDEX = "model.safetensors.index.json"
WITHOUT_UNKNOWN = Tokenizer(WordLevel({"a": 0}, unk_token="<unk>")).to_str()
FAULTS: dict[str, tuple[list[Change], str]] = {
    "adapter beside the weights": ([adapter], r"adapter \(LoRA\) beside its weights; merge it first: .*peft"),
    "adapter alone": ([adapter, remove("model.safetensors")], r"no model; merge it first: .*'org/base'"),
    "adapter's settings alone": (
        [write("adapter_config.json", "{}")],
        "adapter_config.json and no adapter.*remove that file if they are",
    ),
    "adapter among the weights": (
        [weights(lambda tensors: tensors.update({"layers.0.q_proj.lora_A.weight": torch.zeros(2, 2)}))],
        r"an adapter that is not merged \(layers.0.q_proj.lora_A.weight\); merge it",
    ),
    "weights of other names": ([weights(below_module)], r"weights lack .* and \d+ more, and hold module.* no place"),
    "a weight missing": (
        [weights(lambda tensors: tensors.pop(named(tensors, "layers.1.mlp.up_proj.weight")))],
        r"weights lack \S+layers.1.mlp.up_proj.weight; fetch them again",
    ),
    "a weight of another size": (
        [weights(other_shape)],
        r"layers.1.mlp.up_proj.weight are 3 x 4, and config.json makes them \d+ x \d+; take",
    ),
    "a weight twice": ([twice], "model-00001-of-00002.safetensors and model-00002-of-00002.safetensors both hold"),
    "weights of integers": ([as_type(torch.int64)], "weights are of type I64"),
    "weights of truths": ([as_type(torch.bool)], "weights are of type BOOL"),
    "link to no weights": ([dangling], "not a regular file, nor a link to one"),
    "unknown activation": ([edit_part("text_config", hidden_act="nope")], r"config.json: makes no model \(KeyError"),
    "no template": ([no_template], "ships no chat template"),
    "template without an image": ([write("chat_template.jinja", "what?")], "<image> 0 times for one image"),
    "pipe among templates": (
        [lambda path: (path / "additional_chat_templates").mkdir(), pipe("additional_chat_templates/a.jinja")],
        "a.jinja: cannot be read .*is a named pipe",
    ),
    "special token a number": ([edit("tokenizer_config.json", eos_token=3)], "tokenizer cannot be loaded"),
    "image token another word": ([edit("config.json", image_token_index=10)], "0 times for one image"),
    "several beams": ([edit("generation_config.json", num_beams=4)], "num_beams 4 is not served"),
    "no new token": ([edit("generation_config.json", max_new_tokens=0)], "generation_config.json: generation settings"),
    "no end in a list": ([edit("generation_config.json", eos_token_id=[])], "no file names an end token"),
    "every token suppressed": (
        [edit("generation_config.json", suppress_tokens=list(range(2000)))],
        "suppress_tokens leaves no token to take",
    ),
    "forced end of no model": ([edit("generation_config.json", forced_eos_token_id=10**6)], "none of the model's"),
    "AWQ": ([edit("config.json", quantization_config={"quant_method": "awq", "bits": 4})], "quantised.*unquantised"),
    "quantisation a word": ([edit("config.json", quantization_config="awq")], "quantization_config is .* an object"),
    "quantised decoder": ([edit_part("text_config", quantization_config={"quant_method": "fp8"})], "quantised.*fp8"),
    "compressed tensors": ([edit("config.json", compression_config={"format": "int"})], "take the unquantised"),
    "GPTQ's own file": ([write("quantize_config.json", "{}")], "quantised"),
    "packed integers": ([packed], "weights are of type I32; take the unquantised"),
    "pickle alone": ([rename("model.safetensors", "pytorch_model.bin")], "convert them .*save_pretrained"),
    "GGUF": ([rename("model.safetensors", "model.gguf")], "GGUF weights, which are not read"),
    "no weights": ([remove("model.safetensors")], "holds no weights"),
    "LFS weights": ([write("model.safetensors", LFS)], "Git LFS pointer.*git lfs pull"),
    "LFS tokenizer": ([write("tokenizer.json", LFS)], "Git LFS pointer.*git lfs pull"),
    "shards without index": ([shards, remove(INDEX)], "without model.safetensors.index.json; fetch"),
    "shard missing": (
        [shards, remove("model-00002-of-00002.safetensors")],
        "model-00002-of-00002.safetensors is missing",
    ),
    "index that is not JSON": ([shards, write(INDEX, "{")], "not JSON"),
    "index of another form": ([shards, write(INDEX, "[1]")], "no weight_map"),
    "index without files": ([shards, write(INDEX, '{"weight_map": {}}')], "names no files"),
    "index with numbers": ([shards, write(INDEX, '{"weight_map": {"a": 1}}')], "no .safetensors file of this"),
    "pipe as weights": ([pipe("model.safetensors")], "not a regular file"),
    "pipe as tokenizer": ([pipe("tokenizer.json")], "named pipe"),
    "pipe as configuration": ([pipe("generation_config.json")], "named pipe"),
    "slow tokenizer alone": ([rename("tokenizer.json", "tokenizer.model")], "slow tokenizer alone .*convert it"),
    "no tokenizer": ([remove("tokenizer.json")], "no tokenizer.json; fetch it too"),
    "tokenizer that is none": ([write("tokenizer.json", "{}")], "tokenizer cannot be used"),
    "tokenizer that cannot encode": (
        [write("tokenizer.json", WITHOUT_UNKNOWN)],
        "cannot be used .*Missing .UNK.",
    ),
    "tokenizer beyond the embedding": ([more_tokens], "<extra1999>.*embedding has .* rows; take the tokenizer"),
    "no end token": ([no_end], "no file names an end token.*set eos_token_id"),
    "end token of no tokenizer": ([edit("generation_config.json", eos_token_id=10**6)], "none of the tokenizer's"),
    "generation not JSON": (
        [write("generation_config.json", '{"eos_token_id": 2,}')],
        "generation_config.json: .*not JSON",
    ),
    "end token a word": ([edit("generation_config.json", eos_token_id="</s>")], "must be a token's number"),
    "penalty a word": ([edit("generation_config.json", repetition_penalty="1.1")], "must be a number"),
    "sampling a number": ([edit("generation_config.json", do_sample=1)], "true or false"),
    "image token of no tokenizer": (
        [edit("config.json", image_token_index=32000)],
        "image token 32000, which the tokenizer",
    ),
    "crop of another size": (
        [
            edit("preprocessor_config.json", size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}),
            edit("processor_config.json", image_processor=None),
        ],
        f"views of 112 x 112 pixels, the vision tower takes {IMAGE} x {IMAGE}",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_before_any_weights_are_loaded(fault: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, words = FAULTS[fault]
    for change in changes:
        change(copy)
    with pytest.raises(ModelError, match=words) as caught:
        check_model(copy)
    assert len(str(caught.value).splitlines()) == 1
    assert str(copy) in str(caught.value)


def test_an_adapter_without_any_configuration_is_told_how_to_be_merged(tmp_path: Path) -> None:
    adapter(tmp_path)
    with pytest.raises(ModelError, match=r"no model; merge it first: .*'org/base'"):
        resolve_model(tmp_path)


@pytest.mark.parametrize("name", ["copy", "it's a $copy"])
@pytest.mark.parametrize("fault", ["pickle", "adapter alone", "adapter beside the weights"])
def test_commands_that_faults_tell_of_can_be_run(
    fault: str, name: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy.rename(tmp_path / name)
    if fault == "pickle":
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    else:
        for change in FAULTS[fault][0]:
            change(path)
    said = CliRunner().invoke(main, ["check", "none", "--model", str(path)]).stderr.splitlines()[-1]
    words = shlex.split(said[said.index("them: cd" if fault == "pickle" else "pip install") :])
    program = words[words.index("-c") + 1]
    compile(program, "", "exec")
    if fault == "pickle":
        monkeypatch.chdir(words[words.index("cd") + 1])
        exec(program, {})
        load_adapter(tmp_path / "converted")


def test_every_fault_is_told_in_a_line_of_its_own_by_every_verb(copy: Path, tmp_path: Path) -> None:
    adapter(copy)
    edit("generation_config.json", eos_token_id="x")(copy)
    for args in (["check", "none", "--model"], ["inspect"], ["compress", "--recipe", "none", "-o", f"{tmp_path}/out"]):
        result = CliRunner().invoke(main, [*args, str(copy)])
        assert result.exit_code == 2
        lines = result.stderr.splitlines()
        assert len(lines) == 2
        assert "adapter" in lines[0]
        assert "eos_token_id" in lines[1]
        assert all(line.startswith(f"error: {copy}") for line in lines)
    with pytest.raises(CheckpointError):
        load_adapter(copy)
    assert not (tmp_path / "out").exists()


def test_check_prints_what_is_there(checkpoint: Path) -> None:
    result = CliRunner().invoke(main, ["check", "none", "--model", str(checkpoint)])
    assert [line.split()[0] for line in result.stdout.splitlines()[1:7]] == [
        "weights",
        "quantised",
        "adapter",
        "tokenizer",
        "template",
        "processor",
    ]
    assert "model.safetensors, " in result.stdout
    assert " MB, F32" in result.stdout


def test_check_says_what_compress_will_say(checkpoint: Path, tmp_path: Path) -> None:
    qwen = write_tiny("qwen2_vl", tmp_path / "qwen")
    clip = ["--frames", "3"]
    out = ["--data", "reference", "-o", str(tmp_path / "out")]
    tried: list[list[str]] = [
        ["check", "learnpruner-encoder", "--model", str(qwen), *clip],
        ["compress", str(qwen), "--recipe", "learnpruner-encoder", *clip, *out],
    ]
    said = [CliRunner().invoke(main, args).stderr.splitlines()[-1] for args in tried]
    assert said[0] == said[1]
    assert "stages.0 to training, which takes single images, and clips of 3 frames are asked for" in said[0]
    question_first = "{{ messages[0]['content'][1]['text'] }}<image>"
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    (other / "chat_template.jinja").write_text(question_first)
    keep = ["--set", "stages.0.keep=4"]
    tried = [
        ["check", "mmtok", *keep, "--model", str(other)],
        ["compress", str(other), "--recipe", "mmtok", *keep, "-o", str(tmp_path / "out")],
    ]
    said = [CliRunner().invoke(main, args).stderr.splitlines()[-1] for args in tried]
    assert said[0] == said[1]
    assert "mmtok reads the question in the text after the image" in said[0]
    result = CliRunner().invoke(
        main, ["check", "learnpruner-encoder", "--set", "stages.0.keep=4", "--model", str(checkpoint)]
    )
    assert "vtc compress needs --data DIR for stages.0.selector.checkpoint" in result.stdout


@pytest.mark.parametrize("part", ["missing", "foreign", "cut off"])
def test_check_looks_at_the_trained_parts_that_a_recipe_names(part: str, checkpoint: Path, tmp_path: Path) -> None:
    file, recipe = tmp_path / "part.safetensors", tmp_path / "mine.yaml"
    recipe.write_text(
        "version: 1\nname: mine\nstages:\n- kind: prune\n  keep: 4\n"
        "  selector: {name: learned, checkpoint: part.safetensors}\n"
    )
    if part == "foreign":
        save_file({"a": torch.ones(2)}, file)
    elif part == "cut off":
        file.write_bytes(b"\x10")
    verbs = [
        ["check", str(recipe), "--model", str(checkpoint)],
        ["compress", str(checkpoint), "--recipe", str(recipe), "-o", str(tmp_path / "out")],
    ]
    results = [CliRunner().invoke(main, arguments) for arguments in verbs]
    assert [result.exit_code for result in results] == [2, 2]
    said = [result.stderr.splitlines()[-1] for result in results]
    assert said[0] == said[1]
    assert "part.safetensors" in said[0]


def test_weights_without_a_place_and_rules_of_generation_are_told(copy: Path) -> None:
    weights(lambda tensors: tensors.update({"draft.weight": torch.zeros(2)}))(copy)
    edit("generation_config.json", repetition_penalty=1.1, suppress_tokens=[5, 6], do_sample=True)(copy)
    told = check_model(copy).contents
    assert told.weights.endswith("; 1 tensors are not used: draft.weight")
    assert told.generation == "repetition_penalty 1.1, suppress_tokens of 2, do_sample, which vtc does not follow"
    assert told.template == "chat_template.jinja"


def test_a_directory_of_configuration_alone_can_be_planned(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert CliRunner().invoke(main, ["inspect", str(copy)]).exit_code == 0


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "a.bin", ".."]
)
def test_an_index_names_files_of_its_own_directory_alone(name: str, copy: Path) -> None:
    shards(copy, name, name)
    for use in (model_digest, check_model):
        with pytest.raises(ModelError, match=r"no \.safetensors file of this directory"):
            use(copy)


def test_weights_may_be_links_as_in_the_stores_of_hubs(copy: Path, tmp_path: Path) -> None:
    shards(copy)
    before = model_digest(copy)
    (tmp_path / "blobs").mkdir()
    for file in [file for file in copy.iterdir() if file.is_file()]:
        blob = file.rename(tmp_path / "blobs" / f"{file.name}-blob")
        file.symlink_to(Path("..") / "blobs" / blob.name)
    assert model_digest(copy) == before
    assert check_model(copy).contents.weights.startswith("2 files")
    load_adapter(copy)


@pytest.mark.parametrize("sharded", [False, True])
def test_digest_covers_every_file_that_is_loaded(sharded: bool, copy: Path) -> None:
    if sharded:
        shards(copy)
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tools.jinja").write_text("x")
    seen = {model_digest(copy)}
    loaded = [file for file in copy.rglob("*") if file.suffix in (".json", ".jinja", ".safetensors")]
    others = {"scores.json", "training_config.json"}  # of the reference model, whose other files these are
    covered = [file for file in loaded if file.name not in others]
    assert len(covered) > 6
    for file in covered:
        with file.open("ab") as stream:
            stream.write(b" ")
        seen.add(model_digest(copy))
    assert len(seen) == len(covered) + 1
    (copy / "README.md").write_text("x")
    assert model_digest(copy) in seen


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    weights[name][1, 2] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight are not all finite"):
        load_adapter(copy)
