"""Which shapes engines are built for: what a bundle's plan and the user's limits come to, for each input of each graph.

Visual tokens are a constant; prompts, answers and batches are not. A decoder segment has one profile for the prompt and
one for every further token. The latter is at its best with a full cache, which is the length that a cache of constant
size has. It allows for a second token, which nobody feeds: built for exactly one, TensorRT for RTX lays the weights out
anew and stores them twice (measured with 1.7.1: 64 MiB instead of 32); with a range, both profiles share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vtc.bundle.engines import Limits, Profile, Shape
from vtc.bundle.facts import ServedImage
from vtc.bundle.manifest import Manifest
from vtc.errors import InputError

USUAL_TEXT = 64
"""Text tokens of the prompts that engines are made fastest for."""

Range = tuple[int, int, int]
"""Least, usual and most."""

PROMPT = -1
"""In place of a segment's number: what comes to the first."""

NONE: Range = (0, 0, 0)


def profiles(
    manifest: Manifest, graph: str, inputs: Mapping[str, Sequence[int | str]], limits: Limits
) -> tuple[Profile, ...]:
    """The profiles of one graph.

    Parameters
    ----------
    manifest : Manifest
    graph : str
        A key of the manifest's `graphs`.
    inputs : mapping of input name to shape
        Dynamic dimensions by their names in the graph.
    limits : Limits

    Returns
    -------
    tuple of Profile
        ``prefill`` and ``decode`` of a decoder segment, ``run`` of any other graph.

    Raises
    ------
    InputError
        If not one image and a word fit into the decoder's context, or a limit is below 1.
    """
    _check(manifest, limits)
    segments = [segment.graph for segment in manifest.segments]
    if graph in segments:
        length = _sequence(manifest, segments.index(graph), limits)
        past = min(length[2] + limits.new_tokens - 1, manifest.generation.context)
        batch = _batch(limits)
        prompt = {"sequence_length": length, "past_sequence_length": NONE, "total_sequence_length": length}
        token = {
            "sequence_length": (1, 1, 2),
            "past_sequence_length": (1, past, past),
            "total_sequence_length": (2, past + 1, past + 2),
        }
        return (
            Profile("prefill", _shapes(graph, inputs, {"batch_size": batch, **prompt})),
            Profile("decode", _shapes(graph, inputs, {"batch_size": batch, **token})),
        )
    if graph == "embed_tokens":
        ranges = {"batch_size": _batch(limits), "sequence_length": _sequence(manifest, PROMPT, limits)}
    elif of_graph := [served for served in manifest.images if graph in served.graphs]:
        ranges = _vision(of_graph[0], limits)
    else:
        ranges = _selector(manifest, graph, limits)
    return (Profile("run", _shapes(graph, inputs, ranges)),)


def _vision(served: ServedImage, limits: Limits) -> dict[str, Range]:
    images = _images(limits)
    spans = (served.spans, served.spans, images[2] * served.spans)
    return {"batch_size": images, "span_count": spans, "text_length": _text(limits)}


def _selector(manifest: Manifest, graph: str, limits: Limits) -> dict[str, Range]:
    """What stands between two segments: it takes what the one before had, and gives what the one after has."""
    number, selector = next(
        (number, segment.selector)
        for number, segment in enumerate(manifest.segments)
        if segment.selector and graph.startswith(segment.selector.graph)
    )
    before, after = _sequence(manifest, number - 1, limits), _sequence(manifest, number, limits)
    ranges = {"batch_size": _batch(limits), "sequence_length": before, "kept_length": after}
    if selector.kind == "merge":
        # Tokens that sat out come back: there are as many as after, and those that went on are fewer.
        ranges |= {"sequence_length": after, "kept_length": before}
    elif selector.kind == "prune":
        spans = _of(manifest.images, graph, selector.graph).spans
        ranges |= {"image_count": (spans, spans, _images(limits)[2] * spans), "query_length": _text(limits)}
    return ranges


def _sequence(manifest: Manifest, segment: int, limits: Limits) -> Range:
    """Tokens of a prompt in a segment, or before all: from a word without an image to all that is allowed."""
    visual = [
        served.spans * (served.segment_tokens_per_span[segment] if segment >= 0 else served.keep_per_span)
        for served in manifest.images
    ]
    context = manifest.generation.context
    most = min(limits.images * max(visual) + limits.text, context)
    return 1, min(visual[0] + min(USUAL_TEXT, limits.text), most), most


def _text(limits: Limits) -> Range:
    return 1, min(USUAL_TEXT, limits.text), limits.text


def _batch(limits: Limits) -> Range:
    return 1, 1, limits.batch


def _images(limits: Limits) -> Range:
    return 1, 1, limits.batch * limits.images


def _of(images: Sequence[ServedImage], graph: str, stem: str) -> ServedImage:
    """The layout that a graph is made for."""
    return next(served for served in images if graph == stem + served.suffix)


def _shapes(
    graph: str, inputs: Mapping[str, Sequence[int | str]], ranges: Mapping[str, Range]
) -> dict[str, tuple[Shape, Shape, Shape]]:
    unknown = {size for shape in inputs.values() for size in shape if isinstance(size, str) and size not in ranges}
    if unknown:
        raise InputError(
            f"{graph}: dynamic dimension '{min(unknown)}' is none that vtc exports; export the bundle again"
        )

    def sized(shape: Sequence[int | str], which: int) -> Shape:
        return tuple(ranges[size][which] if isinstance(size, str) else size for size in shape)

    return {name: (sized(shape, 0), sized(shape, 1), sized(shape, 2)) for name, shape in inputs.items()}


def _check(manifest: Manifest, limits: Limits) -> None:
    for name, value in vars(limits).items():
        if value < 1:
            raise InputError(f"engines cannot be built for {value} {name.replace('_', ' ')}; give 1 or more")
    context = manifest.generation.context
    longest = max(served.spans * served.keep_per_span for served in manifest.images)
    if longest >= context:
        raise InputError(f"an image of {longest} tokens leaves no room for text in the model's context of {context}")
