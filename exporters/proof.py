"""What is proved of a bundle's variants before it is published, each as closely as what it rounds allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from exporters.exact import exactly
from exporters.graphs import source_modules
from exporters.parity import Asked, EncodedOnce, Parity, check_layers, check_parity, compare
from exporters.precision import Precision
from exporters.precision.derive import Derived
from exporters.precision.fake_quantised import fake_quantised
from exporters.precision.layers import layers_off
from exporters.precision.quantize import vision_layers
from exporters.variants import optimise
from vtc.bundle.facts import Variant
from vtc.bundle.manifest import FileEntry, Manifest
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.progress import Report
from vtc.runtime.variants import PORTABLE


class Proof:
    """Compares graphs with the model that they were exported from.

    Parameters
    ----------
    models : sequence of CompressedModel
        One for each layout of images.
    samples : sequence of Sample
    draft : Manifest
        Of the bundle, which is not published yet.
    progress : callable
    """

    def __init__(
        self, models: Sequence[CompressedModel], samples: Sequence[Sample], draft: Manifest, progress: Report
    ) -> None:
        self._original = Asked(models, samples)
        self._draft, self._progress = draft, progress

    def of(self, one: Precision, derived: Derived) -> dict[str, Parity]:
        """Compare a precision's portable graphs, and its optimised variants.

        Returns
        -------
        dict of variant to Parity

        Raises
        ------
        ParityError
            If one of them computes something else than rounding explains.
        """
        if one.activations:
            return self._of_rounding(one, derived)
        models = fake_quantised(self._original.models, one, derived.weights.get(one.name, {}), {})
        twin = self._original if models is self._original.models else Asked(models, self._original.samples)
        found = {one.name: self._of_portable(one, derived, twin)}
        return found | {variant.name: self._of_variant(variant, one, twin) for variant in self._forms(one)}

    def _forms(self, one: Precision) -> list[Variant]:
        return [each for each in self._draft.variants if each.precision == one.name and each.form != "portable"]

    def _of_portable(self, one: Precision, derived: Derived, twin: Asked) -> Parity:
        if one.base == "bf16":
            stand_ins = self._drafted(derived.stand_ins[one.name], one.name)
            return replace(check_parity(twin, stand_ins, one.name, self._progress), emulated=True)
        parity = check_parity(twin, self._drafted(derived.paths[one.name], one.name), one.name, self._progress)
        return self._beside_original(parity, one, one.name + PORTABLE)

    def _of_rounding(self, one: Precision, derived: Derived) -> dict[str, Parity]:
        """Check what rounds nothing as a whole, and what does layer by layer; measure the bundle as it is."""
        if one.activations == "vision":
            self._check_unrounded(one, derived)
        elif one.base not in self._draft.precisions:  # else it is compared anyway
            check_parity(self._original, self._drafted(derived.safe, one.base), one.base, self._progress)
        twin = fake_quantised(self._original.models, one, derived.weights[one.name], derived.reached[one.name])[0]
        sources = source_modules(self._original.models)
        off = [
            layers_off(path, derived.layers[one.name][graph], twin, sources[graph], self._original.samples[0])
            for graph, path in derived.stand_ins[one.name].items()
            if derived.layers[one.name][graph]
        ]
        bundles = {one.name: self._drafted(derived.paths[one.name], one.name)}
        bundles |= {variant.name: EncodedOnce(self._draft, variant.name) for variant in self._forms(one)}
        return {
            name: check_layers(
                compare(self._original, bundle, one.name, self._progress), one.name, max(off, default=0.0)
            )
            for name, bundle in bundles.items()
        }

    def _check_unrounded(self, one: Precision, derived: Derived) -> None:
        """Check graphs that do not round their inputs, behind the others as the base has them; also when rewritten."""
        seeing = vision_layers(self._original.models[0].adapter)
        rest = {name: weight for name, weight in derived.weights[one.name].items() if name not in seeing}
        half = Asked(fake_quantised(self._original.models, one, rest, {}), self._original.samples)
        paths = {
            graph: derived.safe[graph] if derived.layers[one.name][graph] else path
            for graph, path in derived.paths[one.name].items()
        }
        check_parity(half, self._drafted(paths, one.name), one.name, self._progress)
        for variant in self._forms(one):
            rewritten = optimise(variant.name, paths, self._progress).paths
            graphs = {graph: {one.name: self._inside(path)} for graph, path in paths.items()}
            files = dict(self._draft.files)
            for graph, path in rewritten.items():
                graphs[graph][variant.name] = self._inside(path)
                files[self._inside(path)] = FileEntry("", path.stat().st_size)
            variants = Variant(one.name, one.name), variant
            exact = exactly(replace(self._draft, variants=variants, graphs=graphs, files=files), variant.name)
            check_parity(half, EncodedOnce(exact, variant.name), one.name, self._progress)

    def _of_variant(self, variant: Variant, of: Precision, twin: Asked) -> Parity:
        exact = exactly(replace(self._draft, variants=(Variant(of.name, of.name), variant)), variant.name)
        parity = check_parity(twin, EncodedOnce(exact, variant.name), of.name, self._progress)
        return self._beside_original(parity, of, variant.name)

    def _beside_original(self, parity: Parity, of: Precision, variant: str) -> Parity:
        """What was found, and where weights are rounded how far the variant, run as it is to be, is from the model."""
        if not of.stored:
            return parity
        as_run = EncodedOnce(self._draft, variant)
        return replace(parity, original=compare(self._original, as_run, of.name, self._progress))

    def _drafted(self, paths: Mapping[str, Path], name: str) -> EncodedOnce:
        """A bundle of other graphs, run with ONNX Runtime's own settings."""
        graphs = {graph: {name: self._inside(path)} for graph, path in paths.items()}
        return EncodedOnce(replace(self._draft, variants=(Variant(name, name),), graphs=graphs), name)

    def _inside(self, path: Path) -> str:
        return path.relative_to(self._draft.root).as_posix()
