"""Prompts: token ids equal to the checkpoint's own processor, and text that streams without seams."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordLevel

from vtc.bundle.facts import ServedImage
from vtc.bundle.manifest import FileEntry, Manifest, load_manifest
from vtc.errors import BundleError, InputError
from vtc.inputs.prompts import render_chat
from vtc.reference import reference_dir
from vtc.runtime.text import Text

KEEP = 5
CORPUS = [
    "What is in the picture? A small red circle.",
    "USER: ASSISTANT: naïve café 東京 😀",
    "How many? Two, maybe 23.",
]
PROMPTS = [
    "USER: <image>\nWhat is in the picture? ASSISTANT:",
    "<s> USER: <image>\nHow many? ASSISTANT:",
    "look <image>here<image> and  there<image>",
    "<image>",
    "no picture, naïve café 東京 😀 — 23",
]


def llama_like(scheme: str) -> Tokenizer:
    """A tokenizer built as Llama's: byte fallback, blanks as words' first letter, `<s>` first."""
    core = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if scheme == "legacy":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", "<image>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken("<image>", normalized=False)])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


@pytest.fixture(scope="module", params=["reference", "first", "always", "legacy"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A processor of transformers' and its directory."""
    transformers = pytest.importorskip("transformers")
    if request.param == "reference":
        return transformers.AutoProcessor.from_pretrained(reference_dir()), reference_dir()
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=llama_like(request.param),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    made = transformers.LlavaProcessor(
        clip.CLIPImageProcessorPil(), tokenizer, patch_size=14, vision_feature_select_strategy="full"
    )
    path = tmp_path_factory.mktemp("processor")
    made.save_pretrained(path)
    return made, path


def served(toy_bundle: Path, image_token_id: int = 3) -> ServedImage:
    """An image that takes one run of KEEP tokens."""
    return replace(load_manifest(toy_bundle).images[0], token_id=image_token_id, keep_per_span=KEEP)


def text_of(path: Path, toy_bundle: Path, pad: int = 0) -> Text:
    """The tokenizer and template of a checkpoint's directory."""
    toy = load_manifest(toy_bundle)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = {name: FileEntry("", 0) for name in names if (path / name).is_file()}
    manifest: Manifest = replace(toy, root=path, files=files, generation=replace(toy.generation, pad_token_id=pad))
    return Text(manifest)


def test_prompts_become_the_token_ids_of_transformers(processor: tuple[Any, Path], toy_bundle: Path) -> None:
    theirs, path = processor
    text = text_of(path, toy_bundle, theirs.tokenizer.pad_token_id)
    image = served(toy_bundle, theirs.image_token_id)
    counts = [prompt.count("<image>") for prompt in PROMPTS]
    wanted = [
        theirs.tokenizer(prompt.replace("<image>", "<image>" * KEEP), add_special_tokens=not prompt.startswith("<s>"))[
            "input_ids"
        ]
        for prompt in PROMPTS
    ]
    assert text.encode(PROMPTS, counts, image) == wanted
    padded = theirs.tokenizer.pad({"input_ids": wanted}, return_tensors="np")
    ours = text.batch(text.encode(PROMPTS, counts, image))
    assert (ours[0] == padded["input_ids"]).all()
    assert (ours[1] == padded["attention_mask"]).all()


def test_token_ids_become_the_text_of_transformers(processor: tuple[Any, Path], toy_bundle: Path) -> None:
    theirs, path = processor
    text = text_of(path, toy_bundle)
    for sentence in (*CORPUS, "what is it ?", " two  blanks "):
        ids = theirs.tokenizer(sentence)["input_ids"]
        assert text.decode(ids) == theirs.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("images", [0, 1, 3])
def test_chat_is_that_of_transformers(toy_bundle: Path, images: int) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoProcessor.from_pretrained(reference_dir())
    content = [{"type": "image"}] * images + [{"type": "text", "text": " How many < 5 & so on? "}]
    wanted = theirs.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert text_of(reference_dir(), toy_bundle).chat(" How many < 5 & so on? ", images, served(toy_bundle)) == wanted


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 299), max_size=30))
def test_streamed_pieces_join_to_the_whole_text(toy_bundle: Path, ids: list[int]) -> None:
    text = text_of(reference_dir(), toy_bundle)
    stream = text.stream()
    pieces = [stream.step(token) for token in ids]
    assert "".join([*pieces, stream.end()]) == text.decode(ids)


def test_incomplete_character_waits(toy_bundle: Path) -> None:
    text = text_of(reference_dir(), toy_bundle)
    ids = text.tokenizer.encode("東", add_special_tokens=False).ids
    assert len(ids) == 3
    stream = text.stream()
    assert [stream.step(token) for token in ids] == ["", "", "東"]


def test_template_runs_in_a_sandbox_and_its_errors_are_a_line() -> None:
    with pytest.raises(BundleError, match="chat template cannot be rendered"):
        render_chat("{{ messages.__class__.__mro__ }}{{ ''.__class__.__subclasses__() }}", "q", 1, {})
    with pytest.raises(BundleError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", "q", 1, {})
    with pytest.raises(BundleError):
        render_chat("{% if %}", "q", 1, {})
    marked = "{% for m in messages %}{% generation %}{{ m.content[1].text | tojson }}{% endgeneration %}{% endfor %}"
    assert render_chat(marked, '<q>"', 1, {}) == json.dumps('<q>"')


def test_bundle_without_a_template_takes_whole_prompts_alone(toy_bundle: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((toy_bundle / name).read_text())
        content.pop("chat_template", None)
        (tmp_path / name).write_text(json.dumps(content))
    text = text_of(tmp_path, toy_bundle)
    with pytest.raises(BundleError, match=r"bundle holds no chat template.*--raw-prompt"):
        text.chat("What?", 2, served(toy_bundle))


def test_template_is_also_found_in_the_tokenizer_config(toy_bundle: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((toy_bundle / name).read_text())
        if name == "tokenizer_config.json":
            content["chat_template"] = [{"name": "default", "template": "T {{ bos_token }}"}]
            content["bos_token"] = {"content": "<s>"}
        (tmp_path / name).write_text(json.dumps(content))
    assert text_of(tmp_path, toy_bundle).chat("q", 1, served(toy_bundle)) == "T <s>"


@pytest.mark.parametrize(
    "templates", [[1], [{}], [{"name": "default"}], [{"name": []}], [{"name": "default", "template": 5}]]
)
def test_templates_of_other_types_are_none(toy_bundle: Path, tmp_path: Path, templates: list[Any]) -> None:
    (tmp_path / "tokenizer.json").write_bytes((toy_bundle / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    with pytest.raises(BundleError, match="holds no chat template"):
        text_of(tmp_path, toy_bundle).chat("q", 1, served(toy_bundle))


def test_prompts_that_are_no_text_are_refused(toy_bundle: Path) -> None:
    text, image = text_of(reference_dir(), toy_bundle), served(toy_bundle)
    for question in (None, 5, b"what?"):
        with pytest.raises(InputError, match="a question is text"):
            text.chat(question, 1, image)
    with pytest.raises(InputError, match="half a character"):
        text.encode(["<image> \udcff"], [1], image)


def test_broken_tokenizer_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be loaded"):
        text_of(tmp_path, toy_bundle)


def test_tokenizer_that_does_not_know_a_letter_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(Tokenizer(WordLevel({"a": 0}, unk_token="<unk>")).to_str())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot encode a prompt .*Missing .UNK. token.*; export"):
        text_of(tmp_path, toy_bundle).encode(["b"], [0], served(toy_bundle))


def test_question_may_name_the_placeholder(toy_bundle: Path) -> None:
    text, image = text_of(reference_dir(), toy_bundle), served(toy_bundle)
    (row,) = text.encode([text.chat("what is <image> ?", 1, image)], [1], image)
    assert row.count(image.token_id) == image.keep_per_span
    with pytest.raises(InputError, match=r"2 <image> placeholder\(s\) for 1"):
        text.encode(["<image> what is <image> ?"], [1], image)


def test_tokenizer_without_the_visual_token_is_refused(toy_bundle: Path) -> None:
    text, served = Text(load_manifest(toy_bundle)), load_manifest(toy_bundle).images[0]
    other = replace(served, token_id=served.token_id + 1)
    with pytest.raises(BundleError, match=f"does not make <image> the token {other.token_id}"):
        text.encode(["<image> red"], [1], other)
    with pytest.raises(InputError, match="prompt holds <image>, which stands for visual tokens"):
        text.encode(["<picture> <image> red"], [1], replace(served, placeholder="<picture>"))
