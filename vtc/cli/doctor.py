"""``vtc doctor``: what is installed, what works here, what to install for the rest."""

from __future__ import annotations

import platform
from typing import Any

import click

from exporters.available import entries
from vtc.cli.output import print_json, print_table, say
from vtc.cli.verb import suggest, verb
from vtc.runtime.versions import package_version, vtc_version

PACKAGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("numpy", "base", ("numpy",)),
    ("pillow", "base", ("pillow",)),
    ("tokenizers", "base", ("tokenizers",)),
    ("jinja2", "base", ("jinja2",)),
    ("onnxruntime", "base", ("onnxruntime-gpu", "onnxruntime")),
    ("safetensors", "base", ("safetensors",)),
    ("torch", "compress", ("torch",)),
    ("transformers", "compress", ("transformers",)),
    ("onnx", "compress", ("onnx",)),
    ("onnxscript", "compress", ("onnxscript",)),
    ("tensorrt_rtx", "rtx", ("tensorrt_rtx",)),
    ("tensorrt", "tensorrt", ("tensorrt",)),
    ("openvino", "openvino", ("openvino",)),
    ("cuda-python", "rtx", ("cuda-python", "cuda-bindings")),
)
"""Package, the extra that installs it, and the distributions that provide it."""

CAPABILITIES = (
    ("run, bench and validate bundles", "base"),
    ("compress and export", "compress"),
)


_CAN = {"runtime": "run on ", "engines": "build engines for "}


@verb("Tell what is installed, what works here, what to install.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Tell what is installed, which targets work here, and what to install for the others.

    Exit code 1 if a package is missing that vtc cannot do without.
    """
    packages = [
        {"name": name, "extra": extra, "version": package_version(*distributions)}
        for name, extra, distributions in PACKAGES
    ]
    missing = {
        extra: [str(p["name"]) for p in packages if p["extra"] == extra and not p["version"]]
        for _, extra in CAPABILITIES
    }
    report: dict[str, Any] = {
        "kind": "doctor",
        "vtc": vtc_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "capabilities": [
            {"name": name, "works": not missing[extra], "missing": missing[extra], "install": _install(extra)}
            for name, extra in CAPABILITIES
        ],
        "targets": [
            {
                "name": one.name,
                "kind": one.kind,
                "works": one.works,
                "reason": "" if one.works else one.state,
                "install": "" if one.works else one.install,
            }
            for one in entries()
        ],
    }
    if as_json:
        print_json(report)
    else:
        _print(report)
    if missing["base"]:
        raise click.exceptions.Exit(1)
    suggest("ls", "models")


def _install(extra: str) -> str:
    return "pip install vtc" if extra == "base" else f"pip install 'vtc[{extra}]'"


def _print(report: dict[str, Any]) -> None:
    say(f"vtc {report['vtc']}, Python {report['python']}, {report['platform']}\n")
    print_table(
        ["package", "version", "for"],
        [[p["name"], p["version"] or "-", p["extra"]] for p in report["packages"]],
    )
    say("")
    rows = [
        [
            c["name"],
            "yes" if c["works"] else "no",
            "" if c["works"] else f"{c['install']} (lacks {', '.join(c['missing'])})",
        ]
        for c in report["capabilities"]
    ]
    rows += [
        [
            _CAN[t["kind"]] + t["name"],
            "yes" if t["works"] else "no",
            "" if t["works"] else f"{t['reason']}; {t['install']}",
        ]
        for t in report["targets"]
    ]
    print_table(["can it", "here", "what to do"], rows)
