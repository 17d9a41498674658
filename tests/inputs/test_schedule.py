"""The schedule of a batch of prompts moves every row's tokens as a walk through that row alone does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.inputs.batches import IMAGE, batch
from vtc.errors import InputError
from vtc.inputs.schedule import QueryTokens, SegmentRule, SegmentSchedule, attention_blocks, query_tokens, schedule

QUERIES = ("text_after_image", "all_text", "last_token")
LOST = -(10**6)
"""Value of padding: no token may come from there."""


# Prompts and rules ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Prompts whose images take `spans` runs of `tokens` placeholders, and the rules of a decoder's segments.

    `chosen` holds, for each rule that prunes, which tokens its selector keeps of each span, (spans, keep).
    """

    rows: list[list[int]]
    tokens: int
    spans: int
    rules: list[SegmentRule]
    chosen: list[NDArray[np.int64]]

    def schedule(self, bidirectional: str = "none") -> list[SegmentSchedule]:
        """The schedule of all rows."""
        return schedule(*batch(self.rows), IMAGE, self.tokens, self.rules, self.spans, bidirectional)

    def alone(self, row: int) -> Case:
        """One row and what is chosen of its spans."""
        before = sum(map(self.count, self.rows[:row]))
        chosen = [kept[before : before + self.count(self.rows[row])] for kept in self.chosen]
        return replace(self, rows=[self.rows[row]], chosen=chosen)

    def count(self, row: list[int]) -> int:
        """Spans of a row."""
        return row.count(IMAGE) // self.tokens


@st.composite
def prompts(draw: st.DrawFn, tokens: int, spans: int) -> list[int]:
    """A prompt with text before, between and after its images and their spans; it ends in text."""
    text = st.lists(st.integers(1, 8), max_size=3)
    row: list[int] = []
    for _ in range(draw(st.integers(0, 2)) * spans):
        row += draw(text) + [IMAGE] * tokens
    return row + draw(text) + [1]


@st.composite
def rule_lists(draw: st.DrawFn, tokens: int, kinds: Sequence[str] = ("same", "gather", "prune")) -> list[SegmentRule]:
    """Rules that can follow each other: only gathered text is merged, and only visual tokens that are there pruned."""
    rules: list[SegmentRule] = []
    gathered = False
    for _ in range(draw(st.integers(1, 6))):
        enters: Any = draw(st.sampled_from(("same", "merge") if gathered else kinds))
        if enters == "prune":
            tokens = draw(st.integers(1, tokens))
            rules.append(SegmentRule("prune", tokens, draw(st.sampled_from(QUERIES))))
        else:
            gathered = enters == "gather" or (gathered and enters == "same")
            rules.append(SegmentRule(enters))
    return rules


@st.composite
def cases(draw: st.DrawFn, kinds: Sequence[str] = ("same", "gather", "prune")) -> Case:
    """Batches of one to four prompts, and up to six segments."""
    tokens, spans = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    rows = draw(st.lists(prompts(tokens, spans), min_size=1, max_size=4))
    rules = draw(rule_lists(tokens, kinds))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen, left = [], tokens
    for rule in rules:
        if rule.enters == "prune":
            count = sum(row.count(IMAGE) for row in rows) // tokens
            kept = [sorted(generator.choice(left, rule.keep, replace=False)) for _ in range(count)]
            chosen.append(np.array(kept, dtype=np.int64).reshape(count, rule.keep))
            left = rule.keep
    return Case(rows, tokens, spans, rules, chosen)


# A row by itself -----------------------------------------------------------------------------------------------------


@dataclass
class Token:
    """One token of a row: its place in the prompt, its span, None for text, and how many segments it went through."""

    place: int
    span: int | None
    segments: int = 0


@dataclass
class Walk:
    """What one row comes to, segment by segment.

    Attributes
    ----------
    states : list over segments of list of (int, int)
        Of each token after the segment, its place and how many segments it went through.
    blocks : list over segments of list of int
        Its span, or -1.
    spans, queries : list over cuts of list over spans of list of int
        Places of a span's tokens before the cut, and of the text that ranks them.
    """

    states: list[list[tuple[int, int]]] = field(default_factory=list)
    blocks: list[list[int]] = field(default_factory=list)
    spans: list[list[list[int]]] = field(default_factory=list)
    queries: list[list[list[int]]] = field(default_factory=list)


def walk(case: Case) -> Walk:
    """Take the only row of a case through the segments, token by token."""
    (row,) = case.rows
    visual = [place for place, token in enumerate(row) if token == IMAGE]
    now = [Token(place, visual.index(place) // case.tokens if place in visual else None) for place in range(len(row))]
    chosen = iter(case.chosen)
    walked, whole = Walk(), now
    for rule in case.rules:
        if rule.enters == "gather":
            whole, now = now, [token for token in now if token.span is None]
        elif rule.enters == "merge":
            now = whole
        elif rule.enters == "prune":
            spans = [[token for token in now if token.span == span] for span in range(case.count(row))]
            images = [spans[span - span % case.spans :][: case.spans] for span in range(len(spans))]
            walked.spans.append([[token.place for token in span] for span in spans])
            walked.queries.append([asking(now, image[0][0], image[-1][-1], rule.queries) for image in images])
            kept = [span[number] for span, numbers in zip(spans, next(chosen), strict=True) for number in numbers]
            now = [token for token in now if token.span is None or token in kept]
        for token in now:
            token.segments += 1
        walked.states.append([(token.place, token.segments) for token in now])
        walked.blocks.append([-1 if token.span is None else token.span for token in now])
    return walked


def asking(row: list[Token], first: Token, last: Token, queries: str) -> list[int]:
    """Places of the text that asks about an image."""
    text = [token.place for token in row if token.span is None]
    if queries == "last_token":
        return text[-1:]
    after = [place for place in text if place > last.place]
    return after if queries == "text_after_image" else [place for place in text if place < first.place] + after


# The batch, moved by the schedule ------------------------------------------------------------------------------------


def follow(case: Case) -> list[Walk]:
    """Move an array of the tokens of all rows as the schedule says; what each row comes to."""
    _, mask = batch(case.rows)
    places = np.where(mask == 1, np.cumsum(mask, axis=1) - 1, LOST)
    states = np.stack([places, np.where(mask == 1, 0, LOST)], axis=-1)
    whole, chosen = states, iter(case.chosen)
    walks = [Walk() for _ in case.rows]
    for entry, blocks in zip(case.schedule(), case.schedule("image"), strict=True):
        if entry.enters == "gather":
            whole = states
            states = take(states, *entry.handoff_inputs)
        elif entry.enters == "merge":
            states = take(np.concatenate([whole, states], axis=1), *entry.handoff_inputs)
        elif entry.enters == "prune":
            *queries, layout = entry.handoff_inputs
            asked = QueryTokens(*queries)
            for row, found in enumerate(walks):
                found.spans.append(read(states, asked, row, asked.image_columns, np.ones_like(asked.image_columns)))
                found.queries.append(read(states, asked, row, asked.query_columns, asked.query_mask))
            kept = np.take_along_axis(asked.image_columns, next(chosen), axis=1).ravel()
            assert 0 <= layout.min() <= layout.max() < states.shape[1] + len(kept)
            states = take(states, np.concatenate([np.arange(states.shape[1]), kept])[layout])
        real = entry.attention_mask == 1
        assert states.shape[:2] == real.shape
        assert (np.diff(entry.attention_mask, axis=1) >= 0).all(), "padding stands on the left"
        states = states + np.array([0, 1])
        assert blocks.block_ids is not None
        assert (blocks.block_ids[~real] == -1).all()
        for found, row_states, row_blocks, row_real in zip(walks, states, blocks.block_ids, real, strict=True):
            found.states.append([(int(place), int(count)) for place, count in row_states[row_real]])
            found.blocks.append(row_blocks[row_real].tolist())
    return walks


def take(states: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens (B, S, 2) at indices (B, T)."""
    assert indices.min(initial=0) >= 0
    return np.take_along_axis(states, indices[..., None], axis=1)


def read(
    states: NDArray[np.int64], asked: QueryTokens, row: int, columns: NDArray[np.int64], mask: NDArray[np.int64]
) -> list[list[int]]:
    """Places of the tokens of a row that stand in the columns of each of its spans."""
    spans = np.flatnonzero(asked.image_rows == row)
    return [states[row, columns[span][mask[span] == 1], 0].tolist() for span in spans]


@settings(max_examples=300)
@given(cases())
def test_every_row_of_a_batch_goes_the_way_it_goes_alone(case: Case) -> None:
    expected = [walk(case.alone(row)) for row in range(len(case.rows))]
    has_images = any(IMAGE in row for row in case.rows)
    for found, alone in zip(follow(case), expected, strict=True):
        assert found.states == alone.states
        assert found.blocks == alone.blocks
        assert (found.spans, found.queries) == ((alone.spans, alone.queries) if has_images else ([], []))


@settings(max_examples=100)
@given(cases())
def test_segments_have_the_tokens_of_their_plan(case: Case) -> None:
    """The text, and of each span what the last cut left of it, unless the text was gathered."""
    left, gathered = case.tokens, False
    for rule, entry in zip(case.rules, case.schedule(), strict=True):
        left = rule.keep if rule.enters == "prune" else left
        gathered = rule.enters == "gather" or (gathered and rule.enters == "same")
        visual = [0 if gathered else case.count(row) * left for row in case.rows]
        text = [len(row) - row.count(IMAGE) for row in case.rows]
        assert entry.attention_mask.sum(axis=1).tolist() == [sum(pair) for pair in zip(text, visual, strict=True)]


@settings(max_examples=100)
@given(cases())
def test_a_row_alone_is_scheduled_as_in_a_batch(case: Case) -> None:
    together = case.schedule("image")
    for row in range(len(case.rows)):
        for in_batch, alone in zip(together, case.alone(row).schedule("image"), strict=True):
            length = alone.attention_mask.shape[1]
            assert in_batch.attention_mask[row].sum() == length
            assert in_batch.block_ids is not None
            assert alone.block_ids is not None
            assert in_batch.block_ids[row, in_batch.attention_mask.shape[1] - length :].tolist() == (
                alone.block_ids[0].tolist()
            )


@settings(max_examples=100)
@given(cases(kinds=("prune",)))
def test_cuts_one_after_the_other_are_one_cut(case: Case) -> None:
    chosen = case.chosen[0]
    for later in case.chosen[1:]:
        chosen = np.take_along_axis(chosen, later, axis=1)
    once = replace(case, rules=case.rules[-1:], chosen=[chosen])
    places = [[[place for place, _ in walked.states[-1]] for walked in follow(made)] for made in (case, once)]
    assert places[0] == places[1]
    assert np.array_equal(case.schedule()[-1].attention_mask, once.schedule()[-1].attention_mask)


# Single cases --------------------------------------------------------------------------------------------------------


def test_a_cut_lays_out_what_stays() -> None:
    ids = np.array([[0, 1, IMAGE, IMAGE, IMAGE, 5, IMAGE, IMAGE, IMAGE, 7], [0, 0, 0, 0, 0, 1, IMAGE, IMAGE, IMAGE, 7]])
    (entry,) = schedule(ids, (ids != 0).astype(np.int64), IMAGE, 3, [SegmentRule("prune", 2, "text_after_image")])
    rows, columns, query_columns, query_mask, layout = (part.tolist() for part in entry.handoff_inputs)
    assert rows == [0, 0, 1]
    assert columns == [[2, 3, 4], [6, 7, 8], [6, 7, 8]]
    assert query_columns == [[5, 9], [0, 9], [0, 9]]
    assert query_mask == [[1, 1], [0, 1], [0, 1]]
    # Ten places a row; 10 and 11 are the first image's kept tokens, 12 and 13 the second's, 14 and 15 the third's.
    assert layout == [[1, 10, 11, 5, 12, 13, 9], [0, 0, 0, 5, 14, 15, 9]]
    assert entry.attention_mask.tolist() == [[1] * 7, [0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize(("queries", "columns"), zip(QUERIES, ([[4, 5]], [[0, 4, 5]], [[5]]), strict=True))
def test_query_tokens_are_who_asks(queries: str, columns: list[list[int]]) -> None:
    ids = np.array([[1, IMAGE, IMAGE, IMAGE, 5, 7]])
    assert query_tokens(ids, np.ones_like(ids), IMAGE, 3, queries).query_columns.tolist() == columns


def test_a_whole_prompt_can_be_one_block() -> None:
    ids, mask = batch([[1, IMAGE, IMAGE, 2], [3]])
    assert attention_blocks(ids, mask, IMAGE, 2, "prompt").tolist() == [[0, 0, 0, 0], [-1, -1, -1, 0]]
    answered = np.array([1, 0])
    assert attention_blocks(ids, mask, IMAGE, 2, "prompt", answered).tolist() == [[0, 0, 0, -1], [-1, -1, -1, 0]]
    assert schedule(ids, mask, IMAGE, 2, [SegmentRule("same")])[0].block_ids is None


def test_a_prompt_that_ends_in_an_image_is_refused_where_visual_tokens_leave() -> None:
    ids, mask = batch([[1, 2], [1, IMAGE]])
    assert len(schedule(ids, mask, IMAGE, 1, [SegmentRule("same")])) == 1
    with pytest.raises(InputError, match="must end in text"):
        schedule(ids, mask, IMAGE, 1, [SegmentRule("same"), SegmentRule("gather")])


def test_a_question_that_is_read_must_stand_after_the_image() -> None:
    ids = np.array([[4, IMAGE, IMAGE, 5], [4, 5, IMAGE, IMAGE]])
    for queries in ("all_text", "last_token"):
        query_tokens(ids, np.ones_like(ids), IMAGE, 2, queries)
    with pytest.raises(InputError, match="no text after an image, where the selector reads the question"):
        query_tokens(ids, np.ones_like(ids), IMAGE, 2, "text_after_image")
