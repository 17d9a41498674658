"""Bundles that are not published yet, run as exactly as they can be, to be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import onnx_ir as ir

from exporters.precision import precision
from exporters.rewriting.experts import round_no_inputs
from vtc.bundle.facts import precision_and_form
from vtc.bundle.manifest import FileEntry, Manifest


def exactly(draft: Manifest, name: str) -> Manifest:
    """A bundle with ONNX Runtime's own settings, whose mixtures of experts in a variant round no inputs.

    Graphs that this takes are written beside the variant's own, under hidden names.

    Parameters
    ----------
    draft : Manifest
    name : str
        Of the variant.
    """
    graphs = {graph: dict(paths) for graph, paths in draft.graphs.items()}
    files = dict(draft.files)
    of, form = precision_and_form(name)
    if form == "ort" and precision(of).experts:
        for segment in draft.segments:
            path = graphs[segment.graph].get(name)
            model = ir.load(draft.root / path) if path else None
            if path and model and round_no_inputs(model):
                place = PurePosixPath(path)
                graphs[segment.graph][name] = (place.parent / f".{place.stem}_exact.onnx").as_posix()
                ir.save(model, draft.root / graphs[segment.graph][name])
                files[graphs[segment.graph][name]] = FileEntry("", 0)
    variants = tuple(replace(each, session={}) for each in draft.variants)
    return replace(draft, variants=variants, graphs=graphs, files=files)
