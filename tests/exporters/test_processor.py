"""A bundle's tokenizer makes the tokens that the model's own makes, as transformers loads it from all of its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from exporters.processor import write_tokenizer
from tests.models.saved import TOKENIZER, copied, edit, read, write

TOKENS = "tokenizer.json"
PROMPTS = ("<s>user\n<image>How  many 2 dogs' legs <extra>?</s>", "Fünf <pad> <image> \n\nwhat?")


def of_another_class(path: Path) -> None:
    edit(path / TOKENIZER, tokenizer_class="Qwen2Tokenizer")


def with_a_token_beside(path: Path) -> None:
    words = Tokenizer.from_file(str(path / TOKENS)).get_vocab(with_added_tokens=True)
    write(path / "added_tokens.json", {"<extra>": max(words.values()) + 1})


def with_tokens_that_take_blanks(path: Path) -> None:
    token = next(one for one in read(path / TOKENS)["added_tokens"] if one["content"] == "<image>")
    flags = {name: value for name, value in token.items() if name != "id"} | {"lstrip": True, "rstrip": True}
    edit(path / TOKENIZER, added_tokens_decoder={str(token["id"]): flags})


def cut_and_padded(path: Path) -> None:
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padded = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 2, "pad_type_id": 0, "pad_token": "<pad>"}
    write(path / TOKENS, read(path / TOKENS) | {"truncation": cut, "padding": padded | {"pad_to_multiple_of": None}})


CHANGES: list[Callable[[Path], Any]] = [
    of_another_class,
    with_a_token_beside,
    with_tokens_that_take_blanks,
    cut_and_padded,
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_bundles_tokenizer_is_the_one_that_transformers_loads(
    checkpoint: Path, change: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = copied(checkpoint, tmp_path / "model")
    change(path)
    load: Any = AutoTokenizer.from_pretrained
    own = load(path, local_files_only=True)
    write_tokenizer(own, tmp_path / TOKENS)
    written = Tokenizer.from_file(str(tmp_path / TOKENS))
    for prompt in PROMPTS:
        for special in (True, False):
            ids = own(prompt, add_special_tokens=special)["input_ids"]
            assert written.encode(prompt, add_special_tokens=special).ids == ids
        assert written.decode(ids, skip_special_tokens=True) == own.decode(ids, skip_special_tokens=True)
    assert json.loads((tmp_path / TOKENS).read_text())["truncation"] is None
