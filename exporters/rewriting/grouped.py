"""Form `ort` of a decoder segment: attention with the cache in place, on rows that are padded on the right inside."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from exporters.rewriting.attention import Attention
from exporters.rewriting.edit import CONTRIB, Editor, last, permuted, producer, replace, sizes
from exporters.rewriting.masks import not_causal
from exporters.rewriting.padding import last_only, pad_right, roll_mask
from exporters.rewriting.rotary import angles_of, rotate

HEAD_MULTIPLE = 8
"""Numbers that ONNX Runtime's kernel asks the size of a head to be a multiple of."""


def unfit(graph: ir.Graph, found: Sequence[Attention], unknown: Sequence[str]) -> list[str]:
    """Why a segment's attention cannot be ONNX Runtime's over a cache in place, a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    masks = _masks(graph, found)
    for one in found:
        reason = masks[one.mask]
        if not reason and one.softcap:
            reason = "its scores have a soft cap"
        if one.query.dtype == ir.DataType.FLOAT:
            reason = ""  # on a processor, which float32 is for, the operator takes any mask and a soft cap
        if not reason and one.size % HEAD_MULTIPLE:
            reason = f"a head has {one.size} numbers, no multiple of {HEAD_MULTIPLE}"
        reasons.setdefault(reason, []).append(one.layer)
    reasons.setdefault("its nodes are not those of the attention that is known", []).extend(unknown)
    told = [f"{layers(which)} stays portable: {reason}" for reason, which in reasons.items() if reason and which]
    rest = reasons.get("", [])
    if told and rest:
        told.append(f"{layers(rest)} stays portable: the layers of a graph share one layout of padding")
    if not told and graph.outputs[0].name == "logits" and last_only(graph) is None:
        told.append("attention of all layers stays portable: where the last token is taken is not found")
    return told


def _masks(graph: ir.Graph, found: Sequence[Attention]) -> dict[ir.Value, str]:
    """Of each mask, which layers share, why it is not that of causal attention; empty if it is."""
    return {mask: not_causal(graph, mask) for mask in dict.fromkeys(one.mask for one in found)}


def layers(numbers: Sequence[str]) -> str:
    """Layers for people."""
    return f"attention of layer{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def group_queries(graph: ir.Graph, found: Sequence[Attention]) -> None:
    """Replace the attention of all layers by GroupQueryAttention."""
    causal = {mask: not reason for mask, reason in _masks(graph, found).items()}
    lengths = pad_right(graph)
    masks: dict[ir.Value, ir.Value] = {}
    for one in found:
        final = one.output.producer()
        if final is None:
            raise AssertionError("an output is computed")
        editor = Editor(graph, final)
        query, key = (laid_out(editor, value) for value in (one.query, one.key))
        more: tuple[ir.Value | None, ...] = ()
        if not causal[one.mask]:
            if one.mask not in masks:
                masks[one.mask] = roll_mask(editor, one.mask, lengths)
            more = (None, None, None, masks[one.mask])
        output, *present = editor.add_all(
            "GroupQueryAttention",
            *(query, key, laid_out(editor, one.value)),
            *one.past,
            lengths.last,
            lengths.total,
            *more,
            likes=[one.output, *one.present],
            domain=CONTRIB,
            num_heads=one.heads,
            kv_num_heads=one.kv_heads,
            scale=one.scale,
            softcap=one.softcap,
            causal=int(causal[one.mask]),
            do_rotary=0,
        )
        replace(graph, {one.output: output} | dict(zip(one.present, present, strict=True)))


def laid_out(editor: Editor, value: ir.Value) -> ir.Value:
    """Heads (B, H, S, D) laid end to end for each token, (B, S, H * D); rotations move after it."""
    turn = value.producer()
    if turn is not None and turn.op_type == "RotaryEmbedding" and turn.inputs[0] is not None:
        heads = sizes(value)[1]
        inner = laid_out(editor, turn.inputs[0])
        return rotate(editor, inner, angles_of(turn), heads if isinstance(heads, int) else None)
    apart = permuted(value, 0, 2, 1, 3)
    batch, heads, length, size = sizes(value)
    if not isinstance(heads, int) or not isinstance(size, int):
        raise AssertionError("sizes of heads are constants")
    shape = (batch, length, heads * size)
    if apart is None:
        apart = editor.add("Transpose", value, perm=(0, 2, 1, 3), shape=(batch, length, heads, size), dtype=value.dtype)
    split = producer(apart, "Reshape")
    whole = None if split is None else split.inputs[0]
    if whole is not None and len(sizes(whole)) == 3 and last(whole) == heads * size:
        return whole
    return editor.add("Reshape", apart, editor.constant([0, 0, heads * size]), shape=shape, dtype=value.dtype)
