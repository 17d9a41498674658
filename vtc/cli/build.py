"""``vtc build``: a bundle's graphs as TensorRT engines."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtc.cli.output import print_json, print_table, with_unit
from vtc.cli.verb import suggest, verb
from vtc.progress import progress

if TYPE_CHECKING:
    from vtc.bundle.engines import EngineSet


@verb("Build TensorRT engines of a bundle, with or without a GPU.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", "target_name", required=True, metavar="T", help="Where they are to run; see vtc ls targets.")
@click.option("--precision", help="Which graphs to build.  [default: fp16 if there is one]")
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    metavar="SM",
    help="GPU generation such as 8.6, where engines are built ahead of time; several if repeated.  "
    "[default: the target's]",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Directory to write.  [default: BUNDLE/engines/T-PRECISION]"
)
@click.option("--max-batch", default=1, show_default=True, type=click.IntRange(1), help="Prompts at a time.")
@click.option("--max-images", default=1, show_default=True, type=click.IntRange(1), help="Images of one prompt.")
@click.option("--max-text", default=512, show_default=True, type=click.IntRange(1), help="Text tokens of a prompt.")
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="Tokens of an answer.")
@click.option(
    "--workspace",
    default=0.0,
    metavar="GIB",
    type=click.FloatRange(min=0),
    help="GPU memory that a layer may use for intermediate values.  [default: all there is]",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File that remembers what was timed, where the builder times.  [default: one in the user's cache directory]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    target_name: str,
    precision: str | None,
    capabilities: tuple[str, ...],
    out: Path | None,
    max_batch: int,
    max_images: int,
    max_text: int,
    max_new_tokens: int,
    workspace: float,
    timing_cache: Path | None,
    as_json: bool,
) -> None:
    r"""Build TensorRT engines of BUNDLE, one of each graph.

    Target rtx needs no GPU; the others build for the GPU at hand, so run this on the device. An interrupted build is
    taken up again by the same command.

    \b
    vtc build out/bundle --target rtx --capability 8.9
    vtc build out/bundle --target jetson-orin-jp6 --max-text 256 --workspace 2
    """
    from exporters.targets import target as target_of
    from exporters.tensorrt.build import BuildRequest, build, usual_precision
    from vtc.bundle.engines import Limits, engines_dir
    from vtc.bundle.manifest import load_manifest

    target = target_of(target_name)
    manifest = load_manifest(bundle)
    precision = precision or usual_precision(manifest, target)
    with progress() as tell:
        built = build(
            BuildRequest(
                bundle=manifest,
                target=target,
                precision=precision,
                capabilities=capabilities,
                limits=Limits(max_batch, max_images, max_text, max_new_tokens),
                workspace=workspace,
                timing_cache=timing_cache,
                debug=bool(context.find_root().params.get("debug")),
                progress=tell,
            ),
            out or engines_dir(bundle, target.name, precision),
        )
    if as_json:
        facts = {name: value for name, value in asdict(built).items() if name not in ("schema", "kind", "root")}
        print_json({"kind": "build", "out": str(built.root), **facts})
    else:
        _print(built)
    suggest("run", bundle, "--backend", "tensorrt", "--image", "photo.jpg", "--prompt", "What is in the picture?")


def _print(built: EngineSet) -> None:
    rows = []
    for graph, engine in built.engines.items():
        names = ", ".join(profile.name for profile in engine.profiles)
        rows.append([graph, names, with_unit(built.files[engine.file]["bytes"], "B")])
    title = (
        f"{built.root}: {built.precision} engines of {built.library} {built.library_version} "
        f"for SM {', '.join(built.capabilities)}"
    )
    print_table(["graph", "profiles", ">size"], rows, title)
