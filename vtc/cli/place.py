"""``vtc place``: a map from experts to devices, by statistics of their use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from vtc.cli.output import note, print_json, print_table, say
from vtc.cli.verb import verb
from vtc.cli.writing import check_place
from vtc.experts.statistics import MODALITIES
from vtc.recipe.experts import METHODS, Homes

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
def command(
    model: str,
    statistics: Path,
    given: Path | None,
    out: Path | None,
    written: str,
    tokens: str,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Place the experts of MODEL on devices that share them (expert parallelism).

    All methods are told side by side: placed by half of the prompts of the statistics, counted on the others.
    Traffic is told three ways, and always with the load of the busiest device: what saves one may cost the other.
    """
    from pydantic import ValidationError

    from vtc.compressed.inspection import digest_of
    from vtc.errors import InputError
    from vtc.experts.placement_files import WRITERS, load_placement
    from vtc.experts.placing import compare, halves, homes_of, place
    from vtc.experts.statistics import check_model, load_statistics
    from vtc.experts.traffic import replay
    from vtc.recipe.experts import ExpertPlacement

    check_place(out, statistics)
    found = load_statistics(statistics)
    check_model(found, digest_of(model), statistics)
    use = found.use(tokens)
    try:
        asked = ExpertPlacement(**wanted)
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    placement = place(use, asked, found.model)
    rows: list[Any] = list(compare(use, asked))
    if given is not None:
        own = load_placement(given)
        own.check_model(found.model, use.layers, use.experts, given)
        if own.devices != asked.devices:
            raise InputError(f"{given}: a placement for {own.devices} devices; give --devices {own.devices}")
        counted = halves(use)[1]
        rows.append((given.name, asked.homes, replay(counted, own, homes_of(counted, asked))))
    if out is not None:
        WRITERS[written](out, placement)
    if as_json:
        print_json(
            {
                "kind": "placement",
                "method": placement.method,
                "physical_to_logical_map": placement.expert_of_slot.tolist(),
                "compared": [{"placement": name, "homes": homes, **one.to_json()} for name, homes, one in rows],
            }
        )
    else:
        _print(rows, asked)
    if out is not None:
        note(f"written: {out} ({placement.method})")


def _print(rows: Any, asked: Any) -> None:
    say(f"{asked.devices} devices; placed by half of the prompts, counted on the others")
    head = ["placement", "homes by", ">tokens with any remote expert", *(f">{name}" for name in MODALITIES)]
    head += [">remote calls", ">remote devices a token", ">load max/mean"]
    table = []
    for name, homes, one in rows:
        of = one.all, one.text, one.visual
        chosen = "* " if (name, homes) == (asked.placement, asked.homes) else "  "
        shares = [f"{100 * part.tokens_with_any_remote_expert:.1f} %" for part in of]
        more = [f"{100 * of[0].remote_calls:.1f} %", f"{of[0].remote_devices_per_token:.2f}"]
        table.append([chosen + name, homes, *shares, *more, f"{of[0].load_max_over_mean:.2f}"])
    print_table(head, table)
