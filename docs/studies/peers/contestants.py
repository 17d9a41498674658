"""Who is measured, on what, and what cannot be measured and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from docs.studies.peers.answers import Task
from docs.studies.peers.settings import QWEN_KEPT, QWEN_TOKENS, Settings

Step = tuple[str, ...]
"""Of :mod:`docs.studies.peers.preparing`: its name and arguments."""


@dataclass(frozen=True)
class Contestant:
    """One row of a table.

    Attributes
    ----------
    name : str
    table : str
        ``decoder``: the decoder alone, token ids in. ``pages``: the same in two sizes of pages. ``image``: the whole
        model. ``cdpruner``: the Qwen2-VL shape.
    engine : str
        Module of this package.
    options : dict
        Of its ``load``.
    task : Task
    needs : tuple of Step
        In order.
    environment : str
        Where it runs: one of :data:`docs.studies.peers.environment.PEERS`; empty for the project's own.
    variables : mapping of str to str
        Of the environment of its process.
    """

    name: str
    table: str
    engine: str
    options: Mapping[str, Any]
    task: Task
    needs: tuple[Step, ...]
    environment: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    def in_pages(self, *, huge: bool) -> Contestant:
        """The same for the table ``pages``: memory in pages of 2 MiB, where Linux leaves that to programs, or not."""
        name, asked = f"{self.name}, {'2 MiB' if huge else '4 KiB'}", f"glibc.malloc.hugetlb={int(huge)}"
        return replace(self, name=name, table="pages", variables={"GLIBC_TUNABLES": asked})

    @property
    def request(self) -> dict[str, Any]:
        """What its worker is sent."""
        return {"engine": self.engine, "options": dict(self.options), "task": asdict(self.task)}


CANNOT: tuple[tuple[str, str, str], ...] = (
    (
        "ONNX Runtime GenAI 0.18",
        "an image to this model",
        "its builder has no LLaVA type; the decoder alone is compared, its prompt given as token ids",
    ),
    (
        "ONNX Runtime GenAI 0.18",
        "fewer visual tokens",
        "no pruning; a host program would have to run its own vision graph and feed embeddings",
    ),
    (
        "OpenVINO GenAI 2026.4",
        "pruning on this model",
        "its CDPruner is there for Qwen2-VL and Qwen2.5-VL; they are compared on a shape of that family",
    ),
    (
        "OpenVINO GenAI 2026.4",
        "pruning inside the decoder, other selectors, trained ones",
        "CDPruner after the vision encoder is all that it has",
    ),
    (
        "transformers, eager",
        "4-bit weights on a processor",
        "what it has for them needs a GPU; float32 and bfloat16 are compared",
    ),
)
"""A peer, what it cannot do, and why."""

SPIN = "threads spin"
OURS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("vtc fp32", {"precision": "fp32-portable"}),
    ("vtc fp32-ort", {"precision": "fp32-ort"}),
    (f"vtc fp32-ort, {SPIN}", {"precision": "fp32-ort", "spin": True}),
    ("vtc q4", {"precision": "q4-portable"}),
    ("vtc q4-ort", {"precision": "q4-ort"}),
    (f"vtc q4-ort, {SPIN}", {"precision": "q4-ort", "spin": True}),
    ("vtc fp32, OpenVINO", {"backend": "openvino", "precision": "fp32"}),
    ("vtc bf16, OpenVINO", {"backend": "openvino", "precision": "bf16"}),
    ("vtc q4, OpenVINO", {"backend": "openvino", "precision": "q4"}),
    ("vtc q4-bf16, OpenVINO", {"backend": "openvino", "precision": "q4-bf16"}),
)
WITH_IMAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, options) for name, options in OURS if not options.get("spin")),
    ("vtc q4-static-ort", {"precision": "q4-static-ort"}),
    ("vtc q4-static-bf16, OpenVINO", {"backend": "openvino", "precision": "q4-static-bf16"}),
)
"""Of ours; decoders that run alone are those of q4 where the vision tower is static."""
MODELS, QWEN = ("models",), ("qwen",)


def contestants(settings: Settings) -> list[Contestant]:
    """All of them."""
    decoders = _decoders(settings)
    pages = [one.in_pages(huge=huge) for one in decoders if one.name in IN_PAGES for huge in (False, True)]
    return [*decoders, *pages, *_models(settings), *_qwens(settings)]


def _decoders(settings: Settings) -> list[Contestant]:
    work, task = settings.work, settings.text()
    found = [
        Contestant(name, "decoder", "ours", {"bundle": str(work / "bundle-none"), **options}, task,
                   (MODELS, ("bundle", "none")))
        for name, options in OURS
    ]  # fmt: skip
    for precision, extra in (("fp32", ()), ("int4", ()), ("fp32", HEAD), ("int4", HEAD)):
        path = work / "-".join(["ort-genai", precision, *(["head"] if extra else [])])
        name = f"ONNX Runtime GenAI {precision}" + (", `prune_lm_head`" if extra else "")
        step = ("ort_genai", precision, *extra)
        found.append(Contestant(name, "decoder", "ort_genai", {"path": str(path)}, task, (MODELS, step), "ort-genai"))
    for weights, computed in OPENVINO:
        path = work / f"openvino-llm-{weights}"
        options = {"path": str(path), "kind": "llm", "precision": computed}
        step = ("openvino_genai", "llm", weights)
        name = f"OpenVINO GenAI, {weights} weights, {computed}"
        found.append(Contestant(name, "decoder", "openvino_genai", options, task, (MODELS, step), "openvino-genai"))
    found += [
        Contestant(f"transformers eager, {dtype}", "decoder", "eager",
                   {"checkpoint": str(work / "model"), "dtype": dtype}, task, (MODELS,))
        for dtype in DTYPES
    ]  # fmt: skip
    return found


HEAD = ("prune_lm_head=true",)
IN_PAGES = (
    *(f"vtc {precision}-ort, {SPIN}" for precision in ("fp32", "q4")),
    *(f"ONNX Runtime GenAI {precision}, `prune_lm_head`" for precision in ("fp32", "int4")),
)
"""Decoders in ONNX Runtime that are measured in both sizes of pages."""
OPENVINO = (("fp32", "f32"), ("fp32", "bf16"), ("int4", "bf16"))
"""Weights, and what is computed in."""
DTYPES = ("float32", "bfloat16")


def _models(settings: Settings) -> list[Contestant]:
    work, found = settings.work, []
    for kept, recipe in ((settings.kept, "cdpruner"), (settings.visual_tokens, "none")):
        task, of = settings.image(kept), f"{kept} of {settings.visual_tokens}"
        bundle = {"bundle": str(work / f"bundle-{recipe}")}
        found += [
            Contestant(f"{name}; {of}", "image", "ours", bundle | options, task, (MODELS, ("bundle", recipe)))
            for name, options in WITH_IMAGES
        ]
        found += [
            Contestant(f"transformers eager, {dtype}, hook; {of}", "image", "eager",
                       {"checkpoint": str(work / "model"), "dtype": dtype}, task, (MODELS,))
            for dtype in DTYPES
        ]  # fmt: skip
    return found


def _qwens(settings: Settings) -> list[Contestant]:
    work, found = settings.work, []
    for kept, recipe in ((QWEN_KEPT, "cdpruner"), (QWEN_TOKENS, "none")):
        task, of = settings.qwen(kept), f"{kept} of {QWEN_TOKENS}"
        bundle = {"bundle": str(work / f"qwen-bundle-{recipe}")}
        found += [
            Contestant(f"{name}; {of}", "cdpruner", "ours", bundle | options, task, (QWEN, ("qwen_bundle", recipe)))
            for name, options in WITH_IMAGES
        ]
        percent = round(100 * (1 - kept / QWEN_TOKENS))
        for weights, computed in OPENVINO:
            path = work / f"openvino-vlm-{weights}"
            options = {"path": str(path), "kind": "vlm", "precision": computed, "pruned": percent}
            name = f"OpenVINO GenAI, {weights} weights, {computed}; {of}"
            step = ("openvino_genai", "vlm", weights)
            found.append(Contestant(name, "cdpruner", "openvino_genai", options, task, (QWEN, step), "openvino-genai"))
    return found
