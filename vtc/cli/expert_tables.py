"""Expert statistics in tables."""

from __future__ import annotations

from typing import Any

from vtc.cli.output import print_table, say
from vtc.experts.skipping import SkippingReport
from vtc.experts.specialisation import specialisation_index, visual_share
from vtc.experts.statistics import MODALITIES, TEXT, VISUAL, ExpertStatistics, ExpertUse


def expert_data(statistics: ExpertStatistics) -> dict[str, Any]:
    """Return plain JSON data of what the tables show."""
    uses = {name: [_layer_data(use, layer) for layer in range(use.layers)] for name, use in statistics.uses.items()}
    about = {"model_sha256": statistics.model, "data": statistics.data, "recipe": statistics.recipe}
    return {"kind": "experts", **about, "uses": uses}


def _layer_data(use: ExpertUse, layer: int) -> dict[str, Any]:
    chosen = use.chosen[layer]
    tokens = chosen.sum(axis=1) / use.active
    return {
        "layer": layer,
        "tokens": dict(zip(MODALITIES, tokens.tolist(), strict=True)),
        "chosen": dict(zip(MODALITIES, chosen.tolist(), strict=True)),
        "load_max_over_mean": dict(
            zip((*MODALITIES, "all"), map(_unevenness, [*chosen, chosen.sum(axis=0)]), strict=True)
        ),
        "specialisation_index": float(specialisation_index(use.chosen)[layer]),
        "visual_share_equal_mass": visual_share(chosen, equal_mass=True).tolist(),
        "confidence": {
            name: float(use.confidence[layer, place] / tokens[place]) if tokens[place] else None
            for place, name in enumerate(MODALITIES)
        },
        "soft_visual_share_of_visual_tokens": _soft(use, layer),
    }


def _soft(use: ExpertUse, layer: int) -> dict[str, float]:
    """Visual part of all choices by soft scores, in both forms."""
    forms = {"attention": use.attention[layer], "gaussian": use.gaussian[layer]}
    return {name: float(scores[VISUAL].sum() / max(scores.sum(), 1e-12)) for name, scores in forms.items()}


def _unevenness(load: Any) -> float:
    return float(load.max() / load.mean()) if load.sum() else 1.0


def print_experts(statistics: ExpertStatistics) -> None:
    """Print a row for each layer, for all visual tokens and for those that are kept."""
    for name, use in statistics.uses.items():
        tokens = "all visual tokens" if name == "full" else f"the visual tokens that {statistics.recipe} keeps"
        say(f"{tokens}: {use.tokens[VISUAL]:.0f} visual and {use.tokens[TEXT]:.0f} text tokens, {statistics.data}")
        rows = [_row(_layer_data(use, layer)) for layer in range(use.layers)]
        head = ["layer", ">specialisation", ">load max/mean", ">of text", ">of visual", ">confidence, text", ">visual"]
        print_table([*head, "visual share of each expert, modalities alike"], rows)
        say("")
    say("specialisation: 0 where the choice of an expert tells nothing of a token's modality, 1 where it tells all")


def _row(layer: dict[str, Any]) -> list[str]:
    load, sure = layer["load_max_over_mean"], layer["confidence"]
    numbers = [f"{layer['specialisation_index']:.3f}", *(f"{load[name]:.2f}" for name in ("all", *MODALITIES))]
    confidence = ["-" if sure[name] is None else f"{sure[name]:.2f}" for name in MODALITIES]
    shares = layer["visual_share_equal_mass"]
    shown = " ".join(f"{share:.2f}" for share in shares[:16]) + (" ..." if len(shares) > 16 else "")
    return [str(layer["layer"]), *numbers, *confidence, shown]


def print_skipping(report: SkippingReport) -> None:
    """Print what skipping a share of expert calls would lose, by modality and layer."""
    found = zip(MODALITIES, (report.thresholds.text, report.thresholds.visual), report.skipped[:2], strict=True)
    rows = [[name, f"{limit:.2g}", "-" if some is None else f"{some:.1%}"] for name, limit, some in found]
    print_table(["tokens", ">threshold", ">calls skipped"], [*rows, ["all", "", f"{report.skipped.all:.1%}"]])
    say("")
    layers = [[str(layer), *(f"{one:.3f}" for one in both)] for layer, both in enumerate(report.importance.T.tolist())]
    print_table(["layer", *(f">importance, {name}" for name in MODALITIES)], layers)
    say("")
    say(f"the next token's distribution moves by {report.loss:.4f} nats (KL divergence, mean over prompts)")
    say("thresholds are of half of the prompts, shares and loss of the others; nothing that vtc exports skips experts")
