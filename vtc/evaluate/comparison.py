"""Opens what ``vtc validate`` compares: an original, what was made of it, and baselines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vtc.artifact import MANIFEST
from vtc.errors import InputError
from vtc.evaluate.answers import Contestant, Trial
from vtc.evaluate.asking import Effort
from vtc.evaluate.baselines import open_baselines
from vtc.evaluate.contestants import (
    Opened,
    layouts_of,
    manifest_of,
    open_bundle,
    open_checkpoint,
    open_compressed,
    original_of,
)
from vtc.evaluate.trials import of_each_budget, of_policy
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import ON_CPU, Placement
from vtc.plan.costs import Use
from vtc.recipe import NONE
from vtc.runtime.budgets import Entropy, Keep
from vtc.runtime.options import RuntimeOptions

SCORED = 3
"""Copies of logits that are alive at once: those of each step, and of both models beside each other."""


@dataclass(frozen=True)
class Comparison:
    """All that take part in one comparison.

    Attributes
    ----------
    original : Contestant
    compressed : Contestant or None
        None measures the original alone, or `budgets`.
    baselines : list of Contestant
    left_out : mapping of str
        Baselines that were asked for and cannot be, and why.
    sha256 : str
        Digest of the models: with equal ones, questions get equal answers.
    budgets : mapping of int to Trial
        The model at each budget, ascending, with the baselines that spend as much, where each is judged.
    """

    original: Contestant
    compressed: Contestant | None
    baselines: list[Contestant]
    left_out: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""
    budgets: Mapping[int, Trial] = field(default_factory=dict)


def checkpoint_name(target: str | None, against: str | None) -> str:
    """Name the checkpoint that models are compared with: the one that is given, or that a bundle was made from.

    Parameters
    ----------
    target, against : str or None
        As for :func:`open_comparison`.

    Raises
    ------
    InputError
        If neither says, or the target is something else.
    """
    manifest = manifest_of(Path(against or target or ""))
    if manifest is not None:
        return str(manifest["model"]["name"])
    if against is None:
        if target is not None:
            what = "is no bundle and no compressed model" if os.path.lexists(target) else "no such bundle"
            raise InputError(f"{target}: {what}; give what `vtc export` or `vtc compress` has written")
        raise InputError("say what to compare with: --against MODEL ('reference', or a checkpoint's directory)")
    return against


def open_comparison(
    target: str | None,
    against: str | None,
    baselines: Sequence[str],
    seed: int,
    options: RuntimeOptions,
    placement: Placement = ON_CPU,
    keep: Keep = None,
    effort: Effort = Effort(),
) -> Comparison:
    """Open the models that ``vtc validate`` compares.

    Parameters
    ----------
    target : str or None
        A bundle or a compressed model; None for the original alone.
    against : str or None
        ``reference``, a checkpoint, or an uncompressed bundle. None: the checkpoint that the target was made
        from, where it still is.
    baselines : sequence of str
        Of :data:`BASELINES`. There are none against a bundle: they are made from the checkpoint.
    seed : int
        Of the random baseline.
    options : RuntimeOptions
        Of the bundle that is judged; an original that is a bundle has engines of its own.
    placement : Placement
        Of whatever PyTorch runs.
    keep : int, Entropy or None
        Of a target with several budgets, the one to judge, or the policy; None judges each of them.
    effort : Effort
        How questions are going to be put: what there is to be room for.

    Raises
    ------
    InputError
        If something is missing, of the wrong kind, or made from another checkpoint, or there is no such budget.
    """
    manifest = manifest_of(Path(target)) if target else None
    against = against or checkpoint_name(target, None)
    use = Use("vtc validate", effort.batch_size, SCORED * (effort.max_new_tokens + 1))
    if target is None:
        if keep is not None:
            raise InputError("the original has no budgets; give a bundle or a compressed model that has")
        original = _open_original(against, options, placement, use)
        rivals, left_out = _baselines_of(original, (), baselines, seed)
        return Comparison(original.contestant, None, rivals, left_out, _digest(against, original.model_sha256))
    original_manifest = manifest_of(Path(against))
    in_torch = manifest is not None and manifest["kind"] == "compressed"
    layouts = [ANY_IMAGE] if in_torch else layouts_of(manifest)
    if in_torch:
        compressed = open_compressed(Path(target), None if original_manifest else against, placement, use)
    else:
        if original_manifest is None:
            _check_room_beside(Path(target), options, against, layouts[0], placement, use)
        compressed = open_bundle(Path(target), options)
    for one in keep.of(tuple(compressed.budgets)) if isinstance(keep, Entropy) else (keep,):
        compressed.at_budget(one)  # refused here where there is none, before the original is loaded
    if in_torch and not original_manifest:
        original = _uncompressed(compressed)  # one copy of the weights serves both
    else:
        original = _open_original(against, options, placement, use, layouts)
    check_same_origin(original, compressed)
    sha256 = _digest(target, against, original.model_sha256)

    def rivals_of(names: Sequence[str], keeps: Sequence[int | None]) -> tuple[list[Contestant], dict[str, str]]:
        return _baselines_of(original, keeps, names, seed)

    if keep is None and compressed.budgets:
        trials = of_each_budget(compressed, baselines, rivals_of)
        return Comparison(original.contestant, None, [], {}, sha256, trials)
    if isinstance(keep, Entropy):
        trial = of_policy(compressed, keep, baselines, rivals_of)
    else:
        at = compressed.at_budget(keep)
        trial = Trial(at.contestant, *rivals_of(baselines, at.keeps))
    return Comparison(original.contestant, trial.contestant, list(trial.baselines), trial.left_out, sha256)


def _check_room_beside(
    bundle: Path, options: RuntimeOptions, checkpoint: str, layout: ImageOptions, placement: Placement, use: Use
) -> None:
    """Make sure that there is room for a bundle and the checkpoint beside it, before either is loaded."""
    from vtc.bundle.manifest import load_manifest
    from vtc.compressed.needs import room_for
    from vtc.models import check_model, resolve_model
    from vtc.runtime.backends import open_backend
    from vtc.runtime.needs import need_of

    if options.backend != "onnxruntime":
        return  # what others take is not known
    manifest = load_manifest(bundle, verify=False)
    besides = need_of(manifest, options, open_backend(manifest, options))
    room_for(use, placement, besides)(check_model(resolve_model(checkpoint), layout).outline, NONE)


def _open_original(
    name: str,
    options: RuntimeOptions,
    placement: Placement,
    use: Use,
    layouts: Sequence[ImageOptions] = (ANY_IMAGE,),
) -> Opened:
    manifest = manifest_of(Path(name))
    if manifest is None:
        return open_checkpoint(name, layouts, placement, use)
    if manifest["kind"] == "compressed" or manifest["plan"].get("stages"):
        raise InputError(f"{name}: is compressed, so it is no original; give the checkpoint it was made from")
    return open_bundle(Path(name), replace(options, engines=None))


def _uncompressed(compressed: Opened) -> Opened:
    if not compressed.adapters:
        raise InputError(f"{compressed.contestant.name}: holds no checkpoint to compare with")
    return original_of(compressed.adapters, compressed.model_sha256)


def _baselines_of(
    original: Opened, keeps: Sequence[int | None], names: Sequence[str], seed: int
) -> tuple[list[Contestant], dict[str, str]]:
    if not original.adapters:
        return [], {}
    return open_baselines(original.adapters, names, keeps or [None] * len(original.adapters), seed)


def _digest(*names: str) -> str:
    """Digest of what was compressed or exported, by the manifests that list every file's hash, and of other words."""
    parts = [(Path(name) / MANIFEST).read_bytes() if manifest_of(Path(name)) else name.encode() for name in names]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def check_same_origin(original: Opened, compressed: Opened) -> None:
    """Make sure that a model is compared with the checkpoint it was made from.

    Raises
    ------
    InputError
        If it was made from another one.
    """
    if original.model_sha256 != compressed.model_sha256:
        raise InputError(
            f"{compressed.contestant.name} was made from another checkpoint "
            f"(sha256 {compressed.model_sha256[:12]}, --against has {original.model_sha256[:12]}); "
            "give the checkpoint it was made from"
        )
