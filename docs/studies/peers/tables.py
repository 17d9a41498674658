"""The tables of ``docs/performance.md`` that are made of the peers' results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from docs.studies.pages import Results, Tables, table
from docs.studies.peers.contestants import CANNOT
from docs.studies.peers.settings import LONG, SHORT

Row = Mapping[str, Any]
REASON_LENGTH = 90
COMMAND = "python -m docs.studies.peers --work DIR"


def _figure(row: Row, name: str, digits: int = 0, scale: float = 1.0) -> str:
    """A median with its quartiles."""
    figure = row["figures"].get(name)
    if figure is None:
        return ""
    low, middle, high = (f"{scale * figure[key]:,.{digits}f}" for key in ("q1", "median", "q3"))
    return f"{middle} [{low}, {high}]"


def _rows(results: Results, which: str, columns: Callable[[Row], list[str]], count: int) -> list[list[str]]:
    found = []
    for name, row in results["contestants"].items():
        if row["table"] != which:
            continue
        if "failed" in row:
            reason = row["failed"].replace("|", "\\|")[:REASON_LENGTH]
            found.append([name, f"not measured: {reason}", *[""] * (count - 1)])
        else:
            found.append([name, *columns(row)])
    return found


def _own(row: Row) -> list[str]:
    """Load time, peak memory, size."""
    size = f"{row['facts']['bytes'] / 1e6:,.0f}" if "bytes" in row["facts"] else ""
    return [_figure(row, "load", 1, 1e-3), f"{row['figures']['peak_mb']['median']:,.0f}", size]


def decoder(results: Results) -> str:
    """The decoder alone."""

    def columns(row: Row) -> list[str]:
        times = [_figure(row, f"prefill_{length}") for length in (SHORT, LONG)]
        return [*times, *(_figure(row, f"tpot_{length}", 1) for length in (SHORT, LONG)), *_own(row)]

    head = ["", f"prefill {SHORT}, ms", f"prefill {LONG}, ms", f"a token at {SHORT}, ms", f"a token at {LONG}, ms"]
    return table([*head, "load, s", "peak, MiB", "files, MB"], _rows(results, "decoder", columns, 7))


def _whole(which: str) -> Callable[[Results], str]:
    def columns(row: Row) -> list[str]:
        figures = row["figures"]
        first = next(name for name in figures if name.startswith("ttft_"))
        token = first.replace("ttft", "tpot")
        return [
            _figure(row, "preprocess"),
            _figure(row, "vision"),
            _figure(row, first),
            _figure(row, token, 1),
            *_own(row),
        ]

    def rows(results: Results) -> str:
        head = ["", "before, ms", "vision encoder, ms", "TTFT, ms", "TPOT, ms", "load, s", "peak, MiB", "files, MB"]
        body = _rows(results, which, columns, 7)
        return table(head, body) if body else f"Not measured yet: `{COMMAND} --table {which}` fills this."

    return rows


def overhead(results: Results) -> str:
    """What a step takes beside the runs of its graphs."""
    body = []
    for name, row in results["contestants"].items():
        figures = row.get("figures", {})
        if row["table"] == "decoder" and f"overhead_{SHORT}" in figures:
            body.append([name, *(_figure(row, f"overhead_{length}", 2, 100) for length in (SHORT, LONG))])
    return table(["", f"at {SHORT} tokens, %", f"at {LONG} tokens, %"], body)


def cannot(_: Results) -> str:
    """What a peer cannot do."""
    return table(["peer", "cannot", "why, and what is compared instead"], CANNOT, left=3)


def ratios(results: Results) -> str:
    """Our best against the peers' best, of each kind of weights, by medians and by least times."""
    body = []
    for kind, ours, theirs in KINDS:
        for name in (f"prefill_{SHORT}", f"prefill_{LONG}", f"tpot_{SHORT}", f"tpot_{LONG}"):
            best, peer = _best(results, ours, name), _best(results, theirs, name)
            if best is None or peer is None:
                continue
            what = name.replace("prefill_", "prefill ").replace("tpot_", "a token at ")
            told = [best[0], f"{best[1]:,.1f}", peer[0], f"{peer[1]:,.1f}", f"**{peer[1] / best[1]:.2f}**"]
            least = _least(results, theirs, name) / _least(results, ours, name)
            body.append([kind, what, *told, f"{least:.2f}"])
    head = ["weights", "ms", "our best", "", "the peer's", "", "our speed / theirs", "by least times"]
    return table(head, body, left=3)


def _figures(results: Results, beginnings: tuple[str, ...], figure: str, which: str) -> list[tuple[str, float]]:
    return [
        (name, row["figures"][figure][which])
        for name, row in results["contestants"].items()
        if row["table"] == "decoder" and name.startswith(beginnings) and "figures" in row
    ]


def _best(results: Results, beginnings: tuple[str, ...], figure: str) -> tuple[str, float] | None:
    return min(_figures(results, beginnings, figure, "median"), key=lambda row: row[1], default=None)


def _least(results: Results, beginnings: tuple[str, ...], figure: str) -> float:
    return min(least for _, least in _figures(results, beginnings, figure, "min"))


KINDS = (
    ("float32", ("vtc fp32",), ("ONNX Runtime GenAI fp32",)),
    ("float32", ("vtc fp32",), ("OpenVINO GenAI, fp32 weights, f32",)),
    ("bfloat16", ("vtc fp32", "vtc bf16"), ("OpenVINO GenAI, fp32 weights, bf16",)),
    ("4 bits", ("vtc q4",), ("ONNX Runtime GenAI int4",)),
    ("4 bits", ("vtc q4",), ("OpenVINO GenAI, int4",)),
)
"""What is compared: kind of weights, names of ours, names of theirs."""


def machine(results: Results) -> str:
    """What it was measured on."""
    found = results["machine"]
    rows = [
        ["processor", f"{found['processor']}, {found['cores']} cores, {results['threads']} threads used"],
        ["of its instructions", ", ".join(found["flags"])],
        ["memory", f"{found['memory_gib']} GiB"],
        ["ours", ", ".join(f"{name} {number}" for name, number in results["ours"].items())],
        ["peers", ", ".join(f"{name} {number}" for name, number in results.get("peers", {}).items())],
    ]
    return table(["", ""], rows, left=2)


TABLES: Tables = {
    "peers_machine": ("contestants", machine),
    "peers_ratios": ("contestants", ratios),
    "peers_decoder": ("contestants", decoder),
    "peers_image": ("contestants", _whole("image")),
    "peers_cdpruner": ("contestants", _whole("cdpruner")),
    "peers_overhead": ("contestants", overhead),
    "peers_cannot": ("contestants", cannot),
}
"""Name of a table to the part of the results that it is made from, and its maker."""
