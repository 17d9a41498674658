"""Everything that looks at data before export: turns what a recipe leaves ``auto`` into numbers.

Each choice is made with the stages before it in place and those behind it left out. Measurements are kept as they are
made, so an interrupted calibration goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vtc.compressed.build import apply_recipe
from vtc.compressed.model import CompressedModel
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.data.fidelity import divergence, log_softmax
from vtc.data.samples import Sample
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.progress import Report, silent
from vtc.recipe import DropLayersEntry, FrequencyFilterEntry, PruneEntry, Recipe, VisualExitEntry
from vtc.recipe.selectors import TrainedSelectorEntry
from vtc.stages.frequency_filter import retained_energy

EXIT_AGREEMENT = 0.99
"""A visual exit is early enough when this share of the original's tokens stays the most likely one."""
EXIT_LOSS = 1.03
"""DyVTE's second condition: the answers' loss stays below this multiple of the original's."""
PrunerSource = Callable[[Recipe, int], Path]
"""Called with a recipe and the number of a stage whose trained part is left ``auto``; gives its file."""
BATCH = 16
ANSWER_TOKENS = 16


class Compared(NamedTuple):
    """A model beside the original, mean over the tokens of the original's answers.

    Attributes
    ----------
    divergence : float
        KL divergence, in nats.
    agreement : float
        Share of tokens that both find most likely.
    loss, original_loss : float
        Negative log-likelihood of the answers by each.
    """

    divergence: float
    agreement: float
    loss: float
    original_loss: float


def needs_data(recipe: Recipe) -> InputError:
    """What to tell a user who gave no data for a recipe that wants some."""
    return InputError(f"recipe {recipe.name} leaves {recipe.autos[0]} to calibration; give --data DIR")


class Measurements:
    """Numbers by name, written to a JSON file as they are made.

    Parameters
    ----------
    path : Path or None
        None keeps them in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        if path is not None and path.is_file():
            self.values = json.loads(path.read_text(encoding="utf-8"))

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value under `name`, measured now if it is not there yet. Values are JSON data."""
        if name not in self.values:
            self.values[name] = measure()
            if self.path is not None:
                draft = self.path.with_suffix(".tmp")
                draft.write_text(json.dumps(self.values, indent=1), encoding="utf-8")
                os.replace(draft, self.path)
        return self.values[name]


class Calibrator:
    """Chooses values for a recipe on a model and samples.

    Parameters
    ----------
    adapter : VLMAdapter
    samples : sequence of Sample
    measurements : Measurements
    model_digest : str
    progress : callable
        Told what is measured, how many measurements are done and how many there are.
    pruner : callable or None
        Finds or trains a selector's part; the recipe then starts its paths where that file is.
    """

    def __init__(
        self,
        adapter: VLMAdapter,
        samples: Sequence[Sample],
        measurements: Measurements,
        model_digest: str = "",
        progress: Report = silent,
        pruner: PrunerSource | None = None,
    ) -> None:
        self.adapter = adapter
        self.samples = list(samples)
        self.measurements = measurements
        self.model_digest = model_digest
        self.progress = progress
        self.pruner = pruner

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe with a number for every ``auto``.

        Raises
        ------
        InputError
            If there is something to calibrate and nothing to calibrate on.
        """
        for key in recipe.autos:
            number = int(key.split(".")[1])
            if key.endswith(".checkpoint") and self.pruner is not None:
                file = self.pruner(recipe, number)
                recipe = _moved(recipe, file.parent).resolved({key: file.name})
                continue
            if not self.samples:
                raise needs_data(recipe)
            before = recipe.model_copy(update={"stages": recipe.stages[:number]})
            recipe = recipe.resolved({key: self._choose(before, recipe.stages[number])})
        return recipe

    def _choose(self, before: Recipe, stage: Any) -> Any:
        if isinstance(stage, FrequencyFilterEntry):
            return self._smallest_grid(before, stage)
        if isinstance(stage, PruneEntry):
            return self._attention_layer(before, stage)
        if isinstance(stage, VisualExitEntry):
            return self._exit_layer(before, stage)
        if isinstance(stage, DropLayersEntry):
            return self._visual_layers(before, stage) if stage.visual_only else self._idle_layers(before, stage)
        raise AssertionError(f"nothing to choose in {stage}")

    # Choices --------------------------------------------------------------------------------------------------------

    def _smallest_grid(self, before: Recipe, stage: FrequencyFilterEntry) -> int:
        """Tokens of the smallest grid, of the encoder's aspect, that keeps the wanted share of DCT energy."""
        model = self._model(before)
        layout = self.adapter.facts.layout
        grid = layout.grids[0]  # of several a plan has refused this choice
        sizes = sorted({(rows, max(1, round(rows * grid[1] / grid[0]))) for rows in range(1, grid[0] + 1)})

        def measure() -> list[float]:
            encoder = model.vision
            if not isinstance(encoder, VisionEncoder):
                raise AssertionError("a compressed model has a vision encoder")
            tokens = torch.cat([encoder.tokens(self.adapter.preprocess(s.images)).features for s in self.samples])
            return [retained_energy(tokens, grid, size) for size in sizes]

        with torch.inference_mode():
            energies = self.measurements.get(f"energy {before.digest}", measure)
        wanted = stage.energy or 0.0
        height, width = next(size for size, energy in zip(sizes, energies, strict=True) if energy >= wanted - 1e-9)
        return height * width * layout.spans

    def _attention_layer(self, before: Recipe, stage: PruneEntry) -> list[int]:
        """The encoder layer whose CLS attention, at this budget, moves the answers least (mean KL divergence)."""
        spec = stage.selector
        layers = list(self._model(before).plan.encoder_layers)
        divergences = {}
        for done, layer in enumerate(layers):
            self.progress("calibrating the attention layer", done, len(layers))
            candidate = stage.model_copy(update={"selector": spec.model_copy(update={"layers": (layer,)})})
            divergences[layer] = self._compared(before, candidate).divergence
        self.progress("calibrating the attention layer", len(layers), len(layers))
        return [min(layers, key=lambda layer: (divergences[layer], layer))]

    def _exit_layer(self, before: Recipe, stage: VisualExitEntry) -> int:
        """The earliest layer, going down from the last, at which the most likely tokens still agree with the
        original's.

        The criterion of Visual Tokens Withdrawal (Lin et al. 2024, arXiv 2405.05803), with agreement in place of a KL
        threshold, which has no natural size; or that of DyVTE's labels (arXiv 2411.19628).
        """
        plan = self._model(before).plan
        layers = plan.decoder_layers
        earliest = layers[-1]
        # Tokens that have left choose nothing any more, so an exit lies behind every cut.
        candidates = [layer for layer in layers[1:] if layer > max(plan.cut_layers, default=0)]
        for done, layer in enumerate(reversed(candidates)):
            self.progress("calibrating the exit layer", done, len(candidates))
            found = self._compared(before, stage.model_copy(update={"layer": layer, "criterion": "agreement"}))
            grown = stage.criterion == "dyvte" and found.loss >= EXIT_LOSS * found.original_loss
            if found.agreement < EXIT_AGREEMENT or grown:
                break
            earliest = layer
        self.progress("calibrating the exit layer", len(candidates), len(candidates))
        return earliest

    def _visual_layers(self, before: Recipe, stage: DropLayersEntry) -> list[int]:
        """The `count` layers that visual tokens can skip, one at a time, at the least mean KL divergence."""
        plan = self._model(before).plan
        layers = [layer for layer in plan.decoder_layers if not {layer, layer + 1} & set(plan.cut_layers)]
        divergences = {}
        for done, layer in enumerate(layers):
            self.progress("calibrating the layers to skip", done, len(layers))
            candidate = stage.model_copy(update={"layers": (layer,), "count": None})
            divergences[layer] = self._compared(before, candidate).divergence
        self.progress("calibrating the layers to skip", len(layers), len(layers))
        ranked = sorted(layers, key=lambda layer: (divergences[layer], layer))
        return sorted(ranked[: stage.count])

    def _idle_layers(self, before: Recipe, stage: DropLayersEntry) -> list[int]:
        """The `count` layers with the least block influence, 1 - cos(input, output) averaged over tokens.

        Based on ShortGPT (Men et al. 2024, arXiv 2403.03853), equation 1.
        """
        model = self._model(before)
        if stage.component == "encoder":
            modules = {layer: self.adapter.encoder_layers[layer] for layer in model.plan.encoder_layers}
        else:
            layers = [layer for layer in model.plan.decoder_layers if layer not in model.plan.cut_layers]
            modules = {layer: self.adapter.decoder_layers[layer] for layer in layers}

        def measure() -> dict[str, float]:
            with recording_influence(modules) as influence:
                for done, batch in enumerate(batches := list(_batches(self.samples))):
                    self.progress("measuring block influence", done, len(batches))
                    model.generate([s.images for s in batch], [s.prompt for s in batch], max_new_tokens=1)
            return {str(layer): float(np.mean(values)) for layer, values in influence.items()}

        influence = self.measurements.get(f"influence {stage.component} {before.digest}", measure)
        ranked = sorted(modules, key=lambda layer: (influence[str(layer)], layer))
        return sorted(ranked[: stage.count])

    # Measuring ------------------------------------------------------------------------------------------------------

    def _model(self, recipe: Recipe) -> CompressedModel:
        return apply_recipe(self.adapter, recipe, model_digest=self.model_digest)

    def _compared(self, before: Recipe, stage: Any) -> Compared:
        """How far a stage, behind those `before` it, moves the model; teacher-forced on the original's answers."""
        recipe = before.model_copy(update={"stages": (*before.stages, stage)})

        def measure() -> list[float]:
            model = self._model(recipe)
            parts: dict[str, list[Any]] = {"kld": [], "top": [], "loss": [], "original": []}
            for batch, answers, logits in self._original():
                scores = model.score([s.images for s in batch], [s.prompt for s in batch], answers)
                for ids, reference, candidate in zip(answers, logits, scores, strict=True):
                    compared = divergence(reference, candidate)
                    parts["kld"].append(compared.kld)
                    parts["top"].append(compared.same_top)
                    parts["loss"].append(-log_softmax(candidate)[np.arange(len(ids)), ids])
                    parts["original"].append(-log_softmax(reference)[np.arange(len(ids)), ids])
            return [float(np.concatenate(values).mean()) for values in parts.values()]

        return Compared(*self.measurements.get(f"compared {recipe.digest}", measure))

    def _original(self) -> list[tuple[list[Sample], list[list[int]], list[Any]]]:
        if not hasattr(self, "_cached"):
            model = self._model(Recipe(version=1, name="none", stages=()))
            self._cached = []
            for batch in _batches(self.samples):
                images, prompts = [s.images for s in batch], [s.prompt for s in batch]
                eos = self.adapter.eos_token_ids[:1]
                answers = [a.token_ids + eos for a in model.generate(images, prompts, ANSWER_TOKENS)]
                self._cached.append((batch, answers, model.score(images, prompts, answers)))
        return self._cached


@contextmanager
def recording_influence(layers: dict[int, nn.Module]) -> Iterator[dict[int, list[float]]]:
    """While open, record 1 - cos(input, output) of each layer, averaged over the tokens of each call."""
    influence: dict[int, list[float]] = {layer: [] for layer in layers}

    def record(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            cosine = torch.nn.functional.cosine_similarity(inputs[0], output, dim=-1)
            influence[layer].append(float(1 - cosine.mean()))

        return hook

    handles = [module.register_forward_hook(record(layer)) for layer, module in layers.items()]
    try:
        yield influence
    finally:
        for handle in handles:
            handle.remove()


def _moved(recipe: Recipe, directory: Path) -> Recipe:
    """The same recipe with paths that start in another directory, which its trained parts are copied into."""
    for number, stage in enumerate(recipe.stages):
        selector = getattr(stage, "selector", None)
        if isinstance(selector, TrainedSelectorEntry) and selector.checkpoint != "auto":
            file, target = recipe.checkpoint(number), directory / selector.checkpoint
            if file != target.resolve():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    return recipe.with_origin(replace(recipe.origin, directory=directory))


def _batches(samples: Sequence[Sample]) -> Iterable[list[Sample]]:
    for start in range(0, len(samples), BATCH):
        yield list(samples[start : start + BATCH])
