"""``vtc validate``: accuracy, fidelity and the gate, against the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vtc.cli.running import backend_options
from vtc.evaluate.contestants import BASELINES
from vtc.runtime import BACKENDS


def _baselines(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    if value in ("all", "none"):
        return BASELINES if value == "all" else ()
    names = tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in BASELINES:
            raise click.BadParameter(f"'{name}' is not one of all, none, {', '.join(BASELINES)}")
    return names


@click.command(short_help="Accuracy and fidelity against the original, with a gate.")
@click.argument("target", default="none", metavar="[BUNDLE|COMPRESSED_DIR]")
@click.option(
    "--against",
    "against",
    metavar="MODEL",
    help="The original: 'reference', a checkpoint or an uncompressed bundle.",
)
@click.option(
    "--data",
    default="reference",
    show_default=True,
    metavar="DIR",
    help="Directory with data.jsonl, or 'reference'.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Number of questions.  [default: 600 of 'reference', all of a DIR]",
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
@backend_options()
@click.option("--provider", help="ONNX Runtime provider for a bundle.")
@click.option("--precision", help="Which of a bundle's precisions.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads for a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to a JSON file."
)
def command(
    target: str,
    against: str | None,
    data: str,
    limit: int | None,
    seed: int,
    baselines: tuple[str, ...],
    min_retention: float,
    min_top1: float | None,
    max_kld: float | None,
    batch_size: int,
    max_new_tokens: int,
    backend: str | None,
    engines: Path | None,
    provider: str | None,
    precision: str | None,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    r"""Judge a bundle or a compressed model against the original, on the same questions.

    Without a target (or with 'none') only the original is measured. The exit code is 0 if the gate passes, 3
    if it fails and 5 if there is not enough data to say.

    \b
    vtc validate out/bundle --against reference
    vtc validate out/bundle --against llava-1.5-7b-hf --data gqa --limit 2000 --min-retention 0.98
    """
    from vtc.cli.report import print_tables, to_json, validate_tables, write_json
    from vtc.data.datasets import load_dataset
    from vtc.evaluate.contestants import Session, open_comparison
    from vtc.evaluate.validate import Effort, Thresholds, validate
    from vtc.progress import progress

    dataset = load_dataset(data, limit, seed)
    with progress() as show:
        session = Session(provider, precision, threads, backend or BACKENDS[0], engines)
        field = open_comparison(None if target == "none" else target, against, baselines, seed, session)
        report = validate(
            field.original,
            field.compressed,
            field.baselines,
            dataset,
            limits=Thresholds(min_retention, min_top1, max_kld),
            seed=seed,
            effort=Effort(batch_size, max_new_tokens),
            progress=show,
            left_out=field.left_out,
        )
    if output is not None:
        write_json(report, output)
    if as_json:
        click.echo(to_json(report))
    else:
        print_tables(validate_tables(report))
    _leave(report["gate"])


def _leave(gate: dict[str, Any]) -> None:
    from vtc.errors import GateFailed, GateInconclusive

    open_or_failed = [check for check in gate["checks"] if check["status"] == gate["status"]]
    reasons = "; ".join(f"{check['name']}: {check['reason']}" for check in open_or_failed)
    if gate["status"] == "fail":
        raise GateFailed(f"gate failed: {reasons}")
    if gate["status"] == "inconclusive":
        raise GateInconclusive(f"gate inconclusive: {reasons}")
