"""The whole pipeline on a tiny random model: compress, calibrate, export, compare, run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from exporters.onnx import ExportRequest, export
from vtc.calibrate.compress import Calibration, complete, load_checkpoint
from vtc.compressed.checkpoint import load_compressed, save_compressed, served
from vtc.data.samples import samples_from
from vtc.models.random.tiny import write_tiny_checkpoint
from vtc.progress import Report, silent
from vtc.recipe import Recipe
from vtc.runtime.vlm import VLM
from vtc.selectors.trained import save_trained
from vtc.training.job import new_part

SAMPLES = 4


def run(recipe: Recipe, progress: Report = silent, family: str = "llava") -> None:
    """Take a recipe all the way to a running bundle, on a model of a family.

    Raises
    ------
    VtcError
        Whatever went wrong on the way.
    """
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        request = prepare(recipe, work, progress, family)
        export(request, work / "bundle")
        VLM.load(work / "bundle").ask(request.samples[0].images, "what is it ?", max_new_tokens=4)


def prepare(
    recipe: Recipe,
    work: Path,
    progress: Report = silent,
    family: str = "llava",
    *,
    decoder_layers: int = 8,
) -> ExportRequest:
    """Compress a tiny random model of a family, save that, and load it to be exported.

    The model is deeper than asked if the recipe's layer numbers are. Trained parts stay as they are created: none was
    trained on a random model, and nothing could be learnt on it.

    Parameters
    ----------
    recipe : Recipe
    work : Path
        An existing directory, for the checkpoint and the compressed model.
    progress : callable
    family : str
    decoder_layers : int
    """
    layers = list(_layer_numbers(recipe))
    encoder = max([5, *(number + 2 for kind, number in layers if kind == "encoder")])
    decoder = max([decoder_layers, *(number + 2 for kind, number in layers if kind == "decoder")])
    path = write_tiny_checkpoint(family, work / "model", encoder_layers=encoder, decoder_layers=decoder)
    checkpoint = load_checkpoint(path)
    adapter, digest = checkpoint.adapter, checkpoint.origin.digest
    compressing = work / ".compressed"
    compressing.mkdir()

    def untrained(so_far: Recipe, number: int) -> Path:
        file = compressing / f"trained-{number}.safetensors"
        save_trained(file, new_part(adapter, so_far, number), digest)
        return file

    done = complete(checkpoint, recipe, compressing, Calibration(samples=SAMPLES), progress, untrained)
    save_compressed(compressing, work / "compressed", done.model, done.recipe, checkpoint.origin, done.measurements)
    model, resolved, origin = load_compressed(work / "compressed")
    samples = samples_from(adapter, None, SAMPLES, seed=0)
    return ExportRequest(served(model, resolved), resolved, origin, samples, progress=progress)


def _layer_numbers(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """Every layer that a recipe names, with the component it is in; a negative number needs that many layers."""
    for stage in recipe.stages:
        removal = stage.removal
        named = [("encoder", layer) for layer in stage.encoder_layers_named]
        named += [("decoder", layer) for layer in (stage.exit_before, stage.cut_before) if isinstance(layer, int)]
        if removal is not None and removal.layers != "auto":
            named += [(removal.component, layer) for layer in removal.layers]
        for component, number in named:
            yield component, number if number >= 0 else -number
