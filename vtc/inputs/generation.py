"""Generation settings of a checkpoint: what they do to the logits of a greedy answer.

A checkpoint's ``generation_config.json`` is part of the model: with its repetition penalty left out, an answer is not
the one that the model's own ``generate()`` gives. The rules are those of `transformers` (its `LogitsProcessor` classes,
in the order in which it applies them), in numpy, which the PyTorch model and the torch-free runtime share.

A row of a batch is judged by its own tokens: the prompt, each of its visual tokens included, and the answer so far, but
never padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.errors import ModelError, NumericError
from vtc.shown import shown

SHOWN = 40
"""Letters of a wrong value that an error shows."""

FILE = "generation_config.json"

PENALTY = "a number above 0, from 0.001 to 1000"

Logits = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class GenerationRules:
    """What a checkpoint asks of answers; names and meanings are those of `transformers`' `GenerationConfig`.

    Attributes
    ----------
    repetition_penalty : float
        Logits of tokens that are in the prompt or the answer are divided by it, negative ones multiplied. Placeholders
        of visual tokens are tokens of the prompt.
    no_repeat_ngram_size : int
        No run of so many tokens comes twice, in prompt and answer taken together; 0 allows all.
    min_new_tokens : int
        Tokens of an answer before it may end.
    bad_words_ids : tuple of tuple of int
        Runs of tokens that an answer does not complete.
    forced_eos_token_ids : tuple of int
        Tokens of which the last one that is asked for must be one.
    suppress_tokens, begin_suppress_tokens : tuple of int
        Tokens that an answer never has, or does not begin with.
    sampling : dict of str to float
        How the checkpoint would draw its answers, where it says that they are drawn. vtc tells of it, and is greedy.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_eos_token_ids: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    sampling: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if not _is_penalty(self.repetition_penalty):
            raise ValueError(f"repetition_penalty must be {PENALTY}, not {self.repetition_penalty}")
        for name in ("no_repeat_ngram_size", "min_new_tokens"):
            if not _is_id(getattr(self, name)):
                raise ValueError(f"{name} must be 0 to {2**31 - 1}, not {getattr(self, name)}")
        for name in ("forced_eos_token_ids", "suppress_tokens", "begin_suppress_tokens"):
            if not all(map(_is_id, getattr(self, name))):
                raise ValueError(f"{name} must be token ids")
        if not all(run and all(map(_is_id, run)) for run in self.bad_words_ids):
            raise ValueError("bad_words_ids must be runs of token ids, none of them empty")

    @property
    def touch_logits(self) -> bool:
        """Whether they change a greedy answer at all."""
        return any(
            getattr(self, name) != default for name, default in vars(GenerationRules()).items() if name != "sampling"
        )

    @property
    def words(self) -> list[str]:
        """Each rule that is none by default, in a few words."""
        own = {name: value for name, value in vars(self).items() if value != getattr(GenerationRules(), name)}
        sampling = own.pop("sampling", None)
        found = [f"{name} {f'of {len(value)}' if isinstance(value, tuple) else value}" for name, value in own.items()]
        return found if sampling is None else [*found, "do_sample, which vtc does not follow"]

    @property
    def told(self) -> str:
        """What a user should know, in a line; empty where there is nothing."""
        if self.sampling is None:
            return ""
        values = ", ".join(f"{name} {value:g}" for name, value in self.sampling.items())
        return (
            f"the checkpoint's {FILE} draws answers at random{f' ({values})' if values else ''}; vtc takes the best "
            "token each time, which is the same every time (a bundle draws if --temperature is given)"
        )


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")
"""Settings that count only where ``do_sample`` is true."""


def _off(*values: object) -> Callable[[object], bool]:
    return lambda value: value is None or any(type(value) is type(off) and value == off for off in values)


REFUSED: dict[str, tuple[Callable[[object], bool], str]] = {
    "num_beams": (_off(1), "vtc follows one answer; set it to 1"),
    "num_beam_groups": (_off(0, 1), "vtc follows one answer; set it to 1"),
    "num_return_sequences": (_off(1), "vtc gives one answer; set it to 1"),
    "min_length": (_off(0), "it counts visual tokens, of which a compressed model has fewer; set min_new_tokens"),
    "penalty_alpha": (_off(0, 0.0), "vtc has no contrastive search; remove it"),
    "dola_layers": (_off(), "vtc does not contrast layers; remove it"),
    "guidance_scale": (_off(1, 1.0), "vtc has no classifier-free guidance; remove it"),
    "constraints": (_off(), "vtc has no constrained search; remove it"),
    "force_words_ids": (_off(), "vtc has no constrained search; remove it"),
    "sequence_bias": (_off(), "vtc does not have it; remove it, or say it with bad_words_ids or suppress_tokens"),
    "encoder_repetition_penalty": (_off(1, 1.0), "vtc does not have it; remove it, or set repetition_penalty"),
    "encoder_no_repeat_ngram_size": (_off(0), "vtc does not have it; remove it, or set no_repeat_ngram_size"),
    "exponential_decay_length_penalty": (_off(), "vtc does not have it; remove it"),
    "watermarking_config": (_off(), "vtc writes no watermark; remove it"),
    "stop_strings": (_off("", []), "vtc ends answers at token ids alone; list the token in eos_token_id"),
    "token_healing": (_off(False), "vtc does not have it; remove it"),
    "max_time": (_off(), "vtc ends no answer by the clock; remove it"),
}
"""Settings that would change an answer and are not honoured: whether a value leaves it alone, and what to do.

What is neither here nor in :class:`GenerationRules` changes nothing about a greedy answer of the length asked for: how
fast it comes, what else is given out, and lengths that every caller states.
"""


def rules_of(settings: Mapping[str, Any], source: str = FILE) -> GenerationRules:
    """Read a checkpoint's generation settings.

    Parameters
    ----------
    settings : mapping
        As in ``generation_config.json``, defaults filled in or not.
    source : str
        What to call it in an error.

    Raises
    ------
    ModelError
        If a setting is none, or would change answers in a way that vtc does not have.
    """
    for name, (is_off, remedy) in REFUSED.items():
        if not is_off(settings.get(name)):
            raise ModelError(f"{source}: {name} {shown(repr(settings[name]), SHOWN)} is not served: {remedy}")
    read = _Reader(settings, source)
    drawn = settings.get("do_sample") is True
    sampling = {name: float(settings[name]) for name in SAMPLING if _is_number(settings.get(name))}
    return GenerationRules(
        repetition_penalty=read.penalty("repetition_penalty"),
        no_repeat_ngram_size=read.count("no_repeat_ngram_size"),
        min_new_tokens=read.count("min_new_tokens"),
        bad_words_ids=read.runs("bad_words_ids"),
        forced_eos_token_ids=read.tokens("forced_eos_token_id"),
        suppress_tokens=read.tokens("suppress_tokens"),
        begin_suppress_tokens=read.tokens("begin_suppress_tokens"),
        sampling=sampling if drawn else None,
    )


def check_rules(rules: GenerationRules, vocabulary: int, source: str = FILE) -> None:
    """Refuse rules that leave no token to take.

    Parameters
    ----------
    rules : GenerationRules
    vocabulary : int
        Tokens that there are.
    source : str
        What to call them in an error.

    Raises
    ------
    ModelError
    """
    forced = rules.forced_eos_token_ids
    if not (forced or rules.suppress_tokens or rules.begin_suppress_tokens):
        return
    if forced and min(forced) >= vocabulary:
        raise ModelError(f"{source}: forced_eos_token_id {forced[0]} is none of the model's {vocabulary} tokens")
    for name, tokens in (("suppress_tokens", ()), ("begin_suppress_tokens", rules.begin_suppress_tokens)):
        left = set(range(vocabulary)).difference(rules.suppress_tokens, tokens)
        if not left or (forced and not left & set(forced)):
            raise ModelError(f"{source}: {name} leaves no token to take; remove some")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_penalty(value: Any) -> bool:
    return _is_number(value) and 1e-3 <= value <= 1e3  # beyond it, logits become 0 or infinite


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


@dataclass(frozen=True)
class _Reader:
    settings: Mapping[str, Any]
    source: str

    def _checked(self, name: str, default: Any, is_right: Callable[[Any], bool], kind: str) -> Any:
        value = self.settings.get(name)
        if value is None:
            return default
        if not is_right(value):
            raise ModelError(f"{self.source}: {name} must be {kind}, not {shown(repr(value), SHOWN)}")
        return value

    def penalty(self, name: str) -> float:
        return float(self._checked(name, 1.0, _is_penalty, PENALTY))

    def count(self, name: str) -> int:
        return int(self._checked(name, 0, _is_id, "a whole number, 0 or more"))

    def tokens(self, name: str) -> tuple[int, ...]:
        def is_right(value: object) -> bool:
            return _is_id(value) or (isinstance(value, list) and all(map(_is_id, value)))

        value = self._checked(name, [], is_right, "a token id or a list of them")
        return tuple(value) if isinstance(value, list) else (value,)

    def runs(self, name: str) -> tuple[tuple[int, ...], ...]:
        def is_right(value: object) -> bool:
            return isinstance(value, list) and all(
                isinstance(run, list) and run and all(map(_is_id, run)) for run in value
            )

        return tuple(map(tuple, self._checked(name, [], is_right, "a list of lists of token ids")))


class RuledLogits:
    """Applies rules to the logits of a batch of answers as they grow.

    Parameters
    ----------
    rules : GenerationRules
    ends : collection of int
        Tokens that end an answer.
    input_ids, attention_mask : arrays of shape (B, S)
        The prompts, as the model is given them, padded or not.
    max_new_tokens : int
        Tokens that are asked for.

    Attributes
    ----------
    new : int
        Tokens of each answer so far.
    """

    def __init__(
        self,
        rules: GenerationRules,
        ends: Collection[int],
        input_ids: IntArray,
        attention_mask: IntArray,
        max_new_tokens: int,
    ) -> None:
        self._rules, self._ends, self._most = rules, sorted(ends), max_new_tokens
        self._ruling = rules.touch_logits
        alone = {(end,) for end in ends}
        self._bad_words = [run for run in rules.bad_words_ids if run not in alone]
        self._rows = [_Row(rules) for _ in input_ids]
        self.new = 0
        if self._ruling:
            for row, ids, mask in zip(self._rows, input_ids, attention_mask, strict=True):
                row.extend(ids[mask == 1].tolist())

    def __call__(self, logits: Logits) -> Logits:
        """Logits (B, V), of which the largest of each row is the token to take; those given where no rule bears."""
        if not self._ruling:
            return logits
        rules = self._rules
        if rules.forced_eos_token_ids and self.new == self._most - 1:
            ruled = np.full(logits.shape, -np.inf, dtype=np.float32)
            for scores in ruled:
                _set(scores, rules.forced_eos_token_ids, 0)
                _set(scores, self._never())
            return ruled
        barred = [[*self._barred(row), *self._never()] for row in self._rows]
        if rules.repetition_penalty == 1.0 and not any(barred):
            return logits
        ruled = np.array(logits, dtype=np.float32)
        for scores, row, tokens in zip(ruled, self._rows, barred, strict=True):
            if rules.repetition_penalty != 1.0:
                row.penalise(scores)
            _set(scores, tokens)
        return ruled

    def took(self, tokens: IntArray) -> None:
        """Take note of the tokens (B,) that the rows go on with."""
        self.new += 1
        if self._ruling:
            for row, token in zip(self._rows, tokens.tolist(), strict=True):
                row.extend([token])

    def _barred(self, row: _Row) -> list[int]:
        """Tokens that a row may not go on with."""
        found = list(row.repeating())
        found += [run[-1] for run in self._bad_words if _completes(row.tokens, run)]
        return found + self._ends if self.new < self._rules.min_new_tokens else found

    def _never(self) -> tuple[int, ...]:
        """Tokens that no row may go on with, at its end neither."""
        first = self._rules.begin_suppress_tokens if self.new == 0 else ()
        return self._rules.suppress_tokens + first


class _Row:
    """Tokens of a prompt and its answer so far, and what rules ask of them, kept up with each token."""

    def __init__(self, rules: GenerationRules) -> None:
        self.tokens: list[int] = []
        self._penalty, self._size = rules.repetition_penalty, rules.no_repeat_ngram_size
        self._met: set[int] = set()
        self._seen = np.zeros(0, dtype=np.int64)
        self._follow: dict[tuple[int, ...], set[int]] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        first = len(self.tokens)
        self.tokens.extend(tokens)
        if self._penalty != 1.0 and (fresh := set(tokens) - self._met):
            self._met |= fresh
            self._seen = np.append(self._seen, sorted(fresh))
        if self._size:
            for last in range(max(first, self._size - 1), len(self.tokens)):
                start = tuple(self.tokens[last - self._size + 1 : last])
                self._follow.setdefault(start, set()).add(self.tokens[last])

    def penalise(self, scores: Logits) -> None:
        """Apply the repetition penalty to logits (V,) in place."""
        seen = self._seen[self._seen < len(scores)]  # an embedding may have more rows than there are logits
        found = scores[seen]
        scores[seen] = np.where(found < 0, found * self._penalty, found / self._penalty)

    def repeating(self) -> Collection[int]:
        """Tokens that would make a run of the n-gram's size that the row has already."""
        if not self._size or len(self.tokens) < self._size - 1:
            return ()
        return self._follow.get(tuple(self.tokens[len(self.tokens) - self._size + 1 :]), ())


def ruled_along(rules: GenerationRules, prompt: Sequence[int], answer: Sequence[int], logits: Logits) -> Logits:
    """Logits (T, V) before each of an answer's T tokens, as the rules have them; but for what is forced at its end.

    Parameters
    ----------
    rules : GenerationRules
    prompt, answer : sequence of int
        Token ids, those of the answer with the token that ends it.
    logits : array of shape (T, V)
    """
    ids = np.asarray([prompt], dtype=np.int64)
    ruled = RuledLogits(rules, answer[-1:], ids, np.ones_like(ids), len(answer) + 1)
    found = []
    for step, token in zip(logits, answer, strict=True):
        found.append(ruled(step[None])[0])
        ruled.took(np.asarray([token]))
    return np.stack(found)


def _set(scores: Logits, tokens: Collection[int], value: float = -np.inf) -> None:
    if tokens:
        scores[[token for token in tokens if 0 <= token < len(scores)]] = value


def _completes(row: Sequence[int], run: Sequence[int]) -> bool:
    before = list(run[:-1])
    return not before or (len(before) <= len(row) and row[-len(before) :] == before)


def check_finite(values: NDArray[np.floating[Any]], what: str = "the model's logits") -> None:
    """Make sure that values are numbers; of a row, its largest is enough: it is none where another is none.

    Raises
    ------
    NumericError
        If one is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise NumericError(
            f"{what} are not numbers (NaN or infinity): its weights are damaged, or its values too large for the "
            "precision; fetch the checkpoint again, or export with --precision bf16 or fp32"
        )
