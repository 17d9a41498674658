"""``vtc run``: ask a bundle about images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtc.cli.budget_options import keep_flags
from vtc.cli.output import note, print_json, say
from vtc.cli.runtime_options import runtime_flags
from vtc.cli.verb import suggest, tell_warnings, verb
from vtc.runtime.options import RuntimeOptions
from vtc.shown import line

if TYPE_CHECKING:
    from vtc.runtime.budgets import Keep


@verb("Ask a bundle about images; needs neither torch nor transformers.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Image to ask about; give it once for each image.",
)
@click.option("--prompt", required=True, help="Question about the images.")
@click.option(
    "--raw-prompt",
    is_flag=True,
    help="The prompt is whole: chat template applied, one image placeholder for each image.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of probability that is drawn from.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Makes a draw repeatable.")
@keep_flags("the largest")
@runtime_flags()
@click.option("--json", "as_json", is_flag=True, help="Print answer, token ids and timings as JSON.")
def command(
    bundle: Path,
    images: tuple[Path, ...],
    prompt: str,
    raw_prompt: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    keep: Keep,
    runtime: RuntimeOptions,
    as_json: bool,
) -> None:
    r"""Answer a question about images, word by word as it comes.

    \b
    vtc run out/bundle --image photo.jpg --prompt "What is in the picture?"
    vtc run out/bundle --image a.png --image b.png --prompt "What differs?" --json
    """
    from vtc.runtime.image import open_image
    from vtc.runtime.sampling import Sampler
    from vtc.runtime.vlm import VLM

    pictures = [open_image(path) for path in images]
    model = VLM.load(bundle, runtime)
    tell_warnings(bundle)
    if temperature == 0 and (told := model.manifest.generation.rules.told):
        note(line(f"note: {told}"))
    text = prompt if raw_prompt else model.chat(prompt, len(pictures))
    running = model.start([pictures], [text], max_new_tokens, Sampler(temperature, top_p, seed), keep)
    if as_json:
        answer = running.finish()[0]
        print_json(
            {
                "answer": answer.text,
                "token_ids": answer.token_ids,
                "visual_tokens": (model.at_budget(answer.budgets[-1]) if answer.budgets else model).image_tokens,
                "budgets": list(answer.budgets),
                "backend": runtime.backend,
                "provider": model.provider,
                "precision": model.precision,
                "variant": model.variant,
                "timings": asdict(answer.timings),
            }
        )
    else:
        for piece in running.stream():
            say(piece, newline=False)
        say("")
    suggest("validate", bundle)
