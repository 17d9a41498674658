"""Train the reference VLM from nothing: first the vision tower, then projector and decoder.

Usage: ``python -m vtc.reference.training.train -o DIR [--work DIR] [--threads 2] [--smoke]``

Takes one to two hours on two CPU cores. Every stage checkpoints into the work directory, and the same command
resumes there. ``--smoke`` goes through all of it in under a minute with a tiny model.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtc.reference.tokenizer import build_tokenizer
from vtc.reference.training.checkpoint import model_config, save_checkpoint
from vtc.reference.training.evaluate import report
from vtc.reference.training.instruct import (
    Features,
    InstructConfig,
    cache_features,
    instruct,
    start_language_side,
)
from vtc.reference.training.pretrain import PatchHeads, PretrainConfig, pretrain
from vtc.training.whitening import Whitening

#: Seeds of the cached training scenes and of the validation writers' ones; the test split is never looked at.
TRAIN_SEED, HELD_OUT_SEED = 100, 90_001


@dataclass(frozen=True)
class TrainConfig:
    """Sizes and lengths of the whole training; weights/TRAINING.md tells how the shipped weights came about."""

    vision_layers: int = 5
    text_layers: int = 8
    width: int = 128
    seed: int = 7
    crowded: PretrainConfig = field(default_factory=PretrainConfig)
    sparse: PretrainConfig = field(
        default_factory=lambda: PretrainConfig(steps=1300, muon_lr=0.005, adam_lr=1e-3, crowded=0.15, seed=8)
    )
    instruct: InstructConfig = field(default_factory=InstructConfig)
    test_questions: int = 2400


SMOKE = TrainConfig(
    vision_layers=2,
    text_layers=2,
    width=64,
    crowded=PretrainConfig(steps=24, batch=4, warmup=2),
    sparse=PretrainConfig(steps=4, batch=4, warmup=1, crowded=0.15),
    instruct=InstructConfig(scenes=48, steps=20, batch=4, warmup=2, held_out=8, every=20),
    test_questions=24,
)


class CsvLog:
    """Appends measurements to a CSV file, one line per number, and prints them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_text("stage,step,seconds,name,value\n")

    def __call__(self, row: dict[str, float | int | str]) -> None:
        """Log one row of measurements; "stage", "step" and "seconds" identify it."""
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(" ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
        keys = ("stage", "step", "seconds")
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(
                [*(shown.get(k, "") for k in keys), name, value] for name, value in shown.items() if name not in keys
            )


def prepare(data: Features, whitening: Whitening) -> Features:
    """Whiten cached features, in chunks, in place."""
    for first in range(0, len(data.states), 256):
        chunk = data.states[first : first + 256]
        chunk.copy_(whitening(chunk))
    return data


def train(config: TrainConfig, output: Path, work: Path) -> dict[str, object]:
    """Run what is left of the training and write the checkpoint.

    Parameters
    ----------
    config : TrainConfig
    output : Path
        Checkpoint directory; also receives ``training_log.csv``, ``training_config.json``, ``scores.json``.
    work : Path
        Directory of the resumable state.

    Returns
    -------
    dict
        The content of ``scores.json``.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = CsvLog(work / "training_log.csv")
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer()
    model = LlavaForConditionalGeneration(
        model_config(tokenizer, config.vision_layers, config.text_layers, config.width)
    )
    tower = model.model.vision_tower
    start_language_side(model)

    heads = PatchHeads(config.width)
    pretrain(tower, heads, config.crowded, work / "crowded.pt", log)
    pretrain(tower, heads, config.sparse, work / "sparse.pt", log)
    _language_side(model, tokenizer, config, work, log)
    save_checkpoint(model, tokenizer, output)

    scores = report(output, "test", 1, config.test_questions, train_scenes=10 * config.test_questions)
    (output / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    (output / "training_config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    (output / "training_log.csv").write_bytes(log.path.read_bytes())
    return scores


def _language_side(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    config: TrainConfig,
    work: Path,
    log: CsvLog,
) -> None:
    tower = model.model.vision_tower
    size = config.instruct
    held_out = cache_features(tower, tokenizer, "validation", HELD_OUT_SEED, range(size.held_out))
    data = cache_features(tower, tokenizer, "train", TRAIN_SEED, range(size.scenes))
    # Kept beside the decoder that learns on it: a resumed run must not whiten ever so slightly differently.
    fixed = work / "whitening.pt"
    if not fixed.exists():
        fitted = Whitening.of(data.states[:400])
        torch.save((fitted.mean, fitted.matrix), fixed)
    whitening = Whitening(*torch.load(fixed, weights_only=True))
    instruct(model, tokenizer, prepare(data, whitening), prepare(held_out, whitening), size, work, log)
    whitening.fold(model.model.multi_modal_projector.linear_1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the reference VLM.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--work", type=Path, help="resumable state (default: OUTPUT.work)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, in under a minute")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    work = args.work or args.output.with_name(args.output.name + ".work")
    scores = train(SMOKE if args.smoke else TrainConfig(), args.output, work)
    print(json.dumps(scores["accuracy"], indent=2))


if __name__ == "__main__":
    main()
