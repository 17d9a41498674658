"""``vtc validate``: accuracy, fidelity and the gate, against the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vtc.cli.budget_options import keep_flags
from vtc.cli.data_options import images_outside_flag
from vtc.cli.placement_options import placement_flags
from vtc.cli.runtime_options import runtime_flags
from vtc.cli.verb import suggest, tell_warnings, verb
from vtc.evaluate.baselines import BASELINES


def _baselines(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    if value in ("all", "none"):
        return BASELINES if value == "all" else ()
    names = tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in BASELINES:
            raise click.BadParameter(f"'{name}' is not one of all, none, {', '.join(BASELINES)}")
    return names


@verb("Accuracy and fidelity against the original, with a gate.")
@click.argument("target", default="none", metavar="[BUNDLE|COMPRESSED_DIR]")
@click.option(
    "--against",
    metavar="MODEL",
    help="The original to compare with: 'reference', a checkpoint or an uncompressed bundle.  "
    "[default: the checkpoint that the target was made from]",
)
@click.option(
    "--data",
    metavar="D",
    help="Questions: a directory with data.jsonl, or 'reference'.  [default: 'reference' for the reference model]",
)
@images_outside_flag
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Number of questions.  [default: 600 of 'reference', all of a directory]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws questions and resamples.")
@click.option(
    "--baselines",
    default="all",
    show_default=True,
    callback=_baselines,
    help=f"all, none, or some of {','.join(BASELINES)}.",
)
@click.option(
    "--min-retention",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.95,
    show_default=True,
    help="Gate: retention.",
)
@click.option("--min-top1", type=click.FloatRange(0, 1), help="Gate: top-1 agreement of next tokens.")
@click.option("--max-kld", type=click.FloatRange(0), help="Gate: mean KL divergence of next tokens, in nats.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Questions at a time.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Longest answer.")
@click.option(
    "--max-skipped",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of the questions that may be left out because they cannot be asked; one may in any case but 0.",
)
@keep_flags("each in turn, in one table")
@runtime_flags()
@placement_flags("the original, its baselines and a compressed model")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to a JSON file.")
def command(
    target: str,
    min_retention: float,
    min_top1: float | None,
    max_kld: float | None,
    as_json: bool,
    out: Path | None,
    **asked: Any,
) -> None:
    r"""Judge a bundle or a compressed model against the original, on the same questions.

    Without a target (or with 'none') only the original is measured. The exit code is 0 if the gate passes, 3
    if it fails and 5 if there is not enough data to say. An interrupted run is taken up again by the same command.
    Where the target has several budgets, the gate is held against each, or with --entropy against the policy.

    \b
    vtc validate out/bundle --against reference
    vtc validate out/bundle --against reference --entropy 0.5
    vtc validate out/bundle --against llava-1.5-7b-hf --data gqa --samples 2000 --min-retention 0.98
    """
    import vtc
    from vtc.cli.report import print_report, validate_tables
    from vtc.progress import progress
    from vtc.writing import check_place

    check_place(out)
    thresholds = vtc.Thresholds(min_retention, min_top1, max_kld)
    with progress() as tell:
        report = vtc.validate(None if target == "none" else target, thresholds=thresholds, progress=tell, **asked)
    print_report(report, validate_tables, as_json, out)
    tell_warnings(target)
    _leave(report["gate"])
    if target != "none":
        given = {name: asked[name] for name in ("against", "keep") if isinstance(asked[name], str | int)}
        suggest("bench", target, *(word for name, value in given.items() for word in (f"--{name}", str(value))))


def _leave(gate: dict[str, Any]) -> None:
    """Tell the verdict by the exit code; the reasons stand in the report."""
    from vtc.cli.report import named
    from vtc.errors import GateFailed, GateInconclusive

    names = ", ".join(named(check) for check in gate["checks"] if check["status"] == gate["status"])
    if gate["status"] == "fail":
        raise GateFailed(f"gate failed: {names}")
    if gate["status"] == "inconclusive":
        raise GateInconclusive(f"gate inconclusive: {names}; give more --data or --samples")
