"""Opens what the command line names as a model that can be asked: a checkpoint, a bundle, a compressed model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.artifact import MANIFEST
from vtc.errors import BundleError, InputError
from vtc.evaluate.answers import Contestant
from vtc.evaluate.baselines import baseline_keep, budget
from vtc.evaluate.evidence import Locator
from vtc.evaluate.layouts import by_layout
from vtc.evaluate.one_by_one import Elastic
from vtc.facts.layout import ANY_IMAGE, ImageOptions, image_options_of
from vtc.facts.placement import ON_CPU, Placement
from vtc.files import read_json
from vtc.inputs.layouts import offer_of
from vtc.origin import check_origin
from vtc.plan.costs import Use
from vtc.plan.stored import plans_of
from vtc.plan.token_plan import TokenPlan
from vtc.recipe import NONE
from vtc.runtime.budgets import no_budget
from vtc.runtime.options import RuntimeOptions

if TYPE_CHECKING:
    from vtc.bundle.facts import ServedImage
    from vtc.bundle.manifest import Manifest
    from vtc.compressed.model import CompressedModel
    from vtc.models.base import VLMAdapter
    from vtc.recipe import Recipe
    from vtc.runtime.vlm import VLM

SHOW = Use("vtc show", original=False)


@dataclass(frozen=True)
class Opened:
    """A model and what is known about it.

    Attributes
    ----------
    contestant : Contestant
    model_sha256 : str
        Digest of the checkpoint it is, or was made from.
    plan : TokenPlan or None
        None for a checkpoint.
    adapters : sequence of VLMAdapter
        The checkpoint in PyTorch, where it is loaded, made ready for each layout: what baselines are built on.
    keeps : sequence of int or None
        Visual tokens that a baseline may spend on an image of each layout, see
        :func:`vtc.evaluate.baselines.baseline_keep`.
    budgets : mapping of int to Opened
        The same model at each of its budgets, ascending; none where it has one for all questions.
    elastic : Elastic or None
        What answers at any of them, or by a policy.
    """

    contestant: Contestant
    model_sha256: str
    plan: TokenPlan | None = None
    adapters: Sequence[VLMAdapter] = ()
    keeps: Sequence[int | None] = ()
    budgets: Mapping[int, Opened] = field(default_factory=dict)
    elastic: Elastic | None = None

    def at_budget(self, keep: int | None) -> Opened:
        """The model at one of its budgets; None takes the largest, or the only one.

        Raises
        ------
        InputError
            If it has no such budget.
        """
        if keep is None:
            return self
        if keep not in self.budgets:
            raise no_budget(self.contestant.name, keep, self.budgets)
        return self.budgets[keep]


def manifest_of(path: Path) -> dict[str, Any] | None:
    """Read the manifest of a compressed model or a bundle, unverified; None if the path is neither."""
    try:
        manifest = read_json(path / MANIFEST)
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("kind") not in ("bundle", "compressed"):
        return None
    check_origin(manifest, path / MANIFEST)
    return manifest


def layouts_of(manifest: Mapping[str, Any] | None) -> list[ImageOptions]:
    """Read what images a bundle was made for, one for each of its layouts, the default one first."""
    if manifest is None or not {"image_options", "serving"} & set(manifest["model"]):
        return [ANY_IMAGE]
    if "layouts" in manifest["model"]:
        layouts = manifest["model"]["layouts"]
        if not isinstance(layouts, list) or not layouts:
            raise BundleError("the manifest does not say what images are served; export the bundle again")
        return [image_options_of({"image_options": one}) for one in layouts]
    # Bundles of vtc 0.1 say the first one's options, and of the others the size.
    try:
        others = [tuple(served["size"]) for served in manifest.get("images", [])[1:]]
    except (TypeError, KeyError):
        raise BundleError("the manifest does not say what images are served; export the bundle again") from None
    return [image_options_of(manifest["model"]), *(ImageOptions(image_size=size) for size in others)]


def open_checkpoint(name: str, layouts: Sequence[ImageOptions], placement: Placement, use: Use) -> Opened:
    """Open the original, which runs through the same code as a compressed model, with nothing taken away.

    Parameters
    ----------
    name : str
    layouts : sequence of ImageOptions
        What images it is made ready for; each image goes to the nearest.
    placement : Placement
    use : Use
        What there is to be room for.
    """
    from vtc.compressed.needs import room_for
    from vtc.models import load_adapter, model_digest, resolve_model

    path = resolve_model(name)
    check = room_for(use, placement)
    first = load_adapter(path, layouts[0], placement, lambda outline: check(outline, NONE))
    return original_of([first, *map(first.with_image_options, layouts[1:])], model_digest(path))


def original_of(adapters: Sequence[VLMAdapter], model_sha256: str) -> Opened:
    """Make an original of a loaded checkpoint, made ready for some layouts: nothing is taken away."""
    from vtc.compressed.build import apply_recipe

    offers = [offer_of(adapter.facts.layout) for adapter in adapters]
    predictor = by_layout([apply_recipe(adapter, NONE) for adapter in adapters], offers)
    return Opened(Contestant("original", predictor, adapters[0].chat), model_sha256, adapters=adapters)


def open_bundle(path: Path, options: RuntimeOptions = RuntimeOptions()) -> Opened:
    """Open an exported bundle, which the torch-free runtime runs."""
    from vtc.runtime.vlm import VLM

    vlm, name = VLM.load(path, options), path.resolve().name
    each = {keep: _of_bundle(f"{name} at {keep}", vlm.at_budget(keep)) for keep in vlm.budgets}
    return replace(_of_bundle(name, vlm), budgets=each, elastic=vlm)


def _of_bundle(name: str, vlm: VLM) -> Opened:
    """Make a contestant of a bundle at one budget."""
    served = vlm.manifest.images[0]
    one_grid = len(vlm.manifest.images) == len(served.grids) == served.spans == 1
    grid = served.grids[0] if one_grid else None
    _refuse_clips(name, served.frames)

    def keep_indices(images: list[Image.Image], questions: list[str]) -> NDArray[np.int64]:
        return vlm.kept([[image] for image in images], [vlm.chat(question) for question in questions])[-1]

    plan = plans_of(vlm.manifest)[0]
    locator = _locator(keep_indices, plan, grid, served.size)
    contestant = Contestant(name, vlm, vlm.chat, locator, plan.layer_average, run_as=vlm.run_as)
    return Opened(contestant, str(vlm.manifest.model["sha256"]), plan, keeps=_keeps(vlm.manifest, plan))


def _keeps(manifest: Manifest, plan: TokenPlan) -> list[int | None]:
    """Budget of a baseline in each layout; the plan is of the first, and the others' averages are in proportion."""

    def seen(served: ServedImage) -> int:
        tokens = zip(manifest.segments, served.segment_tokens_per_span, strict=True)
        return served.spans * sum(len(segment.layers) * count for segment, count in tokens)

    first, *others = manifest.images
    averages = [plan.layer_average * seen(served) / max(seen(first), 1) for served in others]
    rest = zip(averages, others, strict=True)
    return [
        baseline_keep(plan),
        *(budget(average, served.spans, served.spans * served.tokens_per_span) for average, served in rest),
    ]


def open_compressed(path: Path, base: str | None = None, placement: Placement = ON_CPU, use: Use = SHOW) -> Opened:
    """Open a compressed model, which PyTorch runs; `base` says where its checkpoint is now, if it has moved."""
    from vtc.compressed.checkpoint import load_compressed
    from vtc.compressed.needs import room_for

    model, recipe, origin = load_compressed(path, base, placement, room_for(use, placement))
    return _elastic_contestant(path.resolve().name, model, recipe, origin.digest)


def open_finished(path: Path, placement: Placement = ON_CPU) -> Opened:
    """Open a compressed model or a bundle."""
    manifest = manifest_of(path)
    compressed = manifest is not None and manifest["kind"] == "compressed"
    return open_compressed(path, placement=placement) if compressed else open_bundle(path)


def open_recipe(
    model: str, recipe: Recipe, image_options: ImageOptions = ANY_IMAGE, placement: Placement = ON_CPU
) -> Opened:
    """Apply a recipe to a checkpoint, in PyTorch and in memory alone.

    Raises
    ------
    InputError
        If the recipe leaves something to calibration, or to a training that nothing shipped takes the place of.
    """
    from vtc.calibrate.compress import complete, load_checkpoint
    from vtc.compressed.needs import room_for

    if left_open := recipe.measured:
        raise InputError(f"{recipe.name}: {left_open[0]} is left to calibration; vtc compress it, then show that")
    check = room_for(SHOW, placement)
    checkpoint = load_checkpoint(model, image_options, placement, lambda outline: check(outline, recipe))
    with tempfile.TemporaryDirectory() as directory:
        done = complete(checkpoint, recipe, Path(directory))
    return _elastic_contestant(recipe.name, done.model, done.recipe, checkpoint.origin.digest)


def _elastic_contestant(name: str, model: CompressedModel, recipe: Recipe, model_sha256: str) -> Opened:
    """Make a contestant of a compressed model, and of it at each of its recipe's budgets."""
    from vtc.compressed.checkpoint import at_budgets
    from vtc.compressed.elastic import ElasticModel

    elastic = ElasticModel(model, at_budgets(model, recipe))
    each = {keep: compressed_contestant(f"{name} at {keep}", one, model_sha256) for keep, one in elastic.models.items()}
    return replace(compressed_contestant(name, model, model_sha256), budgets=each, elastic=elastic)


def compressed_contestant(name: str, model: CompressedModel, model_sha256: str) -> Opened:
    """Make a contestant of a compressed model that is in memory already."""
    from vtc.models.lora import without_lora

    adapter = model.adapter

    def keep_indices(images: list[Image.Image], questions: list[str]) -> NDArray[np.int64]:
        return model.kept([[image] for image in images], [adapter.chat(question) for question in questions])[-1]

    _refuse_clips(name, adapter.facts.layout.frames)
    plan = model.plan
    grid = adapter.facts.grid if adapter.facts.layout.spans == 1 else None
    locator = _locator(keep_indices, plan, grid, adapter.facts.image_size)
    contestant = Contestant(name, model, adapter.chat, locator, model.plan.layer_average)
    return Opened(contestant, model_sha256, plan, [without_lora(adapter)], [baseline_keep(plan)])


def _refuse_clips(name: str, frames: int) -> None:
    if frames > 1:
        raise InputError(
            f"{name}: serves clips of {frames} frames, and data sets and pictures here are of single images"
        )


def _locator(
    keep_indices: Callable[[list[Image.Image], list[str]], NDArray[np.int64]],
    plan: TokenPlan,
    grid: tuple[int, int] | None,
    size: tuple[int, int],
) -> Locator | None:
    return Locator(keep_indices, grid, size) if grid and plan.chooses_places else None
