"""Tables of docs/experts.md; apart from the study itself, so that the page can be written without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.studies.pages import Results, Tables, percent, points, table

METHODS = ("modality", "contiguous", "random", "balanced", "eplb", "solved")


def _trained(results: Results) -> str:
    body = []
    for name, row in results["trained"].items():
        seeds = row.get("by_seed", [])
        compared = bool(seeds) and name != "load balance alone"
        ahead = ", ".join(f"{100 * one:+.2f}" for one in row["ahead_by_seed"]) if compared else ""
        shares = ", ".join(percent(one, 2) for one in seeds)
        body.append([name, percent(row["accuracy"], 2), shares, points(row, 2) if compared else "", ahead])
    head = ["", "accuracy, 2,400 questions", "by seed", "against load balance alone, points", "by seed"]
    return table(head, body)


def _by_layer(results: Results, key: str, form: str = "") -> str:
    rows = {name: row[key][form] if form else row[key] for name, row in results["trained"].items() if key in row}
    body = [[name, *(f"{value:.2f}" for value in values)] for name, values in rows.items()]
    return table(["layer", *map(str, range(len(body[0]) - 1))], body)


def _placed(results: Results, devices: str) -> str:
    body = []
    for name, found in results["placed"].items():
        for homes in ("sample", "modality"):
            for method in METHODS:
                row = found[devices]["counted"][f"{method} / {homes}"]
                shares = [percent(row[part]["tokens_with_any_remote_expert"]) for part in ("all", "visual", "text")]
                more = [percent(row["all"]["remote_calls"]), f"{row['all']['load_max_over_mean']:.2f}"]
                body.append([name, homes, method, *shares, *more])
    head = ["trained with", "homes by", "placement", "tokens with any remote expert", "of visual", "of text"]
    return table([*head, "remote token-expert pairs", "load max/mean"], body, left=3)


def _measured(results: Results) -> Mapping[str, Any]:
    """Mixtures whose placements were run by processes."""
    return {name: found for name, found in results["placed"].items() if "measured" in found["2"]}


def _times(results: Results, devices: str) -> str:
    body = []
    for name, found in _measured(results).items():
        runs = [run for run in found[devices]["measured"]["runs"] if not run["fitted"]]
        most = max(run["prompts"] for run in runs)
        for run in runs:
            if run["prompts"] == most:
                body.append(
                    [name, run["placement"], _milliseconds(run["measured"][1]), _milliseconds(run["predicted"])]
                )
                body[-1] += [f"{100 * run['error']:+.1f} %", f"{run['bytes'] / 1e6:.1f}"]
    return table(
        ["trained with", "placement / homes", "measured, ms", "predicted, ms", "error", "MB sent"], body, left=2
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def _simulator(results: Results) -> str:
    body = []
    for name, found in _measured(results).items():
        for devices, one in found.items():
            error = one["measured"]["error"]
            shares = [percent(error[key]) for key in ("median", "largest", "within_10_percent")]
            body.append([name, devices, str(error["runs"]), *shares])
    return table(["trained with", "devices", "runs", "median error", "largest error", "runs within 10 %"], body)


def _authors(results: Results) -> str:
    def reduced(name: str, method: str) -> Mapping[str, Any]:
        return results["placed"][name]["2"]["counted"][f"{method} / modality"]  # type: ignore[no-any-return]

    before, after = reduced("load balance alone", "contiguous"), reduced("SMoES, attention", "modality")

    def row(words: str, part: str, paper: str) -> list[str]:
        shares = [percent(one[part]["tokens_with_any_remote_expert"]) for one in (before, after)]
        return [words, *shares, paper]

    return table(
        ["tokens with any remote expert, 2 devices", "before", "after", "SMoES (paper): OLMoE on two Orin boards"],
        [row("visual", "visual", "97.7 % to 15.0 %"), row("all", "all", "98.0 % to 31.1 %")],
    )


def _retention(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{percent(row['retention'])} [{percent(low)}, {percent(high)}]"


def _half(results: Results) -> str:
    names = list(results["fewer"])
    rows = list(results["fewer"][names[0]]["half"])
    body = []
    for method in rows:
        line = [method]
        for name in names:
            row = results["fewer"][name]["half"][method]
            line.append(_retention(row))
            line.append(points(row["behind"]) if "behind" in row else "")
        body.append(line)
    head = ["4 of 8 experts left"]
    for name in names:
        head += [f"retention, {name}", "modality-aware REAP is above it by, points"]
    return table(head, body)


def _two(results: Results) -> str:
    found = list(results["fewer"].values())
    body = [[method, *(_retention(rows["two"][method]) for rows in found)] for method in found[0]["two"]]
    return table(["2 of 8 experts left", *results["fewer"]], body)


def _quarter(results: Results) -> str:
    names = list(results["fewer"])
    rows = results["fewer"][names[0]]["quarter"]
    body = [
        [method, *(percent(results["fewer"][name]["quarter"][method]["retention"]) for name in names)]
        for method in rows
    ]
    return table(["6 of 8 experts left", *names], body)


TABLES: Tables = {
    "trained": ("trained", _trained),
    "layers": ("trained", lambda results: _by_layer(results, "specialisation")),
    "loads": ("trained", lambda results: _by_layer(results, "load_max_over_mean")),
    "fusion": ("trained", lambda results: _by_layer(results, "soft_text_of_a_text_token", "attention")),
    "placed_two": ("placed", lambda results: _placed(results, "2")),
    "placed_four": ("placed", lambda results: _placed(results, "4")),
    "times_two": ("placed", lambda results: _times(results, "2")),
    "times_four": ("placed", lambda results: _times(results, "4")),
    "simulator": ("placed", _simulator),
    "authors": ("placed", _authors),
    "half": ("fewer", _half),
    "two": ("fewer", _two),
    "quarter": ("fewer", _quarter),
}
"""Name of a table to the part of the results that it is made from, and its maker."""
