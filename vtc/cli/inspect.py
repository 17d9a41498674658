"""``vtc inspect``: what a recipe comes to on a model, before any work, or what a finished one came to."""

from __future__ import annotations

from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from vtc.amounts import duration
from vtc.cli.image_options import image_option_flags
from vtc.cli.output import note, print_json, print_table, say, with_unit
from vtc.cli.placement_options import placement_flags
from vtc.cli.verb import suggest, tell_warnings, verb
from vtc.compressed.inspection import TEXT_TOKENS, Inspection, is_finished
from vtc.needs import Need
from vtc.plan import TokenPlan

_MIXTURES = {
    "routed": "  routed: the experts that tokens pass",
    "executed": "  executed by portable graphs and engines: all that tokens may choose",
}
"""What is counted besides where the decoder has mixtures of experts."""


@verb("Show what a recipe comes to on a model, and what each verb takes.")
@click.argument("target", metavar="MODEL|BUNDLE|COMPRESSED_DIR")
@click.option("--recipe", metavar="R", help="Shipped recipe or a YAML file (vtc ls recipes).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: stages.0.keep=64.")
@click.option(
    "--text-tokens",
    type=click.IntRange(min=0),
    help=f"Tokens of the prompt beside the image's.  [default: {TEXT_TOKENS}]",
)
@click.option(
    "--experts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Show who uses which expert instead, by statistics that vtc calibrate wrote.",
)
@click.option("--figure", type=click.Path(path_type=Path), metavar="PNG", help="With --experts: draw heat maps.")
@image_option_flags()
@placement_flags("the model in the verbs whose needs are told")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    target: str, recipe: str | None, experts: Path | None, figure: Path | None, as_json: bool, **asked: Any
) -> None:
    """Show tokens per stage and per decoder layer, FLOPs and KV bytes, before any work.

    And what each verb takes at its peak: memory that the system cannot take back, files that are read in place
    (slow where they do not fit beside it), GPU memory, disk, and about how much time on this machine as it is now.

    MODEL is 'reference' or a checkpoint directory; a bundle or a compressed model shows its own plan.
    """
    import vtc

    if experts is not None:
        if recipe is not None or asked["overrides"]:
            raise click.UsageError("--experts shows statistics in place of a plan; leave --recipe and --set out")
        _show_experts(target, experts, figure, as_json)
        return
    if figure is not None:
        raise click.UsageError("--figure goes with --experts")
    inspection = vtc.inspect(target, recipe, **asked)
    if as_json:
        print_json(inspection.to_dict())
    else:
        _print(inspection)
    tell_warnings(target)
    if not is_finished(target):
        suggest("compress", target, "--recipe", recipe or "fastervlm-25", "-o", "out/compressed")


def _show_experts(target: str, file: Path, figure: Path | None, as_json: bool) -> None:
    """Show statistics of a model's experts."""
    from vtc.api.experts import statistics_of
    from vtc.cli.expert_tables import expert_data, print_experts
    from vtc.experts.picture import draw_experts
    from vtc.writing import check_place, write_whole

    check_place(figure, file)
    found = statistics_of(target, file)
    if figure is not None:
        stream = BytesIO()
        draw_experts(found.use("pruned" if "pruned" in found.uses else "full")).save(stream, "PNG")
        write_whole(figure, stream.getvalue())
    if as_json:
        print_json(expert_data(found))
    else:
        print_experts(found)
    if figure is not None:
        note(f"drawn: {figure}")


def _print(inspection: Inspection) -> None:
    made, base = inspection.plan, inspection.baseline
    say(f"model   {inspection.model} ({inspection.family}), {made.visual_tokens_in} visual tokens an image")
    say(f"recipe  {inspection.recipe}, digest {inspection.digest[:12]}")
    if made.provisional:
        say(f"assumed until calibration: {', '.join(made.provisional)}")
    say("")
    if made.stages:
        rows = [[s.kind, s.detail, f"{s.tokens_in} -> {s.tokens_out}"] for s in made.stages]
        print_table(["stage", "what it does here", ">visual tokens"], rows)
        say("")
    print_table(["decoder layers", ">visual tokens"], _layer_rows(made, len(base.decoder_layers)))
    say("")
    rows = [["visual tokens into the decoder", str(base.keep), str(made.keep), _share(made.keep, base.keep)]]
    averages = (base.layer_average, made.layer_average)
    rows.append(["visual tokens, layer average", *(f"{x:.4g}" for x in averages), _share(averages[1], averages[0])])
    for label, before, after in (
        ("prefill FLOPs, exact", base.flops["exact"], made.flops["exact"]),
        *((label, base.flops[name], made.flops[name]) for name, label in _MIXTURES.items() if name in made.flops),
        *((f"  of it {part}", base.flops_parts[part], made.flops_parts[part]) for part in made.flops_parts),
        ("decoder FLOPs, FastV's formula", base.flops["fastv"], made.flops["fastv"]),
        ("decoder FLOPs, PyramidDrop's formula", base.flops["pyramiddrop"], made.flops["pyramiddrop"]),
    ):
        rows.append([label, with_unit(before), with_unit(after), _share(after, before)])
    rows.append(
        [
            "KV cache",
            with_unit(base.kv_bytes, "B"),
            with_unit(made.kv_bytes, "B"),
            _share(made.kv_bytes, base.kv_bytes),
        ]
    )
    title = f"one image, {made.text_tokens} text tokens"
    print_table([title, ">original", f">{inspection.recipe}", ">share"], rows)
    if inspection.needs:
        say("")
        head = ["verb", ">memory", ">files in place", ">GPU memory", ">disk", ">time, about"]
        print_table(head, [_need_row(verb, need) for verb, need in inspection.needs.items()])
    if inspection.budgets:
        say("")
        head = ["budget", ">into the decoder", ">layer average", ">prefill FLOPs, exact", ">KV cache"]
        print_table(head, [_budget_row(keep, one) for keep, one in inspection.budgets.items()])


def _need_row(verb: str, need: Need) -> list[str]:
    sizes = [with_unit(size, "B") if size else "-" for size in (need.ram, need.mapped, need.gpu, need.disk)]
    return [verb, *sizes, "not known" if need.seconds is None else duration(need.seconds)]


def _budget_row(keep: int, at: TokenPlan) -> list[str]:
    numbers = [f"{at.keep}", f"{at.layer_average:.4g}", with_unit(at.flops["exact"]), with_unit(at.kv_bytes, "B")]
    return [str(keep), *numbers]


def _layer_rows(made: TokenPlan, layers: int) -> list[list[str]]:
    """List runs of decoder layers with the same number of visual tokens, as the model numbers them."""
    seen = dict(zip(made.decoder_layers, made.decoder_visual_tokens, strict=True))
    rows = []
    for count, run in groupby(range(layers), key=seen.get):
        numbers = list(run)
        label = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        rows.append([label, "removed" if count is None else str(count)])
    return rows


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
