"""The numbers that weights are stored as: calibrated where there are samples, each to the nearest where there are none.

Graphs and the PyTorch models that they are compared with are both made of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exporters.copies import DTYPES
from exporters.precision import Precision, Stored
from exporters.precision.calibration import products
from exporters.precision.experts import nearest_experts
from exporters.precision.gptq import gptq, output_error
from exporters.precision.quantize import embedding, linear_layers, linear_weights, vision_layers
from exporters.precision.sensitivity import divergences
from exporters.precision.small import NUMBERS, Small, grid_of, small
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.progress import Report, silent

Method = Literal["gptq", "nearest"]
BITS: dict[Stored, int] = {"int4": 4, "int8": 8, "fp8": 8}


@dataclass(frozen=True)
class Chosen:
    """How a weight is stored.

    Attributes
    ----------
    small : Small
        Outputs on axis 0.
    bits : int
    method : {"gptq", "nearest"}
    error : float or None
        Squared error of the layer's output on samples, as a share of the output's square; None where there were none.
    wide_error : float or None
        The same where a weight in 4 bits was in 8.
    divergence : float or None
        KL divergence of the model's next-token distributions that this rounding alone brings, in nats a token, where it
        was estimated; see :mod:`exporters.precision.sensitivity`.
    """

    small: Small
    bits: int
    method: Method
    error: float | None = None
    wide_error: float | None = None
    divergence: float | None = None


def choose(
    models: Sequence[CompressedModel],
    precisions: Sequence[Precision],
    samples: Sequence[Sample],
    report: Report = silent,
) -> dict[str, dict[str, Chosen]]:
    """For each precision, what each linear layer's weight is stored as, and embedding and experts where they are too.

    Layers whose inputs do not divide into blocks have nothing here.

    Parameters
    ----------
    models : sequence of CompressedModel
        Of the same adapter, in float32.
    precisions : sequence of Precision
        Those that are quantised.
    samples : sequence of Sample
        What to calibrate on; without any, each weight becomes the nearest number.
    report : callable

    Returns
    -------
    dict of precision to dict of name to Chosen
        Of a module, or of a parameter of experts.
    """
    adapter = models[0].adapter
    layers = dict(linear_layers(adapter, head=any(one.head for one in precisions)))
    theirs = {
        one.name: {name: layer for name, layer in layers.items() if one.head or layer is not adapter.head}
        for one in precisions
    }
    seeing = vision_layers(adapter)
    found: dict[str, dict[str, Chosen]] = {one.name: {} for one in precisions}
    calibrated = [one for one in precisions if one.activations != "all"] if samples else []
    for part in products(models, samples, layers, report) if calibrated else ():
        for name, product in part.items():
            made: dict[_Format, Chosen | None] = {}
            for one in calibrated:
                how = one.of_layer(vision=name in seeing)
                if name in theirs[one.name] and product.any() and not how.activations:
                    if (form := _format(how)) not in made:
                        made[form] = _calibrated(theirs[one.name][name], how, product)
                    chosen = made[form]
                    found[one.name] |= {name: chosen} if chosen else {}
    known: dict[int, float] = {}
    stacks: dict[_Format, dict[str, Chosen]] = {}
    for one in precisions:
        own = found[one.name]
        for name, layer in theirs[one.name].items():
            if name not in own:
                nearest = _nearest(layer, one.of_layer(vision=name in seeing))
                own |= {name: nearest} if nearest else {}
        if one.wide and samples:
            own |= weighed(models, own, samples, report, known)
            own |= widened(own, theirs[one.name], one)
        if one.head:
            name, module = embedding(adapter)
            # A scale for each row is plenty beside 4 bits; beside 8 its error would be a third of all.
            blocks = one.block if one.stored == "int8" else 0
            table = _nearest(module, replace(one, block=blocks), "int8") or _nearest(
                module, replace(one, block=0), "int8"
            )
            own |= {name: table} if table else {}
        for linear in linear_weights(adapter, DTYPES[one.base], head=one.head).values():
            own |= {name: own[linear.names[0]] for name in linear.names if linear.names[0] in own}  # of equal weights
        form = _format(one.of_layer(vision=False))
        if form not in stacks:
            experts = nearest_experts(adapter, one).items()
            stacks[form] = {name: Chosen(stack, BITS[_stored(one)], "nearest") for name, stack in experts}
        own |= stacks[form]
    return found


def widened(chosen: Mapping[str, Chosen], layers: Mapping[str, nn.Linear], precision: Precision) -> dict[str, Chosen]:
    """The layers that get 8 bits in place of 4, in 8 bits."""
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    found = {}
    for name in standing_out(chosen, sizes, precision.wide):
        wide = _nearest(layers[name], precision, "int8")
        if wide:
            found[name] = replace(wide, error=chosen[name].wide_error)
    return found


def weighed(
    models: Sequence[CompressedModel],
    chosen: Mapping[str, Chosen],
    samples: Sequence[Sample],
    report: Report,
    known: dict[int, float],
) -> dict[str, Chosen]:
    """The weights in 4 bits, with what the rounding of each alone does to the model.

    Parameters
    ----------
    models, samples, report : as of :func:`choose`
    chosen : mapping of module name to Chosen
    known : dict of id of Small to float
        What was found before, as several precisions share weights; gets what is found now.
    """
    narrow = {name: one.small for name, one in chosen.items() if one.bits == 4}
    new = {name: one for name, one in narrow.items() if id(one) not in known}
    if new:
        known |= {id(new[name]): found for name, found in divergences(models, new, samples, report).items()}
    return {name: replace(chosen[name], divergence=known[id(one)]) for name, one in narrow.items()}


def standing_out(chosen: Mapping[str, Chosen], sizes: Mapping[str, int], share: float) -> list[str]:
    """Layers that get 8 bits in place of 4: those whose rounding does most for their size, as far as it goes.

    Parameters
    ----------
    chosen : mapping of module name to Chosen
    sizes : mapping of module name to int
        How many weights it has.
    share : float
        Most of all weights that may be among them.
    """
    effects = {name: one.divergence / sizes[name] for name, one in chosen.items() if one.bits == 4 and one.divergence}
    room = share * sum(sizes[name] for name in chosen)
    wide = []
    for name in sorted(effects, key=lambda name: -effects[name]):
        if sizes[name] <= room:
            wide.append(name)
            room -= sizes[name]
    return wide


def table(chosen: Mapping[str, Chosen]) -> list[dict[str, Any]]:
    """What there is to say of each layer, the worst first, as plain JSON data."""
    rows = [
        {
            "layer": name,
            "bits": one.bits,
            "method": one.method,
            "error": one.error and float(f"{one.error:.4g}"),
            "divergence": one.divergence and float(f"{one.divergence:.4g}"),
        }
        for name, one in chosen.items()
    ]
    return sorted(rows, key=lambda row: -(row["error"] or 0.0))


_Format = tuple[Stored | None, int, bool, str]


def _format(precision: Precision) -> _Format:
    """What tells apart how precisions store the weight of a layer."""
    return precision.stored, precision.block, precision.either_sign, precision.base


def _calibrated(layer: nn.Linear, precision: Precision, product: Tensor) -> Chosen | None:
    stored, dtype = _stored(precision), DTYPES[precision.base]
    weight = layer.weight.detach().cpu().to(dtype).float()
    name, inputs = str(dtype).removeprefix("torch."), weight.shape[1]
    grid = grid_of(stored, precision.block, inputs, name, either_sign=precision.either_sign)
    if grid is None:
        return None
    numbers, scales = gptq(weight, product, grid)
    given = scales.to(dtype).numpy()
    kept = Small(
        numbers.numpy().astype(NUMBERS[stored]),
        given if precision.block else given[:, 0],
        1 if precision.block else 0,
        grid.block if precision.block else 0,
    )
    error = output_error(weight, torch.from_numpy(kept.values()), product)
    wide = _nearest(layer, precision, "int8") if stored == "int4" else None
    wide_error = output_error(weight, torch.from_numpy(wide.small.values()), product) if wide else None
    return Chosen(kept, BITS[stored], "gptq", error, wide_error)


def _nearest(layer: nn.Linear | nn.Embedding, precision: Precision, stored: Stored | None = None) -> Chosen | None:
    stored = stored or _stored(precision)
    matrix = layer.weight.detach().cpu().to(DTYPES[precision.base]).numpy()
    found = small(matrix, 0, stored, precision.block, either_sign=precision.either_sign)
    return Chosen(found, BITS[stored], "nearest") if found else None


def _stored(precision: Precision) -> Stored:
    if precision.stored is None:
        raise AssertionError("only weights of quantised precisions are chosen")
    return precision.stored
