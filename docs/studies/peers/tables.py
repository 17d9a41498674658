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
    figures = {
        f"prefill_{SHORT}": f"prefill {SHORT}",
        f"prefill_{LONG}": f"prefill {LONG}",
        f"tpot_{SHORT}": f"a token at {SHORT}",
        f"tpot_{LONG}": f"a token at {LONG}",
    }
    body = [
        [kind, *compared]
        for kind, ours, theirs in KINDS
        for figure, what in figures.items()
        if (compared := _compared(results, "decoder", (ours, theirs), figure, what))
    ]
    return _ratio_table(body)


def pruned_ratios(results: Results) -> str:
    """The same of the Qwen2-VL shape."""
    ends = dict.fromkeys(f"; {name.split('; ')[1]}" for name, _ in _rows_of(results, "cdpruner"))
    body = [
        [kind, *compared]
        for end in ends
        for kind, ours, theirs in KINDS
        if theirs[0].startswith("OpenVINO")
        for figure in ("ttft_", "tpot_")
        if (compared := _compared(results, "cdpruner", (ours, theirs), figure, f"{figure[:4].upper()}{end}", end))
    ]
    return _ratio_table(body) if body else f"Not measured yet: `{COMMAND} --table cdpruner` fills this."


def _ratio_table(body: list[list[str]]) -> str:
    head = ["weights", "ms", "our best", "", "the peer's", "", "our speed / theirs", "by least times"]
    return table(head, body, left=3)


def _compared(
    results: Results, which: str, pair: tuple[tuple[str, ...], tuple[str, ...]], figure: str, what: str, end: str = ""
) -> list[str]:
    """What both need, and how much faster ours is; nothing where one was not measured."""
    ours, theirs = (_figures(results, which, beginnings, figure, end) for beginnings in pair)
    if not ours or not theirs:
        return []
    (name, best), (rival, peer) = (min(found.items(), key=lambda one: one[1]["median"]) for found in (ours, theirs))
    names = name.removesuffix(end), rival.removesuffix(end)
    speed = peer["median"] / best["median"]
    least = min(one["min"] for one in theirs.values()) / min(one["min"] for one in ours.values())
    medians = f"{best['median']:,.1f}", f"{peer['median']:,.1f}"
    return [what, names[0], medians[0], names[1], medians[1], f"**{speed:.2f}**", f"{least:.2f}"]


def _figures(
    results: Results, which: str, beginnings: tuple[str, ...], figure: str, end: str
) -> dict[str, Mapping[str, float]]:
    """A figure, or the one that begins so, of contestants whose names begin and end so."""
    return {
        name: values
        for name, row in _rows_of(results, which)
        if name.startswith(beginnings) and name.endswith(end)
        for key, values in row["figures"].items()
        if key == figure or (figure.endswith("_") and key.startswith(figure))
    }


def _rows_of(results: Results, which: str) -> list[tuple[str, Row]]:
    return [(name, row) for name, row in results["contestants"].items() if row["table"] == which and "figures" in row]


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
        ["processor", _processor(found, results["threads"])],
        ["of its instructions", ", ".join(found["flags"])],
        ["memory", f"{found['memory_gib']} GiB"],
        ["ours", ", ".join(f"{name} {number}" for name, number in results["ours"].items())],
        ["peers", ", ".join(f"{name} {number}" for name, number in results.get("peers", {}).items())],
    ]
    return table(["", ""], rows, left=2)


def _processor(found: Mapping[str, Any], threads: int) -> str:
    family = f" (family, model, stepping {found['generation']})" if found.get("generation") else ""
    return f"{found['processor']}{family}, {found['cores']} cores, {threads} threads used"


def pages(results: Results) -> str:
    """Decoders in two sizes of pages."""

    def columns(row: Row) -> list[str]:
        names = [f"tpot_{length}" for length in (SHORT, LONG)]
        least = [f"{row['figures'][name]['min']:,.1f}" for name in names]
        return [*(_figure(row, name, 1) for name in names), *least, _figure(row, "load", 1, 1e-3)]

    head = ["", f"a token at {SHORT}, ms", f"a token at {LONG}, ms", f"least at {SHORT}", f"least at {LONG}", "load, s"]
    return table(head, _rows(results, "pages", columns, 5))


TABLES: dict[str, Tables] = {
    "peers.json": {
        "peers_machine": ("contestants", machine),
        "peers_ratios": ("contestants", ratios),
        "peers_decoder": ("contestants", decoder),
        "peers_image": ("contestants", _whole("image")),
        "peers_cdpruner": ("contestants", _whole("cdpruner")),
        "peers_cdpruner_ratios": ("contestants", pruned_ratios),
        "peers_overhead": ("contestants", overhead),
        "peers_cannot": ("contestants", cannot),
    },
    "peers_pages.json": {"pages_machine": ("contestants", machine), "pages": ("contestants", pages)},
}
"""For each file of results its tables: name to the part of the results that it is made from, and its maker."""
