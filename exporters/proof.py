"""What is proved of a bundle's variants before it is published, each as closely as what it rounds allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporters.graphs import source_modules
from exporters.parity import EncodedOnce, Parity, check_layers, check_parity, compare
from exporters.precision import Precision
from exporters.precision.derive import Derived
from exporters.precision.fake_quantised import fake_quantised
from exporters.precision.layers import layers_off
from vtc.bundle.facts import Variant
from vtc.bundle.manifest import Manifest
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.progress import Report
from vtc.runtime.variants import PORTABLE


@dataclass(frozen=True)
class Proof:
    """Compares graphs with the model that they were exported from.

    Attributes
    ----------
    models : sequence of CompressedModel
        One for each layout of images.
    samples : sequence of Sample
    draft : Manifest
        Of the bundle, which is not published yet.
    progress : callable
    """

    models: Sequence[CompressedModel]
    samples: Sequence[Sample]
    draft: Manifest
    progress: Report

    def of_precision(self, one: Precision, derived: Derived) -> Parity:
        """Compare a precision's portable graphs.

        Raises
        ------
        ParityError
            If they compute something else than rounding explains.
        """
        models = fake_quantised(self.models, one, derived.reached)
        if one.base == "bf16":
            stand_ins = self._drafted(derived.stand_ins[one.name], one.name)
            return replace(self._check(models, stand_ins, one.name), emulated=True)
        bundle = self._drafted(derived.paths[one.name], one.name)
        if not one.activations:
            return self._beside_original(self._check(models, bundle, one.name), one, one.name + PORTABLE)
        if one.base not in self.draft.precisions:  # else it is compared anyway
            self._check(self.models, self._drafted(derived.safe, one.base), one.base)
        sources = source_modules(self.models)
        off = [
            layers_off(path, derived.layers[one.name][graph], models[0], sources[graph], self.samples[0])
            for graph, path in derived.stand_ins[one.name].items()
            if derived.layers[one.name][graph]
        ]
        return check_layers(self._compare(bundle, one.name), one.name, max(off))

    def of_variant(self, variant: Variant, of: Precision, derived: Derived) -> Parity:
        """Compare an optimised variant, as its precision's portable graphs are.

        Raises
        ------
        ParityError
            If it computes something else than rounding explains.
        """
        models = fake_quantised(self.models, of, derived.reached)
        exact = replace(self.draft, variants=(Variant(of.name, of.name), replace(variant, session={})))
        return self._beside_original(self._check(models, EncodedOnce(exact, variant.name), of.name), of, variant.name)

    def _beside_original(self, found: Parity, of: Precision, variant: str) -> Parity:
        """What was found, and where weights are rounded how far the variant, run as it is to be, is from the model."""
        return replace(found, original=self._compare(EncodedOnce(self.draft, variant), of.name)) if of.stored else found

    def _drafted(self, paths: Mapping[str, Path], name: str) -> EncodedOnce:
        """A bundle of other graphs, run with ONNX Runtime's own settings."""
        graphs = {graph: {name: path.relative_to(self.draft.root).as_posix()} for graph, path in paths.items()}
        return EncodedOnce(replace(self.draft, variants=(Variant(name, name),), graphs=graphs), name)

    def _check(self, models: Sequence[CompressedModel], bundle: EncodedOnce, precision: str) -> Parity:
        return check_parity(models, bundle, precision, self.samples, self.progress)

    def _compare(self, bundle: EncodedOnce, precision: str) -> Parity:
        return compare(self.models, bundle, precision, self.samples, self.progress)
