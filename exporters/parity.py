"""Does an exported bundle compute what the PyTorch model computes?

Three questions, kept apart. Are the same tokens kept (selection)? Given the same tokens, are features and logits the
same (numerics)? And does the whole, run end to end, say the same (greedy tokens)?
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.differences import ANSWER_TOKENS, Moved, largest, moves
from exporters.precision import LAYER_TOLERANCE
from exporters.precision import precision as by_name
from vtc.bundle.manifest import Manifest
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.errors import NumericError, ParityError
from vtc.inputs.generation import ruled_along
from vtc.progress import Report, silent
from vtc.runtime.generation import Batch
from vtc.runtime.interface import Array, Backend, Tensor
from vtc.runtime.onnxruntime.backend import OnnxRuntime
from vtc.runtime.onnxruntime.providers import import_onnxruntime
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.variants import PORTABLE
from vtc.runtime.vision import Seen, Vision
from vtc.runtime.vlm import VLM

ROUNDING = 1e-5
NOISY_RUNS = 8
"""Relative change of pixels, and times it is tried, that tell a choice between near-ties from a wrong one."""
LEAST_KEPT = 0.5
"""Share of a model's kept tokens that a bundle must keep too, however much its precision rounds."""
Indices = NDArray[Any]


@dataclass(frozen=True)
class Parity:
    """How far a bundle is from the model.

    Attributes
    ----------
    samples : int
        Prompts compared.
    indices_equal : float or None
        Share of images for which exactly the same tokens were kept, before the decoder and inside it; None where the
        model chooses none.
    features_max_diff : float
        Largest difference of a projected feature, over images with equal indices; in units of the image's largest
        feature where that is above 1, as rounding is.
    logits_max_diff : float
        Largest difference of a logit along the model's own answers, over prompts whose images have equal indices.
    greedy_match : float
        Share of prompts with equal greedy tokens.
    near_ties : int
        Prompts with different greedy tokens whose first difference is between almost equal logits, or whose images kept
        different tokens.
    original : Parity or None
        Where only weights are rounded: how far the bundle is from the model itself. What stands here is then how far it
        is from the model with its weights rounded in the same way.
    tokens_equal : float or None
        Share of the tokens that the model keeps of an image that are kept here too, mean over images, at the step where
        fewest are; None where the model chooses none.
    layers : float or None
        Where activations are rounded: largest difference of a linear layer's output, in units of its largest value,
        from PyTorch's with the same rounding of the same input. What stands here is how far the bundle is from the
        model itself, which rounding allows to be far.
    emulated : bool
        Whether a float32 graph that rounds to the precision's type stood in for the graph, as its type does not run
        everywhere.
    """

    samples: int
    indices_equal: float | None
    features_max_diff: float
    logits_max_diff: float
    greedy_match: float
    near_ties: int
    original: Parity | None = None
    tokens_equal: float | None = None
    layers: float | None = None
    emulated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


class EncodedOnce(VLM):
    """A bundle that remembers what it made of images, so that vision graphs and decoder need not be loaded together."""

    def __init__(self, manifest: Manifest, variant: str) -> None:
        files = [manifest.graph_files(name, variant.removesuffix(PORTABLE)) for name in manifest.graphs]
        large = any(len(of_graph) > 1 for of_graph in files)
        super().__init__(manifest, OnnxRuntime(manifest, RuntimeOptions(precision=variant), sparing=large))
        self.vision = _Remembering(manifest, self.backend)


class _Remembering(Vision):
    """Vision graphs that run once for each batch; what they made of it outlives them."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        super().__init__(manifest, backend)
        self._encoded: dict[str, Seen] = {}

    def see(self, batch: Batch, pixels: Array, embeds: Tensor) -> Seen:
        """As :class:`~vtc.runtime.vision.Vision` does."""
        key = hashlib.sha256(batch.input_ids.tobytes() + pixels.tobytes()).hexdigest()
        if key not in self._encoded:
            features, keep_indices, padding = super().see(batch, pixels, embeds)
            # Copies: the tensors themselves would keep the memory of their session.
            copied = import_onnxruntime().OrtValue.ortvalue_from_numpy
            padding = None if padding is None else copied(padding.numpy())
            self._encoded[key] = Seen(copied(features.numpy()), keep_indices, padding)
        return self._encoded[key]


@dataclass(frozen=True)
class Expected:
    """What a model makes of a sample.

    Attributes
    ----------
    features : array of shape (spans, K, E')
    indices : array of shape (spans, K)
        Places of the tokens that enter the decoder; both are empty without an image.
    answer : list of int
        Greedy token ids.
    forced : list of int
        The answer and an end token.
    logits : array of shape (T, V)
        Along `forced`.
    """

    features: Array
    indices: Array
    answer: list[int]
    forced: list[int]
    logits: Array


class Asked:
    """Models and the samples that they are asked about, each once however many bundles are compared with them.

    Parameters
    ----------
    models : sequence of CompressedModel
        One for each layout that the bundles serve, at each budget.
    samples : sequence of Sample
    """

    def __init__(self, models: Sequence[CompressedModel], samples: Sequence[Sample]) -> None:
        self.models, self.samples = models, samples
        self._expected: dict[int, Expected] = {}
        self._moved: dict[int, int] = {}

    def expected(self, number: int, model: CompressedModel) -> Expected:
        """What a model makes of sample number `number`."""
        if number not in self._expected:
            sample = self.samples[number]
            asked = [sample.images], [sample.prompt]
            features, indices = np.zeros((0, 0, 0)), np.zeros((0, 0))
            if sample.images:
                features, indices = (tensor.float().numpy() for tensor in model.features(*asked))
            answer = model.generate(*asked, ANSWER_TOKENS)[0].token_ids
            forced = [*answer, model.adapter.eos_token_ids[0]]
            logits = model.score(*asked, [forced])[0]
            self._expected[number] = Expected(features, indices, answer, forced, logits)
        return self._expected[number]

    def moved_by_noise(self, number: int, model: CompressedModel) -> int:
        """See :func:`_moved_by_noise`."""
        if number not in self._moved:
            self._moved[number] = _moved_by_noise(model, self.samples[number])
        return self._moved[number]


def check_parity(asked: Asked, bundle: VLM, precision: str, progress: Report = silent) -> Parity:
    """Compare a bundle with the model it was exported from.

    Parameters
    ----------
    asked : Asked
    bundle : VLM
    precision : str
        Names the tolerances.
    progress : callable

    Returns
    -------
    Parity

    Raises
    ------
    ParityError
        If other tokens are kept than near-ties explain (more than a few, and more than the model exchanges itself when
        its pixels are rounded), features or logits differ by more than the precision's
        tolerance or are not numbers, or greedy tokens differ elsewhere than at a near-tie.
    """
    result = compare(asked, bundle, precision, progress, strict=True)
    _judge(result, precision)
    return result


def compare(asked: Asked, bundle: VLM, precision: str, progress: Report = silent, *, strict: bool = False) -> Parity:
    """Measure how far a bundle is from a model; see :func:`check_parity`. Its budgets share the samples out.

    Unless `strict`, logits count whatever was kept, and of the tokens that the model keeps :data:`LEAST_KEPT` must be.

    Raises
    ------
    ParityError
        If too little of what is kept is what the model keeps, or something is not a number: NaN equals nothing.
    """
    limits, samples = by_name(precision), asked.samples
    budgets = [bundle.at_budget(keep) for keep in bundle.budgets] or [bundle]
    bundles = [budgets[number % len(budgets)] for number in range(len(samples))]
    layouts = [one.serve([sample.images]) for one, sample in zip(bundles, samples, strict=True)]
    served = [asked.models[bundle.every_image.index(layout)] for layout in layouts]
    expected = [asked.expected(number, model) for number, model in enumerate(served)]
    seen = [_compare_vision(*each) for each in zip(expected, bundles, samples, strict=True)]
    bundle.vision.close()
    shares: list[float] = []
    features_diff, logits_diff, matches, near_ties = 0.0, 0.0, 0, 0
    for done, (model, bundle, wanted, sample, (moved, difference)) in enumerate(
        zip(served, bundles, expected, samples, seen, strict=True), start=1
    ):
        allowed = max(1, int(limits.moved * model.keep_per_span)) if strict else model.keep_per_span
        if not any(one.others for one in moved):
            moved = _moved_in_decoder(model, bundle, sample) or moved
        most = max((one.others for one in moved), default=0)
        if most > allowed and most > asked.moved_by_noise(done - 1, model):
            raise ParityError(
                f"{precision} graphs keep {most} other tokens of an image than the model, of "
                f"{model.keep_per_span}, where {allowed} may be others; nothing was published"
            )
        shares += [1 - one.share for one in moved]
        same = not any(one.others for one in moved)
        features_diff = max(features_diff, difference)
        try:
            theirs = list(bundle.generate([sample.images], [sample.prompt], ANSWER_TOKENS)[0].token_ids)
        except NumericError:
            raise ParityError(_no_numbers(precision)) from None
        theirs_logits = bundle.score([sample.images], [sample.prompt], [wanted.forced])[0]
        if same or not strict or not np.isfinite(theirs_logits).all():
            with np.errstate(invalid="ignore"):
                logits_diff = max(logits_diff, largest(wanted.logits - theirs_logits))
        if not math.isfinite(features_diff) or not math.isfinite(logits_diff):
            raise ParityError(_no_numbers(precision))
        if wanted.answer == theirs:
            matches += 1
        elif not same or _near_tie(_as_chosen(model, sample, wanted), wanted.answer, theirs, limits.near_tie):
            near_ties += 1
        progress(f"comparing {precision} graphs with the model", done, len(samples))
    if not asked.models[0].plan.chooses_tokens:
        shares = []
    if shares and np.mean(shares) < LEAST_KEPT and not strict:
        raise ParityError(
            f"{precision} rounding changes what is kept: {np.mean(shares):.0%} of the tokens that the model keeps are "
            f"kept, where {LEAST_KEPT:.0%} is the least; nothing was published; give another --precision, or --data "
            "with images like those it is for"
        )
    return Parity(
        samples=len(samples),
        indices_equal=float(np.mean([share == 1 for share in shares])) if shares else None,
        tokens_equal=float(np.mean(shares)) if shares else None,
        features_max_diff=features_diff,
        logits_max_diff=logits_diff,
        greedy_match=matches / len(samples) if samples else 1.0,
        near_ties=near_ties,
    )


def _no_numbers(precision: str) -> str:
    return (
        f"{precision} graphs compute what is not a number (NaN or infinity); nothing was published; give --precision "
        "bf16 or fp32, and if it is fp32 already, fetch the checkpoint again"
    )


def _judge(result: Parity, precision: str) -> None:
    limit = by_name(precision).tolerance
    if result.features_max_diff > limit or result.logits_max_diff > limit:
        raise ParityError(
            f"{precision} graphs differ from the model: features by {result.features_max_diff:.2g}, logits by "
            f"{result.logits_max_diff:.2g}, where {limit:g} is allowed; nothing was published"
        )
    wrong = result.samples - round(result.greedy_match * result.samples) - result.near_ties
    if wrong:
        raise ParityError(
            f"{precision} graphs answer {wrong} of {result.samples} prompts unlike the model; nothing was published"
        )


def check_layers(found: Parity, precision: str, off: float) -> Parity:
    """What was found, if layers are as far off as rounding in float32 explains.

    Raises
    ------
    ParityError
        If they are further off.
    """
    if not off <= LAYER_TOLERANCE:
        raise ParityError(
            f"{precision} layers differ from PyTorch's by {off:.2g} of their largest value, where "
            f"{LAYER_TOLERANCE:g} is allowed; nothing was published"
        )
    return replace(found, layers=off)


def _compare_vision(wanted: Expected, bundle: VLM, sample: Sample) -> tuple[list[Moved], float]:
    """For each image how many other tokens were kept, and how far features are from ours where none were."""
    if not sample.images:
        return [], 0.0
    features, indices = wanted.features, wanted.indices
    their_features, their_indices = bundle.encode([sample.images], [sample.prompt])
    moved = moves(indices, their_indices)
    if not (np.isfinite(features).all() and np.isfinite(their_features).all()):
        return moved, math.inf
    kept = np.asarray([one.others == 0 for one in moved])
    reach = np.abs(features[kept]).max(axis=(1, 2), keepdims=True, initial=1.0)
    difference = np.abs(features[kept] - their_features[kept].astype(np.float32)) / reach
    return moved, largest(difference)


def _moved_in_decoder(model: CompressedModel, bundle: VLM, sample: Sample) -> list[Moved]:
    """For each image how many other tokens were kept at the cut where that is most; nothing without a cut."""
    if not sample.images or not model.plan.cut_layers:
        return []
    ours, theirs = (one.kept([sample.images], [sample.prompt]) for one in (model, bundle))
    return [max(counts) for counts in zip(*map(moves, ours, theirs), strict=True)]


def _as_chosen(model: CompressedModel, sample: Sample, wanted: Expected) -> Array:
    """Logits (T, V) along a model's answer, as its checkpoint's generation settings have them."""
    ids, mask, _ = model.inputs([sample.images], [sample.prompt])
    return ruled_along(model.adapter.rules, ids[0][mask[0] == 1].tolist(), wanted.forced, wanted.logits)


def _moved_by_noise(model: CompressedModel, sample: Sample) -> int:
    """Most tokens of an image that the model itself exchanges when its pixels change by as little as rounding does.

    In a greedy choice one near-tie can turn all that is chosen after it.
    """
    images, prompts = [sample.images], [sample.prompt]
    ids, mask, pixels = model.inputs(images, prompts)
    if pixels is None:
        return 0
    generator = torch.Generator().manual_seed(0)
    kept = model.kept(images, prompts)
    most = 0
    for _ in range(NOISY_RUNS):
        noise = 1 + ROUNDING * torch.randn(pixels.shape, generator=generator)
        with torch.inference_mode():
            _, state = model.prefill(ids, mask, pixels * noise)
        for mine, other in zip(kept, state.kept, strict=True):
            most = max(most, *(one.others for one in moves(mine, other.numpy())))
    return most


def _near_tie(logits: np.ndarray[Any, Any], ours: list[int], theirs: list[int], margin: float) -> bool:
    """Whether two answers part at a token whose logits are within `margin`; `logits` follow our answer."""
    place = next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    if place >= len(logits):
        return False
    best = np.sort(logits[place])[::-1]
    return bool(best[0] - best[1] < margin)
