"""Reports for people (tables) and for programs (JSON files), both from the same dictionary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from vtc.cli.output import say
from vtc.shown import line, shown
from vtc.writing import write_whole

_SKIPPED_SHOWN = 5

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def to_json(report: Mapping[str, Any]) -> str:
    """A report as JSON text; a figure that is not a number is an error, not a NaN."""
    return json.dumps(report, indent=2, allow_nan=False)


def write_json(report: Mapping[str, Any], path: Path) -> None:
    """Write a report so that the file is either whole or not there.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    write_whole(path, f"{to_json(report)}\n".encode())


def _plain(text: object) -> str:
    """Write foreign text in a table or a line of rich's, where brackets would be its markup."""
    return escape(shown(text))


def percent(value: float | None) -> str:
    """A share as percent with one decimal; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def _span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{percent(interval[0])}, {percent(interval[1])}]"


def validate_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """What ``vtc validate`` shows: accuracy by capability, the gate, fidelity, and what the words mean."""
    if "budgets" in report:
        return _budgets_tables(report)
    name, result = next(iter(report["results"].items()))
    alone = not report["fidelity"]
    parts: list[RenderableType] = [_accuracy_table(report, name, result, alone)]
    parts += [f"{_plain(name)} was run as {_plain(result['run_as'])}"] if result.get("run_as") else []
    parts += _data_lines(report)
    parts += [f"baseline {name} is left out: {escape(line(why))}" for name, why in report.get("left_out", {}).items()]
    if not alone:
        parts += _retention_lines(name, result)
        parts += _passes_lines(name, result)
        parts += _evidence_lines(result["evidence"])
        parts += _fidelity_lines(report["fidelity"])
        parts += _gate_lines(report["gate"])
    return parts


def _budgets_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """A row for each budget, accuracy with a column for each, and the gates."""
    parts = report["budgets"]
    results = {keep: next(iter(part["results"].values())) for keep, part in parts.items()}
    table = _table("each budget beside the original, %")
    averages = {keep: f"{result['layer_average']:g}" for keep, result in results.items()}
    average = ("layer average",) if any(keep != one for keep, one in averages.items()) else ()
    for title in ("budget", *average, "accuracy", "retention", "same top token", "KL, nats", "gate"):
        left, whole = title in ("budget", "gate"), title in ("retention", "gate")
        table.add_column(title, justify="left" if left else "right", no_wrap=whole)
    for keep, part in parts.items():
        result, fidelity = results[keep], part["fidelity"]
        retention = f"[bold]{percent(result['retention'])}[/]{escape(_span(result['ci95']))}"
        figures = [averages[keep]] if average else []
        figures += [percent(result["accuracy"]), retention, percent(fidelity["top1_agreement"])]
        table.add_row(keep, *figures, f"{fidelity['kld_mean']:.3g}", _coloured(part["gate"]["status"]))
    run_as = next(iter(results.values())).get("run_as")
    left_out = {(name, why) for part in parts.values() for name, why in part["left_out"].items()}
    return [
        table,
        _accuracies_table(report["original"], parts, results),
        *([f"run as {_plain(run_as)}"] if run_as else []),
        *_data_lines(report),
        *(f"baseline {name} is left out: {escape(line(why))}" for name, why in sorted(left_out)),
        *_gate_lines(report["gate"]),
    ]


def _accuracies_table(original: Mapping[str, Any], parts: Mapping[str, Any], results: Mapping[str, Any]) -> Table:
    table = _table("accuracy at each budget, and of baselines with as many tokens, %")
    for title in ("capability", "n", f"original ({original['visual_tokens']})", *results):
        table.add_column(title, justify="left" if title == "capability" else "right")
    first = next(iter(results.values()))
    for category, part in first["by_capability"].items():
        cells = [percent(one["by_capability"][category]["accuracy"]) for one in results.values()]
        table.add_row(_plain(category), str(part["n"]), percent(original["by_capability"][category]), *cells)
    table.add_section()
    cells = [percent(one["accuracy"]) for one in results.values()]
    table.add_row("all", str(first["n"]), percent(original["accuracy"]), *cells, style="bold", end_section=True)
    for name in dict.fromkeys(name for part in parts.values() for name in part["baselines"]):
        rival = [part["baselines"].get(name) for part in parts.values()]
        table.add_row(_plain(name), "", "", *("-" if one is None else percent(one["accuracy"]) for one in rival))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _accuracy_table(report: Mapping[str, Any], name: str, result: Mapping[str, Any], alone: bool) -> Table:
    columns: list[tuple[str, Mapping[str, Any]]] = [("original", report["original"])]
    if not alone:
        columns.append((name, result))
    columns += report["baselines"].items()
    table = _table("accuracy, %")
    table.add_column("capability")
    table.add_column("n", justify="right")
    for title, _ in columns:
        table.add_column(_plain(title), justify="right", style="bold" if title == name else None, overflow="fold")
    for category, part in result["by_capability"].items():
        cells = [_accuracy(entry["by_capability"][category]) for _, entry in columns]
        table.add_row(_plain(category), str(part["n"]), *cells)
    table.add_section()
    table.add_row("all", str(result["n"]), *(_accuracy(entry) for _, entry in columns), style="bold")
    retention = [
        percent(entry.get("retention")) if entry is not report["original"] else "100.0" for _, entry in columns
    ]
    table.add_row("retention", "", *retention)
    table.add_row("visual tokens", "", *(f"{entry['visual_tokens']:.4g}" for _, entry in columns))
    if "latency_ms" in result:
        for share in ("p50", "p95"):
            known = [entry.get("latency_ms", {}).get(share) for _, entry in columns]
            table.add_row(f"{share}, ms", "", *("-" if ms is None else f"{ms:.1f}" for ms in known))
    average = result["layer_average"]
    if not alone and average is not None and average != result["visual_tokens"]:
        averages = [f"{entry.get('layer_average') or entry['visual_tokens']:g}" for _, entry in columns]
        table.add_row("layer average", "", *averages)
    return table


def _accuracy(entry: Mapping[str, Any] | float) -> str:
    return percent(entry if isinstance(entry, float) else entry["accuracy"])


def _data_lines(report: Mapping[str, Any]) -> list[str]:
    data = report["data"]
    chance = "" if data["chance"] is None else f"; guessing without the image scores {percent(data['chance'])} %"
    lines = [f"{data['items']} questions about {data['images']} images of {_plain(data['name'])}{chance}"]
    skipped = data.get("skipped", [])
    if skipped:
        lines.append(f"{len(skipped)} more could not be asked and are left out:")
    for item in skipped[:_SKIPPED_SHOWN]:
        place = f"{item['where']}: " if item["where"] else ""
        lines.append(_plain(f"  {place}item '{item['id']}': {item['why']}"))
    if len(skipped) > _SKIPPED_SHOWN:
        lines.append(f"  and {len(skipped) - _SKIPPED_SHOWN} more, which the JSON report names")
    return lines


def _retention_lines(name: str, result: Mapping[str, Any]) -> list[str]:
    return [
        f"retention {percent(result['retention'])} %{_span(result['ci95'])}: accuracy of {_plain(name)} / "
        f"accuracy of the original, with its 95 % interval; "
        f"{result['lost']} answers lost, {result['gained']} gained"
    ]


def _passes_lines(name: str, result: Mapping[str, Any]) -> list[str]:
    if "answered_at" not in result:
        return []
    at = ", ".join(f"{count} at {keep}" for keep, count in result["answered_at"].items() if count)
    return [
        f"{_plain(name)} answered {at}: {result['passes']:.3g} passes and {result['visual_tokens']:.4g} visual "
        f"tokens a question, {result['tokens_answered']:.4g} of them in the pass that answered",
        "ms: one question at a time, preprocessing to last token, model after model; vtc bench times budgets in turns",
    ]


def _evidence_lines(evidence: Mapping[str, Any] | None) -> list[str]:
    if evidence is None:
        return []
    return [
        f"evidence: {percent(evidence['recall'])} % of the patches that the answers follow from are kept "
        f"(a random choice: {percent(evidence['recall_of_random'])} %); in {evidence['lost_unseen']} of the "
        f"{evidence['lost']} lost answers some of it was dropped whole"
    ]


def _fidelity_lines(fidelity: Mapping[str, Any]) -> list[str]:
    return [
        f"same answer {percent(fidelity['answer_agreement'])} %; on the original's answers, token by token: "
        f"same top token {percent(fidelity['top1_agreement'])} %{_span(fidelity['top1_ci95'])}, "
        f"KL divergence {fidelity['kld_mean']:.4g} nats on average, "
        f"{fidelity['kld_p99']:.4g} at the 99th percentile"
    ]


def _gate_lines(gate: Mapping[str, Any]) -> list[str]:
    lines = [f"gate: {_coloured(gate['status'])}"]
    for check in gate["checks"]:
        value = "-" if check["value"] is None else f"{check['value']:.4g}"
        lines.append(f"  {_coloured(check['status'])}  {named(check)} {value}: {escape(line(check['reason']))}")
    return lines


def named(check: Mapping[str, Any]) -> str:
    """What a check is of: a figure, and the budget where there are several."""
    return f"{check['name']} at {check['budget']}" if "budget" in check else str(check["name"])


def _coloured(status: str) -> str:
    return f"[{_COLOURS[status]}]{status}[/]"


def bench_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """Lay out what ``vtc bench`` shows: a column for each model, the speedup, and how it was measured."""
    table = _table("median (90th percentile)")
    table.add_column("figure")
    for run in report["runs"]:
        table.add_column(_plain(run["name"]), justify="right", overflow="fold")
    for figure, cell in _FIGURES.items():
        table.add_row(figure, *(cell(run) for run in report["runs"]))
    parts: list[RenderableType] = [table]
    faster = [run for run in report["runs"] if "speedup" in run]
    if len(faster) == 1:
        parts.append(_speedup_line(report["speedup"]))
    elif faster:
        parts.append(_speedups_table(faster))
    if "shape" in report:
        parts = [_shape_line(report["shape"]), *parts, _prediction_table(report), *_selection_line(report)]
    parts += [f"{name}: {escape(line(text))}" for name, text in report["protocol"]["terms"].items()]
    return parts


def _shape_line(shape: Mapping[str, Any]) -> str:
    summary = escape(line(shape["summary"]))
    return f"{summary}; random weights, {shape['text_tokens']} text tokens, {shape['backend']} backend"


def _prediction_table(report: Mapping[str, Any]) -> Table:
    table = _table("beside what the plan predicts")
    for title in ("figure", "predicted", "measured", "measured / predicted"):
        table.add_column(title, justify="left" if title == "figure" else "right")
    for name, label in (("prefill", "prefill speedup"), ("ttft", "TTFT speedup")):
        entry = report["prediction"]["speedup"][name]
        table.add_row(label, f"{entry['predicted']:.2f}x", f"{entry['measured']:.2f}x", f"{entry['reached']:.2f}")
    for run, predicted in zip(report["runs"], report["prediction"]["runs"], strict=True):
        name = _plain(run["name"])
        pairs = [("KV cache, MB", predicted["kv_bytes"] / 1e6, run["kv_bytes"] / 1e6)]
        if run["peak_memory_mb"] is not None:
            pairs.append(("weights, peak memory, MB", predicted["weight_bytes"] / 2**20, run["peak_memory_mb"]))
        for label, before, after in pairs:
            table.add_row(f"{name}: {label}", f"{before:.4g}", f"{after:.4g}", f"{after / before:.2f}")
    return table


def _selection_line(report: Mapping[str, Any]) -> list[str]:
    selection = report["selection"]
    return [
        f"selection: {selection['encoder_ms'] + selection['decoder_ms']:.2f} ms, "
        f"{100 * selection['share_of_original_ttft']:.2g} % of the original's TTFT"
    ]


def _timing(entry: Mapping[str, float | None]) -> str:
    if entry["p50"] is None:
        return "-"
    return f"{entry['p50']:.2f} ({entry['p90']:.2f})"


_FIGURES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "run as": lambda run: run.get("run_as") or "PyTorch",
    "visual tokens": lambda run: str(run["visual_tokens"]),
    "prefill sees, tokens": lambda run: " → ".join(f"{length:g}" for length in run["segment_lengths"]),
    "vision, ms": lambda run: _timing(run["vision_ms"]),
    "prefill, ms": lambda run: _timing(run["prefill_ms"]),
    "TTFT, ms": lambda run: _timing(run["ttft_ms"]),
    "TPOT, ms": lambda run: _timing(run["tpot_ms"]),
    "end to end, ms": lambda run: _timing(run["e2e_ms"]),
    "peak memory, MB": lambda run: "-" if run["peak_memory_mb"] is None else f"{run['peak_memory_mb']:.0f}",
    "GFLOPs": lambda run: f"{run['flops'] / 1e9:.3g}",
}
"""Rows of the table of ``vtc bench``."""


_SPEEDUPS = {"prefill": "prefill", "ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}


def _speedup_line(speedup: Mapping[str, Any]) -> str:
    parts = [f"{label} {_times(speedup, name)}" for name, label in _SPEEDUPS.items() if speedup[name] is not None]
    return "speedup: " + ", ".join(parts)


def _speedups_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("speedup [95 % interval]")
    table.add_column("model")
    for label in _SPEEDUPS.values():
        table.add_column(label, justify="right")
    for run in runs:
        table.add_row(_plain(run["name"]), *(escape(_times(run["speedup"], name)) for name in _SPEEDUPS))
    return table


def _times(speedup: Mapping[str, Any], name: str) -> str:
    if speedup[name] is None:
        return "-"
    span = speedup["ci95"][name]
    return f"{speedup[name]:.2f}x" + (f" [{span[0]:.2f}, {span[1]:.2f}]" if span else "")


def print_report(
    report: Mapping[str, Any],
    tables: Callable[[Mapping[str, Any]], Sequence[RenderableType]],
    as_json: bool,
    out: Path | None,
) -> None:
    """Print a report, and write it to a file if there is to be one.

    Parameters
    ----------
    report : mapping
    tables : callable
        Lays it out for people: :func:`validate_tables` or :func:`bench_tables`.
    as_json : bool
        Whether it is printed as JSON.
    out : Path or None
        The file.
    """
    if as_json:
        say(to_json(report))
    else:
        print_tables(tables(report))
    if out is not None:  # last: what was measured is told even where it cannot be written
        write_json(report, out)


def print_tables(parts: Sequence[RenderableType]) -> None:
    """Print tables and lines; in a pipe, neither is wrapped or cut."""
    console = Console(emoji=False)
    if not console.is_terminal:
        console = Console(emoji=False, width=200)
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, str) and not console.is_terminal)
