"""What a bundle's graphs take and give, as its manifest has it: a graph in the place of another is refused.

Names and sizes are checked that the runtime goes by. What graphs of other makers call their hidden states is left open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vtc.bundle.facts import SegmentFacts, SelectorFacts, ServedImage
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError

Shapes = Mapping[str, Sequence[int | str | None]]
"""Names of tensors in order, with their sizes; a size that is not constant is a name or None."""
_HANDED = {"gather": (2, 2), "merge": (3, 3), "prune": (8, 9)}
"""Fewest and most inputs of a graph between segments, besides `padding`, which one that prunes may take."""


def check_interface(manifest: Manifest, graph: str, inputs: Shapes, outputs: Shapes) -> None:
    """Make sure that a graph is what the manifest says of it.

    Parameters
    ----------
    manifest : Manifest
    graph : str
        Its name in the manifest.
    inputs, outputs : Shapes

    Raises
    ------
    BundleError
        If it takes or gives something else.
    """
    check = _Check(manifest, graph, inputs, outputs)
    segment = next((one for one in manifest.segments if graph in one.graphs), None)
    if graph == "embed_tokens":
        check.takes({"input_ids"})
        check.require(len(outputs) == 1, "gives one output")
        found = next(iter(outputs.values()))[-1:]
        width = manifest.generation.width
        check.require(not found or not isinstance(found[0], int) or found[0] >= width, f"gives {width} values a token")
    elif segment is not None:
        _check_segment(check, segment)
    for served in manifest.images:
        if graph in served.graphs:
            _check_vision(check, served)
        for number, one in enumerate(manifest.segments):
            selector = one.selector
            if selector and graph == selector.graph + (served.suffix if selector.kind == "prune" else ""):
                _check_selector(check, selector, served.segment_tokens_per_span[number])


class _Check:
    """Words for what is wrong with a graph."""

    def __init__(self, manifest: Manifest, graph: str, inputs: Shapes, outputs: Shapes) -> None:
        self.manifest, self.graph, self.inputs, self.outputs = manifest, graph, inputs, outputs

    def require(self, holds: bool, what: str) -> None:
        """Refuse the graph if it is not so."""
        if not holds:
            raise BundleError(
                f"{self.manifest.root}: graph '{self.graph}' is not the one that the manifest describes, which {what}; "
                "export it again"
            )

    def takes(self, names: set[str], more: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Its inputs are these, and perhaps all of those."""
        found = set(self.inputs)
        self.require(found in (names, names | more), f"takes {', '.join(sorted(names))}")

    def gives(self, names: set[str]) -> None:
        """These are among its outputs."""
        self.require(names <= set(self.outputs), f"gives {', '.join(sorted(names))}")

    def sized(self, shapes: Shapes, name: str, axis: int, size: int) -> None:
        """A tensor has a size; one that is not constant, or of unknown rank, is left to the run."""
        shape = shapes[name]
        if not shape:
            return
        found = shape[axis] if -len(shape) <= axis < len(shape) else None
        self.require(
            not isinstance(found, int) or found == size, f"has {name} of size {size} on axis {axis}, not {found}"
        )


def _check_vision(check: _Check, served: ServedImage) -> None:
    first, last = served.graphs[0], served.graphs[-1]
    question = {"text_embeds", "text_mask"}
    if check.graph == first:
        check.takes({"pixel_values"}, question if first == last else set())
        for axis, size in enumerate(served.pixels.shape, start=-len(served.pixels.shape)):
            check.sized(check.inputs, "pixel_values", axis, size)
    if check.graph == last:
        check.require(first == last or question <= set(check.inputs), f"takes {', '.join(sorted(question))}")
        if "text_embeds" in check.inputs:
            check.sized(check.inputs, "text_embeds", -1, check.manifest.generation.width)
        check.gives({"image_features", "keep_indices"})
        check.sized(check.outputs, "image_features", -2, served.keep_per_span)
        for name in {"keep_indices", "padding"} & set(check.outputs):
            check.sized(check.outputs, name, -1, served.keep_per_span)


def _check_segment(check: _Check, segment: SegmentFacts) -> None:
    facts = check.manifest.generation
    parts = [f"{layer}.{part}" for layer in segment.layers for part in ("key", "value")]
    past, present = {f"past_key_values.{part}" for part in parts}, {f"present.{part}" for part in parts}
    extra = {"block_ids"} if facts.bidirectional != "none" else set()
    fixed = {"attention_mask", "position_ids", *past, *extra}
    modalities = {"text_rows", "visual_rows", "row_order"}
    taken = set(check.inputs) - (modalities if modalities <= set(check.inputs) else set())
    first, *rest = (name for name in check.inputs if name in taken)
    check.require(first not in fixed, "takes hidden states first")
    check.require(set(rest) in (fixed, fixed | {"key_position_ids"}), f"has layers {_layers(segment)}")
    check.gives(present)
    others = set(check.outputs) - present - {"before_hidden_states"}
    last = segment is check.manifest.segments[-1]
    check.require(len(others) == 1 and (others == {"logits"}) == last, f"gives {'logits' if last else 'hidden states'}")
    rows = check.outputs["logits"][-1] if last and check.outputs["logits"] else None
    if isinstance(rows, int):
        end = min(facts.eos_token_ids, default=0)
        check.require(facts.pad_token_id < rows, f"pads with token {facts.pad_token_id}, beyond its {rows} logits")
        check.require(end < rows, f"ends answers with token {end}, beyond its {rows} logits")
    for shapes, names in ((check.inputs, past), (check.outputs, present)):
        for name in names:
            check.sized(shapes, name, 1, facts.kv_heads)
            check.sized(shapes, name, 3, facts.head_dim)


def _layers(segment: SegmentFacts) -> str:
    return ", ".join(map(str, segment.layers))


def _check_selector(check: _Check, selector: SelectorFacts, tokens: int) -> None:
    fewest, most = _HANDED[selector.kind]
    padded = selector.kind == "prune" and "padding" in check.inputs
    check.require(fewest <= len(check.inputs) - padded <= most, f"takes {fewest} inputs to {selector.kind} tokens")
    if selector.kind != "prune":
        check.gives({"hidden_states"})
        return
    places = {"keep_indices", *["kept_padding"] * padded}
    check.gives({"hidden_states", "kept_position_ids", *places})
    for name in places:
        check.sized(check.outputs, name, -1, tokens)
