"""What a plan says that a model of some shape will cost, to be printed beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vtc.facts.model import ModelFacts
from vtc.plan import TokenPlan, flops
from vtc.plan.costs import weight_count


@dataclass(frozen=True)
class Prediction:
    """Of one prompt.

    Attributes
    ----------
    flops, prefill_flops : int
        Exact operations until the first token: all, and those of decoder and head.
    kv_bytes : int
        Keys and values after prefill.
    weight_bytes : int
        Matrices of the graphs, a table of positions for the encoder's patches among them, norms and biases left out.
        A bundle holds a tied head and its embedding apart.
    """

    flops: int
    prefill_flops: int
    kv_bytes: int
    weight_bytes: int


def predict(plan: TokenPlan, facts: ModelFacts, images: int, bytes_per_value: int, weights: int) -> Prediction:
    """What a plan comes to for a prompt of some images; the plan itself is of one.

    Parameters
    ----------
    plan : TokenPlan
        With the prompt's text tokens.
    facts : ModelFacts
    images : int
    bytes_per_value : int
        Of one number in the KV cache.
    weights : int
        Bytes of one weight.

    Returns
    -------
    Prediction
    """
    parts, kv_bytes = dict(plan.flops_parts), plan.kv_bytes
    if images > 1:
        visual = [images * tokens for tokens in plan.decoder_visual_tokens]
        lengths = [plan.text_tokens + tokens for tokens in visual]
        decoder = plan.decoder(facts.decoder)
        kv_bytes = flops.kv_bytes(decoder, lengths, bytes_per_value)
        parts |= {
            "encoder": images * parts["encoder"],
            "projector": images * parts["projector"],
            "decoder": flops.decoder_flops(decoder, lengths, visual),
        }
    prefill = sum(parts.values()) - parts["encoder"] - parts["projector"]
    return Prediction(sum(parts.values()), prefill, kv_bytes, weights * weight_count(plan, facts))


def beside_measured(report: Mapping[str, Any], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Predictions and measurements side by side.

    Parameters
    ----------
    report : mapping
        Of :func:`vtc.benchmark.report.bench` with the original and one model.
    predictions : sequence of Prediction
        Of both.

    Returns
    -------
    dict
        ``runs`` with each one's prediction; ``speedup`` with predicted, measured and reached (their ratio) for
        ``prefill`` and ``ttft``.
    """
    original, model = predictions
    predicted = {"prefill": original.prefill_flops / model.prefill_flops, "ttft": original.flops / model.flops}
    return {
        "runs": [asdict(prediction) for prediction in predictions],
        "speedup": {
            name: {
                "predicted": value,
                "measured": report["speedup"][name],
                "reached": report["speedup"][name] / value,
            }
            for name, value in predicted.items()
        },
    }
