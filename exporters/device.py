"""What goes to a device with a bundle: a script that builds its engines there, and a page that says what to expect.

The device needs what its system brings (driver, CUDA, TensorRT) and vtc's light install; neither torch nor onnx.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import onnx

from exporters.target import Target
from exporters.tensorrt.profiles import profiles
from vtc.bundle.engines import Library, Limits, Profile
from vtc.bundle.manifest import Manifest

SCRIPT, PAGE = "build.sh", "README.md"
TOOLS: dict[Library, str] = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}
"""What NVIDIA calls the tool of each library; engines that it builds go to a folder of that name."""

_SCRIPT = """\
#!/bin/sh
# Builds the TensorRT engines of this bundle for {target.name}: {target.summary}.
#   sh {script}           what vtc runs: one engine a graph, with a profile for prompts and one for further tokens
#   sh {script} {tool}   the same graphs by NVIDIA's own tool, one engine a profile: to time them without vtc
set -eu
cd "$(dirname "$0")"

if [ "${{1:-vtc}}" = vtc ]; then
{vtc}
    exit
fi

tool=$(command -v {tool} || echo {elsewhere})
mkdir -p {folder}
{commands}
"""

_PAGE = """\
# {name} for {targets}

{what}
Made by vtc {manifest.vtc_version}; `manifest.json` says how, and knows the hash of every file.

## Copy

```sh
make wheel      # in a checkout of vtc {manifest.vtc_version}
scp -r BUNDLE dist/vtc-{manifest.vtc_version}-py3-none-any.whl USER@DEVICE:      # BUNDLE: this directory
```

## Build

On the device, in this directory:

{steps}

{portability} Prompts at a time:
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
vtc run . --image photo.jpg --prompt "What is in the picture?"     # no engines: ONNX Runtime
```

{onnxruntime}

{clocks}"""

_JETSON_STEPS = """\
```sh
sudo apt install nvidia-jetpack python3-venv
python3 -m venv --system-site-packages ~/vtc && . ~/vtc/bin/activate     # sees JetPack's tensorrt
pip install ~/vtc-{version}-py3-none-any.whl 'cuda-python<{next_cuda}'
sh {script}
```"""

_STEPS = """\
```sh
pip install ~/vtc-{version}-py3-none-any.whl
{install}
sh {script}
```"""

_TENSORRT_PORTABILITY = "Engines run only on the kind of GPU, and with the TensorRT, that they were built with."
_RTX_PORTABILITY = (
    "Engines of TensorRT for RTX run on every GPU of the generations that they were built for, with the version that "
    "built them; kernels are compiled where they first run. NVIDIA's own tool, `tensorrt_rtx`, comes with the SDK, "
    "and pip does not install it."
)

_JETSON_ONNXRUNTIME = """\
On a Jetson, ONNX Runtime runs on the processor: the package that pip installs there has no CUDA, and engines need
none. `--provider cuda` needs a build of onnxruntime-gpu for this JetPack in its place, from the Jetson AI Lab's index
(`jp6/cu126` is JetPack 6 with CUDA 12.6; take the folder of your JetPack and CUDA) or NVIDIA's
[Jetson Zoo](https://elinux.org/Jetson_Zoo#ONNX_Runtime):

```sh
pip uninstall -y onnxruntime
pip install onnxruntime-gpu --index-url https://pypi.jetson-ai-lab.io/jp6/cu126
vtc doctor                                # says whether ONNX Runtime has CUDA here, and whether that starts
```"""
_ONNXRUNTIME = """\
On x86, ONNX Runtime takes the GPU where CUDA and cuDNN are installed for it, and the processor elsewhere;
`--provider cuda` insists on the GPU."""

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
    scripts = _scripts(targets)
    for one in targets:
        path = work / scripts[one.name]
        path.write_text(_script(manifest, one, limits, path.name), encoding="utf-8")
        path.chmod(0o755)
    (work / PAGE).write_text(_page(manifest, targets, limits, scripts), encoding="utf-8")


def device_files(targets: Sequence[Target]) -> list[str]:
    """Names of the files that :func:`write_device_files` writes."""
    return [*_scripts(targets).values(), PAGE] if targets else []


def _scripts(targets: Sequence[Target]) -> dict[str, str]:
    """Name of each target's script."""
    return {one.name: SCRIPT if len(targets) == 1 else f"build-{one.name}.sh" for one in targets}


def _script(manifest: Manifest, one: Target, limits: Limits, script: str) -> str:
    precisions = [precision for precision in manifest.precisions if one.allows(precision)]
    vtc = [f"    vtc build . --target {one.name} --precision {precision}" for precision in precisions]
    commands = []
    tool = TOOLS[one.library]
    folders = [f"{tool}/{precision}" for precision in precisions]
    for precision, folder in zip(precisions, folders, strict=True):
        for graph in manifest.engine_graphs:
            for profile in _profiles(manifest, graph, precision, limits):
                engine = f"{folder}/{graph}.{profile.name}.engine"
                commands.append(_command(manifest.graphs[graph][precision], engine, profile, one))
    return _SCRIPT.format(
        target=one,
        script=script,
        vtc="\n".join(vtc),
        tool=tool,
        elsewhere="/usr/src/tensorrt/bin/trtexec" if one.library == "tensorrt" else tool,
        folder=" ".join(folders),
        commands="\n".join(commands),
    )


def _command(graph: str, engine: str, profile: Profile, one: Target) -> str:
    """One engine with one profile: the form that every trtexec from 10.0 on takes.

    TensorRT for RTX is always strongly typed, and its tool builds without a GPU.
    """
    flags = " --stronglyTyped --skipInference" if one.library == "tensorrt" else ""
    lines = [f'"$tool" --onnx={graph} --saveEngine={engine}{flags}']
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
    name = Path(manifest.model["name"]).name  # where the checkpoint lay is nobody's business on the device
    what = (
        f"{name} with the recipe `{manifest.recipe['name']}`: {keep} of {tokens} visual tokens of an image enter the "
        "decoder."
    )
    steps = []
    for one in targets:
        form = _JETSON_STEPS if one.jetson else _STEPS
        heading = f"On {one.name} ({one.summary}):\n\n" if len(targets) > 1 else ""
        # Bindings of one major version work with all drivers of that version.
        next_cuda = int(one.cuda.partition(".")[0]) + 1 if one.jetson else 0
        version = manifest.vtc_version
        text = form.format(script=scripts[one.name], next_cuda=next_cuda, version=version, install=_install(one))
        steps.append(heading + text)
    boards = {one.jetson for one in targets}
    clocks = [text for board, text in ((True, _JETSON_CLOCKS), (False, _CLOCKS)) if board in boards]
    providers = [text for board, text in ((True, _JETSON_ONNXRUNTIME), (False, _ONNXRUNTIME)) if board in boards]
    libraries = {one.library for one in targets}
    portability = [
        text
        for library, text in (("tensorrt", _TENSORRT_PORTABILITY), ("tensorrt_rtx", _RTX_PORTABILITY))
        if library in libraries
    ]
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
        onnxruntime="\n\n".join(providers),
        portability=" ".join(portability),
    )


def _install(one: Target) -> str:
    """Return the command that installs what builds and runs engines, beside vtc; JetPack brings it on a Jetson."""
    if one.library == "tensorrt_rtx":
        return "pip install 'tensorrt-rtx>=1.1' cuda-python"
    wanted = f"tensorrt>={one.oldest},<{one.release[0] + 1}"
    return f"pip install '{wanted}' cuda-python       # tensorrt comes from NVIDIA's package index"


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
