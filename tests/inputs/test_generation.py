"""Generation settings do to logits what the logits processors of transformers do, and what is not served is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from vtc.errors import ModelError, NumericError
from vtc.inputs.generation import REFUSED, SAMPLING, GenerationRules, RuledLogits, check_finite, rules_of

WORDS, ENDS, NEW = 12, (2, 5), 9
SETTINGS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.3},
    "repetition is liked": {"repetition_penalty": 0.7},
    "n-grams": {"no_repeat_ngram_size": 2},
    "no token twice": {"no_repeat_ngram_size": 1},
    "n-grams longer than the prompt": {"no_repeat_ngram_size": 6},
    "least": {"min_new_tokens": 4},
    "bad words": {"bad_words_ids": [[3], [7, 8], [9, 10, 11, 4, 6, 7, 8], [2]]},
    "forced end": {"forced_eos_token_id": 5},
    "forced ends": {"forced_eos_token_id": [5, 2]},
    "suppressed": {"suppress_tokens": [4, 6, 700]},
    "suppressed at first": {"begin_suppress_tokens": [8, 9]},
    "together": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[1, 3]],
        "min_new_tokens": 3,
        "forced_eos_token_id": 2,
        "suppress_tokens": [10],
        "begin_suppress_tokens": [1],
    },
}


def rows_and_logits(seed: int) -> tuple[list[list[int]], np.ndarray[Any, Any]]:
    """Prompts of different length, the tokens that follow, and logits before each of those."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, WORDS, length).tolist() for length in (3, 5)]
    return prompts, random.normal(size=(NEW, 2, WORDS)).astype(np.float32) * 3


def processors(settings: dict[str, Any], prompt: Sequence[int]) -> Any:
    """What transformers applies to the logits of a prompt on its own."""
    tiny: Any = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **tiny))
    config: Any = GenerationConfig(eos_token_id=list(ENDS), **settings)  # type: ignore[no-untyped-call]
    config.max_length = len(prompt) + NEW
    model._prepare_special_tokens(config)
    mask = {"attention_mask": torch.ones(1, len(prompt))}
    ids = torch.tensor([prompt])
    return model._get_logits_processor(config, len(prompt), ids, logits_processor=[], model_kwargs=mask)


@pytest.mark.parametrize("name", SETTINGS)
def test_rules_are_those_of_transformers(name: str) -> None:
    prompts, logits = rows_and_logits(len(name))
    rules = rules_of(SETTINGS[name])
    ids, mask = np.full((2, 5), 11), np.zeros((2, 5), dtype=np.int64)
    for number, prompt in enumerate(prompts):
        ids[number, 5 - len(prompt) :], mask[number, 5 - len(prompt) :] = prompt, 1
    ruled = RuledLogits(rules, ENDS, ids, mask, NEW)
    theirs = [processors(SETTINGS[name], prompt) for prompt in prompts]
    rows = [list(prompt) for prompt in prompts]
    changed = False
    for step in logits:
        found = ruled(step)
        for number, row in enumerate(rows):
            expected = theirs[number](torch.tensor([row]), torch.from_numpy(step[[number]].copy()))[0].numpy()
            np.testing.assert_array_equal(found[number], expected)
        changed = changed or not np.array_equal(found, step)
        best = found.argmax(axis=-1)
        ruled.took(best)
        for row, token in zip(rows, best.tolist(), strict=True):
            row.append(token)
    assert changed == (name != "n-grams longer than the prompt")


def test_no_rules_leave_logits_as_they_are() -> None:
    _, logits = rows_and_logits(0)
    rules = rules_of({"repetition_penalty": 1.0, "do_sample": True, "temperature": 0.5, "eos_token_id": 2})
    ruled = RuledLogits(rules, ENDS, np.zeros((2, 1), dtype=np.int64), np.ones((2, 1), dtype=np.int64), NEW)
    step = logits[0]
    assert ruled(step) is step


@pytest.mark.parametrize(
    "settings", [{"min_new_tokens": 1}, {"begin_suppress_tokens": [1]}, {"bad_words_ids": [[3, 4]]}]
)
def test_rules_that_no_longer_bear_leave_logits_as_they_are(settings: dict[str, Any]) -> None:
    _, logits = rows_and_logits(0)
    ids = np.array([[3], [3]], dtype=np.int64)
    ruled = RuledLogits(rules_of(settings), ENDS, ids, np.ones_like(ids), NEW)
    given = logits[0].copy()
    first = ruled(given)
    assert np.isneginf(first).any()
    np.testing.assert_array_equal(given, logits[0])  # what was given is not written to
    ruled.took(np.array([6, 7]))
    assert ruled(given) is given


def test_rules_of_long_answers_are_those_of_every_step_afresh() -> None:
    """What is kept up from token to token against what a prompt that is as long has from the start."""
    rules = rules_of({"repetition_penalty": 1.2, "no_repeat_ngram_size": 3})
    random = np.random.default_rng(0)
    prompt = random.integers(0, WORDS + 4, (1, 6))  # tokens beyond the logits too
    grown = RuledLogits(rules, ENDS, prompt, np.ones_like(prompt), 99)
    for _ in range(60):
        logits = random.normal(size=(1, WORDS)).astype(np.float32)
        afresh = RuledLogits(rules, ENDS, prompt, np.ones_like(prompt), 99)
        np.testing.assert_array_equal(grown(logits), afresh(logits))
        token = random.integers(0, WORDS, 1)
        grown.took(token)
        prompt = np.concatenate([prompt, token[None]], axis=1)


def test_a_sampling_default_is_told_and_not_used() -> None:
    rules = rules_of({"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8})
    assert not rules.touch_logits
    assert "(temperature 0.7, top_k 20, top_p 0.8)" in rules.told
    assert rules_of({"do_sample": False, "temperature": 0.7}).told == ""


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_is_not_served_is_refused_by_its_name(name: str) -> None:
    rules_of({name: None})
    with pytest.raises(ModelError, match=rf"^generation_config\.json: {name} \[7\] is not served: "):
        rules_of({name: [7]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 0}, "must be a number above 0, from 0.001 to 1000, not 0"),
        ({"repetition_penalty": float("nan")}, "must be a number above 0, from 0.001 to 1000, not nan"),
        ({"repetition_penalty": "1.1"}, "must be a number above 0, from 0.001 to 1000, not '1.1'"),
        ({"no_repeat_ngram_size": -1}, "must be a whole number, 0 or more, not -1"),
        ({"min_new_tokens": True}, "must be a whole number, 0 or more, not True"),
        ({"suppress_tokens": [1, -1]}, "must be a token id or a list of them"),
        ({"bad_words_ids": [[]]}, "must be a list of lists of token ids"),
        ({"bad_words_ids": [3]}, "must be a list of lists of token ids"),
        ({"suppress_tokens": list(range(-1, 10**5))}, r"not \[-1, 0, 1, .*…"),
    ],
)
def test_a_setting_of_another_type_is_refused_in_one_short_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        rules_of(settings)
    assert len(str(refused.value)) < 160


def test_every_setting_of_transformers_is_honoured_refused_or_known_to_change_nothing() -> None:
    """A setting that a later transformers adds must be looked at."""
    unchanged = {
        *("max_length", "max_new_tokens"),  # stated by every caller
        *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),  # read elsewhere, or for encoders
        *("early_stopping", "length_penalty", "diversity_penalty", "low_memory"),  # of beams alone
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),  # memory
        *("compile_config", "disable_compile", "continuous_batching_config"),  # speed
        *("use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),  # drafts, then checked
        *("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
        *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
        *("speculation_type",),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        *("renormalize_logits", "remove_invalid_values"),  # the best token stays; what is no number is an error
        "forced_bos_token_id",  # only of a sequence that has one token so far
        *("do_sample", *SAMPLING),
        *("transformers_version", "_from_model_config"),
    }
    config: Any = GenerationConfig()  # type: ignore[no-untyped-call]
    known = {field.name.replace("token_ids", "token_id") for field in fields(GenerationRules)} | set(REFUSED)
    every = {name for name in vars(config) if not name.startswith("_") and "hash" not in name}
    assert every - known - unchanged == set()


@pytest.mark.parametrize(
    "change",
    [
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e30},
        {"no_repeat_ngram_size": -2},
        {"min_new_tokens": 2**40},
        {"bad_words_ids": ((),)},
        {"bad_words_ids": ((1, -1),)},
        {"suppress_tokens": (-1,)},
        {"begin_suppress_tokens": (2**40,)},
        {"forced_eos_token_ids": (-1,)},
    ],
)
def test_rules_of_a_manifest_must_make_sense(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GenerationRules(**asdict(GenerationRules()) | change)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float) -> None:
    with pytest.raises(NumericError, match="not numbers"):
        check_finite(np.array([1.0, value]))
