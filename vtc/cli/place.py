"""``vtc place``: a map from experts to devices, by statistics of their use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from vtc.cli.output import note, print_json, print_table, say
from vtc.cli.verb import verb
from vtc.experts.statistics import MODALITIES
from vtc.recipe.experts import METHODS, Homes

if TYPE_CHECKING:
    from vtc.experts.traffic import Replay

FORMATS = ("vtc", "sglang", "tensorrt-llm", "vllm")


@verb("Place the experts of a mixture on devices, and tell traffic and load.")
@click.argument("model")
@click.option(
    "--experts",
    "statistics",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Expert statistics that vtc calibrate wrote.",
)
@click.option("--devices", required=True, type=click.IntRange(1), help="Devices that share the experts of each layer.")
@click.option("--placement", type=click.Choice(METHODS), default="modality", show_default=True, help="How to place.")
@click.option(
    "--homes",
    type=click.Choice(get_args(Homes)),
    default="sample",
    show_default=True,
    help="Where tokens live: prompts dealt out to devices; or visual tokens on half of them, text on the others.",
)
@click.option("--copies", default=0, show_default=True, type=click.IntRange(0), help="With eplb: slots for copies.")
@click.option(
    "--tolerance",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="With solved: load of the busiest device above the mean.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Shuffles a random placement.")
@click.option(
    "--tokens",
    type=click.Choice(["full", "pruned"]),
    default="full",
    show_default=True,
    help="With all visual tokens, or those that are kept.",
)
@click.option(
    "--map", "given", type=click.Path(path_type=Path), metavar="FILE", help="Count a placement of yours, too."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write.  [default: tell, and write nothing]")
@click.option(
    "--format",
    "written",
    type=click.Choice(FORMATS),
    default="vtc",
    show_default=True,
    help="For whom: vtc, SGLang's --init-expert-location, TensorRT-LLM's moe_config.load_balancer, or the map that a "
    "proposal to vLLM reads.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, statistics: Path, devices: int, out: Path | None, as_json: bool, **asked: Any) -> None:
    """Place the experts of MODEL on devices that share them (expert parallelism).

    All methods are told side by side: placed by half of the prompts of the statistics, counted on the others.
    Traffic is told three ways, and always with the load of the busiest device: what saves one may cost the other.
    """
    import vtc

    placed = vtc.place_experts(model, statistics, devices, out=out, **asked)
    if as_json:
        print_json(placed.to_dict())
    else:
        say(f"{devices} devices; placed by half of the prompts, counted on the others")
        _print(placed.compared, (asked["placement"], asked["homes"]))
    if out is not None:
        note(f"written: {out} ({placed.placement.method})")


def _print(rows: Sequence[tuple[str, Homes, Replay]], asked: tuple[str, str]) -> None:
    head = ["placement", "homes by", ">tokens with any remote expert", *(f">{name}" for name in MODALITIES)]
    head += [">remote calls", ">remote devices a token", ">load max/mean"]
    table = []
    for name, homes, one in rows:
        of = one.all, one.text, one.visual
        chosen = "* " if (name, homes) == asked else "  "
        shares = [f"{100 * part.tokens_with_any_remote_expert:.1f} %" for part in of]
        more = [f"{100 * of[0].remote_calls:.1f} %", f"{of[0].remote_devices_per_token:.2f}"]
        table.append([chosen + name, homes, *shares, *more, f"{of[0].load_max_over_mean:.2f}"])
    print_table(head, table)
