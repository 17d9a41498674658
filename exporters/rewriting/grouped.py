"""Form `ort` of a decoder segment: attention with the cache in place, on rows that are padded on the right inside."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from exporters.rewriting.attention import Attention
from exporters.rewriting.edit import CONTRIB, Editor, last, permuted, producer, replace, sizes
from exporters.rewriting.masks import not_causal
from exporters.rewriting.padding import last_only, pad_right, roll_mask
from exporters.rewriting.rotary import Angles, PackedAngles, angles_of, packed_angles, rotate, rotate_packed

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
    packed: dict[Angles, PackedAngles] = {}
    for one in found:
        final = one.output.producer()
        if final is None:
            raise AssertionError("an output is computed")
        editor = Editor(graph, final)
        together = _packed(one)
        if together is None:
            heads: Sequence[ir.Value | None] = [laid_out(editor, value) for value in (one.query, one.key, one.value)]
        else:
            whole, angles = together
            if angles not in packed:
                packed[angles] = packed_angles(editor, angles, one.heads + one.kv_heads, one.heads + 2 * one.kv_heads)
            heads = rotate_packed(editor, whole, packed[angles]), None, None
        more: tuple[ir.Value | None, ...] = ()
        if not causal[one.mask]:
            if one.mask not in masks:
                masks[one.mask] = roll_mask(editor, one.mask, lengths)
            more = (None, None, None, masks[one.mask])
        output, *present = editor.add_all(
            "GroupQueryAttention",
            *heads,
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
    heads = _heads(value)
    turn = _rotation(value)
    if turn is not None and turn.inputs[0] is not None:
        return rotate(editor, laid_out(editor, turn.inputs[0]), angles_of(turn), heads)
    whole = _whole(value)
    if whole is not None:
        return whole
    apart = permuted(value, 0, 2, 1, 3)
    batch, _, length, size = sizes(value)
    if not isinstance(size, int):
        raise AssertionError("sizes of heads are constants")
    if apart is None:
        apart = editor.add("Transpose", value, perm=(0, 2, 1, 3), shape=(batch, length, heads, size), dtype=value.dtype)
    shape = (batch, length, heads * size)
    return editor.add("Reshape", apart, editor.constant([0, 0, heads * size]), shape=shape, dtype=value.dtype)


def _heads(value: ir.Value) -> int:
    heads = sizes(value)[1]
    if not isinstance(heads, int):
        raise AssertionError("sizes of heads are constants")
    return heads


def _rotation(value: ir.Value) -> ir.Node | None:
    """The rotation that gives a value."""
    node = value.producer()
    return node if node is not None and node.op_type == "RotaryEmbedding" else None


def _whole(value: ir.Value) -> ir.Value | None:
    """What heads (B, H, S, D) were parted from, (B, S, H * D)."""
    split = producer(permuted(value, 0, 2, 1, 3), "Reshape")
    whole = None if split is None else split.inputs[0]
    size = last(value)
    if whole is None or size is None or len(sizes(whole)) != 3 or last(whole) != _heads(value) * size:
        return None
    return whole


def _packed(one: Attention) -> tuple[ir.Value, Angles] | None:
    """Queries, keys and values in one value (B, S, (H + 2 * Hkv) * D), and the angles of the first two.

    Products that were joined give it. Taken as it is, it is turned by one node instead of three, which is a percent or
    two of a step in 4 bits. On a processor: elsewhere nobody has measured it.
    """
    turns = [_rotation(value) for value in (one.query, one.key)]
    inner = [None if turn is None else turn.inputs[0] for turn in turns]
    parts = [None if value is None else _whole(value) for value in (*inner, one.value)]
    split = producer(parts[0], "Split")
    whole = None if split is None else split.inputs[0]
    if split is None or whole is None or turns[0] is None or turns[1] is None or one.query.dtype != ir.DataType.FLOAT:
        return None
    angles = angles_of(turns[0])
    same = parts == list(split.outputs) and angles == angles_of(turns[1])
    return (whole, angles) if same and split.attributes.get_int("axis", 0) == -1 else None
