"""What goes to a device with a bundle: a script that builds its engines there, and a page that says what to expect.

The device needs what its system brings (driver, CUDA, TensorRT) and vtc's light install; neither torch nor onnx.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import onnx

from exporters.targets import Target
from exporters.tensorrt.profiles import profiles
from vtc.bundle.engines import Limits, Profile
from vtc.bundle.manifest import Manifest

SCRIPT, PAGE = "build.sh", "README.md"
TRTEXEC = "trtexec"
"""Folder of the engines that NVIDIA's tool builds, beside the sets that vtc does."""

_SCRIPT = """\
#!/bin/sh
# Builds the TensorRT engines of this bundle, on the {target.name} that they will run on: {target.summary}.
#   sh {script}           what vtc runs: one engine a graph, with a profile for prompts and one for further tokens
#   sh {script} trtexec   the same graphs by NVIDIA's own tool, one engine a profile: to time them without vtc
set -eu
cd "$(dirname "$0")"

if [ "${{1:-vtc}}" = vtc ]; then
{vtc}
    exit
fi

trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
mkdir -p {folder}
{trtexec}
"""

_PAGE = """\
# {name} for {targets}

{what}
Made by vtc {manifest.vtc_version}; `manifest.json` says how, and knows the hash of every file.

## Build

{steps}

Engines run only on the kind of GPU, and with the TensorRT, that they were built with. Prompts at a time:
{limits.batch}; images of one: {limits.images}; tokens of text: {limits.text}; new tokens: {limits.new_tokens}.
`vtc build --help` has options for more.

## Expect

| | {heads} |
|---|{rules}
{rows}

Activations, TensorRT and CUDA come on top of the memory; how much they take was not measured on any device, nor how
long a build takes. A build needs more memory than running does: stop what else uses it, and see
`vtc build --workspace`.

## Run

```sh
vtc run . --backend tensorrt --image photo.jpg --prompt "What is in the picture?"
vtc bench . --backend tensorrt
vtc run . --provider cuda --image photo.jpg --prompt "What is in the picture?"   # no engines: ONNX Runtime
```

{clocks}"""

_JETSON_STEPS = """\
```sh
sudo apt install nvidia-jetpack python3-venv
python3 -m venv --system-site-packages ~/vtc && . ~/vtc/bin/activate     # sees JetPack's tensorrt
pip install VTC 'cuda-python<{next_cuda}'       # VTC: the wheel, or a checkout, of vtc {version}
sh {script}
```"""

_STEPS = """\
```sh
{target.install}
sh {script}
```"""

_JETSON_CLOCKS = """\
## Power and clocks

Timings depend on the power mode. `sudo nvpmodel -q` tells it, `sudo nvpmodel -m 0` chooses the one without limits on
most modules, `sudo jetson_clocks` holds the clocks; `tegrastats` shows clocks, memory and temperature while `vtc bench`
runs. State the mode with every number.
"""

_CLOCKS = """\
## Clocks

Timings depend on the GPU's clocks. `nvidia-smi -q -d CLOCK` tells them, `sudo nvidia-smi --lock-gpu-clocks=MHZ` holds
them, `sudo nvidia-smi --reset-gpu-clocks` lets go. State them with every number.
"""


def write_device_files(work: Path, manifest: Manifest, targets: Sequence[Target], limits: Limits | None = None) -> None:
    """Put build scripts and a page into a bundle that is about to be published.

    Parameters
    ----------
    work : Path
        The bundle's directory.
    manifest : Manifest
    targets : sequence of Target
        One gets ``build.sh``, several ``build-NAME.sh`` each.
    limits : Limits or None
        None for those that `vtc build` has by default.
    """
    limits = limits or Limits()
    scripts = {one.name: SCRIPT if len(targets) == 1 else f"build-{one.name}.sh" for one in targets}
    for one in targets:
        path = work / scripts[one.name]
        path.write_text(_script(manifest, one, limits, path.name), encoding="utf-8")
        path.chmod(0o755)
    (work / PAGE).write_text(_page(manifest, targets, limits, scripts), encoding="utf-8")


def _script(manifest: Manifest, one: Target, limits: Limits, script: str) -> str:
    precisions = [precision for precision in manifest.precisions if one.allows(precision)]
    vtc = [f"    vtc build . --target {one.name} --precision {precision}" for precision in precisions]
    commands = []
    folders = [f"{TRTEXEC}/{precision}" for precision in precisions]
    for precision, folder in zip(precisions, folders, strict=True):
        for graph, paths in manifest.graphs.items():
            for profile in _profiles(manifest, graph, precision, limits):
                engine = f"{folder}/{graph}.{profile.name}.engine"
                commands.append(_trtexec(paths[precision], engine, profile))
    return _SCRIPT.format(
        target=one, script=script, vtc="\n".join(vtc), folder=" ".join(folders), trtexec="\n".join(commands)
    )


def _trtexec(graph: str, engine: str, profile: Profile) -> str:
    """One engine with one profile: the form that every trtexec from 10.0 on takes."""
    lines = [f'"$trtexec" --onnx={graph} --saveEngine={engine} --stronglyTyped --skipInference']
    for which, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
        shapes = ",".join(f"{name}:{'x'.join(map(str, three[which]))}" for name, three in profile.shapes.items())
        lines.append(f"    {option}={shlex.quote(shapes)}")
    return " \\\n".join(lines)


def _profiles(manifest: Manifest, graph: str, precision: str, limits: Limits) -> tuple[Profile, ...]:
    return profiles(manifest, graph, graph_inputs(manifest.graph(graph, precision)), limits)


def graph_inputs(path: Path) -> dict[str, list[int | str]]:
    """Names and shapes of a graph's inputs, dynamic dimensions by name."""
    inputs = onnx.load(path, load_external_data=False).graph.input
    return {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] for value in inputs
    }


def _page(manifest: Manifest, targets: Sequence[Target], limits: Limits, scripts: dict[str, str]) -> str:
    served = manifest.images[0]
    keep, tokens = served.spans * served.keep_per_span, served.spans * served.tokens_per_span
    what = (
        f"{manifest.model['name']} with the recipe `{manifest.recipe['name']}`: {keep} of {tokens} visual tokens of "
        "an image enter the decoder."
    )
    steps = []
    for one in targets:
        form = _JETSON_STEPS if one.jetson else _STEPS
        heading = f"On {one.name} ({one.summary}):\n\n" if len(targets) > 1 else ""
        # Bindings of one major version work with all drivers of that version.
        next_cuda = int(one.cuda.partition(".")[0]) + 1 if one.jetson else 0
        text = form.format(target=one, script=scripts[one.name], next_cuda=next_cuda, version=manifest.vtc_version)
        steps.append(heading + text)
    boards = {one.jetson for one in targets}
    clocks = [text for board, text in ((True, _JETSON_CLOCKS), (False, _CLOCKS)) if board in boards]
    heads = manifest.precisions
    weights = {precision: manifest.graph_bytes(precision) for precision in heads}
    cache = {precision: _cache_bytes(manifest, precision, limits) for precision in heads}
    rows = [
        ("disk, graphs", weights),
        ("disk, engines, at least", weights),
        ("memory, weights", weights),
        ("memory, full KV cache", cache),
    ]
    return _PAGE.format(
        name=manifest.recipe["name"],
        targets=", ".join(one.name for one in targets),
        what=what,
        manifest=manifest,
        steps="\n\n".join(steps),
        limits=limits,
        heads=" | ".join(heads),
        rules="---:|" * len(heads),
        rows="\n".join(f"| {row} | {' | '.join(_megabytes(by[head]) for head in heads)} |" for row, by in rows),
        clocks="\n".join(clocks),
    )


def _cache_bytes(manifest: Manifest, precision: str, limits: Limits) -> int:
    """Keys and values of all layers, of the longest prompts with the longest answers."""
    total = 0
    for segment in manifest.segments:
        _, decode = _profiles(manifest, segment.graph, precision, limits)
        graph = onnx.load(manifest.graph(segment.graph, precision), load_external_data=False).graph
        for value in graph.input:
            if value.name.startswith("past_key_values."):
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                total += math.prod(decode.shapes[value.name][2]) * dtype.itemsize
    return total


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
