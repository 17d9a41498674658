"""Selectors between the vision encoder and the decoder, as a recipe names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vtc.facts.layout import Grid, shared_out
from vtc.facts.model import EncoderFacts, ModelFacts
from vtc.facts.views import views_of
from vtc.recipe.selectors.base import SelectorEntry, TrainedSelectorEntry
from vtc.recipe.values import AttentionLayers, LayerOrDepth, Multiple, Weight, Written

Product = tuple[int, int, int]
"""A matrix product: rows, inner size, columns."""


class EncoderSelectorEntry(SelectorEntry):
    """A selector between the vision encoder and the decoder."""

    where = "after the encoder"
    reads: ClassVar[tuple[str, ...]] = ()
    """Kinds of reading that it takes in each of its layers, as :class:`vtc.visual_tokens.Reading` names them."""
    reads_encoder_grid: ClassVar[bool] = False
    """Its scores belong to the encoder's own patches, so no other stage may have replaced those."""
    projects: ClassVar[bool] = False
    """It looks at all tokens in the decoder's space, so the projector runs before it."""
    compares_patches: ClassVar[bool] = False
    """It looks at attention of every patch to every other, so all must have seen each other."""
    needs_cls: ClassVar[bool] = False
    across_views: ClassVar[bool] = False
    """It shares its budget between a full view and its crops, where an image is more than one view."""
    across_frames: ClassVar[bool] = False
    """It compares the frames of a clip."""

    @property
    def layers_named(self) -> tuple[int, ...]:
        """Encoder layers that the recipe names, negative ones from the end."""
        return ()

    def layers_read(self, facts: ModelFacts, running: Sequence[int]) -> tuple[int, ...]:
        """Layers that it takes readings in, of those that run or the one behind them, in the order that it wants.

        Where it reads at all, that is the last one: its output is what selectors and projector see.

        Raises
        ------
        ValueError
            If a layer that the recipe names does not run.
        """
        return (running[-1],) if self.reads else ()

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        """Matrix products that choosing `keep` of `tokens` for a question of `text` tokens is made of.

        The tokens are those of `grids`, which are none once tokens have been pruned.
        """
        return ()


def _contextual(tokens: int, keep: int, share: float, facts: ModelFacts) -> Iterable[Product]:
    """Products of merging what the dominant tokens leave into contextual ones."""
    contextual = min(round(keep * share), keep - 1)
    left = tokens - keep + contextual
    return (left, facts.encoder.width // facts.encoder.heads, contextual), (contextual, left, facts.token_width)


def _matching(tokens: int, keep: int, facts: ModelFacts, carried: int = 1) -> Iterable[Product]:
    """Products of merging pairs step by step, at most a quarter of the tokens in each; `carried` numbers go along."""
    head = facts.encoder.width // facts.encoder.heads
    while tokens > keep:
        step = min(tokens - keep, max(1, tokens // 4))
        yield tokens - tokens // 2, head, tokens // 2
        yield tokens // 2, step, facts.token_width + head + carried
        tokens -= step


def _by_region(facts: ModelFacts) -> Iterable[Product]:
    """Products of summing the full view's patches by the crops that show what they do."""
    views = views_of(facts.layout)
    return () if views is None else ((1, prod(views.grid), views.number),)


def _behind_features(encoder: EncoderFacts, running: Sequence[int]) -> tuple[int, ...]:
    """The layer whose queries and keys are made of the features; the feature layer itself where it is the last."""
    return (min(running[-1] + 1, encoder.layers - 1),)


def _at_depth(depth: int | float, encoder: EncoderFacts, running: Sequence[int]) -> int:
    """A layer by number or by its share of the depth (0.25 of 24 layers is the sixth, number 5), among those that run.

    Raises
    ------
    ValueError
        If it is given by number and does not run.
    """
    if isinstance(depth, float):
        wanted = max(0, round(depth * encoder.layers) - 1)
        return min(running, key=lambda layer: (abs(layer - wanted), layer))
    layer = depth + encoder.layers if depth < 0 else depth
    if layer not in running:
        raise ValueError(f"encoder layer {depth} does not run here; these do: {', '.join(map(str, running))}")
    return layer


class RandomEntry(EncoderSelectorEntry):
    """The same random subset for every image: the floor that any method has to beat."""

    summary = "one random subset, the same for every image; a baseline"
    name: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, lt=2**32)


class UniformEntry(EncoderSelectorEntry):
    """Tokens at a uniform stride in raster order: the strongest baseline that does not look at the image."""

    summary = "uniform stride in raster order; a baseline"
    name: Literal["uniform"] = "uniform"


class ClsAttentionEntry(EncoderSelectorEntry):
    """The tokens that the encoder's CLS token attends to most.

    ``layers`` says in which encoder layer the attention is read: ``feature`` is the layer whose output feeds
    the projector, a list is averaged, negative numbers count from the encoder's end, ``auto`` is calibrated.
    With ``feature``, ``last`` averages that many layers up to and including it.

    Based on FasterVLM (arXiv 2412.01818) and, for several layers, VTC-CLS (arXiv 2412.05819).
    """

    summary = "highest CLS attention; a list of layers is averaged"
    paper = "FasterVLM (arXiv 2412.01818); several layers: VTC-CLS (arXiv 2412.05819)"
    needs = "the CLS row of the encoder's attention"
    reads = ("cls_attention",)
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["cls_attention"] = "cls_attention"
    layers: AttentionLayers = "feature"
    last: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _last_goes_with_feature(self) -> ClsAttentionEntry:
        if self.last > 1 and self.layers != "feature":
            raise ValueError("last is only for layers: feature, a list already says which layers to average")
        return self

    @property
    def layers_named(self) -> tuple[int, ...]:
        return () if isinstance(self.layers, str) else self.layers


class PrunerTraining(Written):
    """How a learned selector is trained: ``steps`` of ``batch`` images each, out of ``images``.

    Before that, ``imitation_steps`` teach it the attention of the encoder's CLS token, where there is one; they take
    seconds, and training goes on from there.

    Every step draws how many tokens are kept, log-uniformly between ``budgets`` times the stage's own number, so that
    one pruner serves them all (``straight_through`` cannot aim at a number: it always has the stage's own). Of the
    tokens that are not kept, ``dropped`` random ones take part in a step and can win their place; 0 means all. Features
    of up to ``memory_gb`` are computed only once.
    """

    steps: Annotated[int, Field(ge=1)] = 1000
    imitation_steps: Annotated[int, Field(ge=0)] = 400
    images: Annotated[int, Field(ge=1)] = 2000
    validation: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    mask: Literal["top_k", "straight_through"] = "top_k"
    lm_weight: Weight = 1.0
    kl_weight: Weight = 1.0
    budget_weight: Weight = 2.0
    budgets: Annotated[tuple[Multiple, Multiple], Field(strict=False)] = (0.5, 4.0)
    dropped: Annotated[int, Field(ge=0)] = 64
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    memory_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> PrunerTraining:
        if self.lm_weight == 0 and self.kl_weight == 0:
            raise ValueError("lm_weight and kl_weight are both 0, there is nothing to learn from")
        if self.budgets[0] > self.budgets[1]:
            raise ValueError(f"budgets is the smaller and the larger multiple, not {list(self.budgets)}")
        return self


class LearnedEntry(EncoderSelectorEntry, TrainedSelectorEntry):
    """A trained per-token scorer.

    ``checkpoint`` is a safetensors file beside the recipe; ``auto`` takes the one that ships with the model, if there
    is one, and trains one as ``training`` says, if there is none. ``diversity`` is the share of the budget given to
    tokens that resemble the chosen ones least.

    Based on LearnPruner (arXiv 2604.23950).
    """

    summary = "highest score of a trained per-token MLP"
    paper = "LearnPruner (arXiv 2604.23950)"
    needs = "the encoder's hidden states and a trained checkpoint"
    reads_encoder_grid = True
    name: Literal["learned"] = "learned"
    diversity: float = Field(default=0.1, ge=0, lt=1, allow_inf_nan=False)
    training: PrunerTraining | None = None

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return ((tokens, facts.token_width, facts.token_width // 2), (tokens, facts.token_width // 2, 2))


class HiPruneEntry(EncoderSelectorEntry):
    """Anchors that attention meets in a middle layer, their neighbours, and registers that it meets in the last one.

    ``alpha`` is the share of the budget that anchors and neighbours take. ``as_published`` lets neighbours wrap over
    row ends, as the authors' code does.

    Based on HiPrune (arXiv 2508.00553).
    """

    summary = "attention received in a middle layer with neighbours, then in the last layer"
    paper = "HiPrune (arXiv 2508.00553)"
    needs = "attention received in two encoder layers"
    reads = ("received_attention",)
    reads_encoder_grid = True
    name: Literal["hiprune"] = "hiprune"
    alpha: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    object_layer: LayerOrDepth = 0.375
    as_published: bool = False

    @property
    def layers_named(self) -> tuple[int, ...]:
        return (self.object_layer,) if isinstance(self.object_layer, int) else ()

    def layers_read(self, facts: ModelFacts, running: Sequence[int]) -> tuple[int, ...]:
        return _at_depth(self.object_layer, facts.encoder, running), running[-1]


class FoPruEntry(EncoderSelectorEntry):
    """Attention among patches: received or given, whichever varies more; by token, or by whole ``row`` of the image.

    Based on FoPru (arXiv 2411.14164); which of the two to take is from a re-implementation, not from the authors.
    """

    summary = "attention among patches, by token or by row of the image"
    paper = "FoPru (arXiv 2411.14164)"
    needs = "the encoder's attention among patches"
    reads = ("patch_attention",)
    compares_patches = True
    reads_encoder_grid = True
    name: Literal["fopru"] = "fopru"
    strategy: Literal["rank", "row"] = "rank"


class VisPrunerEntry(EncoderSelectorEntry):
    """Most attended tokens for the share ``important`` of the budget, then those that resemble the others least.

    Based on VisPruner (ICCV 2025, arXiv 2412.01818v2).
    """

    summary = "highest CLS attention, the rest of the budget without duplicates"
    paper = "VisPruner (arXiv 2412.01818v2)"
    needs = "the CLS row of the encoder's attention"
    reads = ("cls_attention",)
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["vispruner"] = "vispruner"
    important: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        left, wanted = tokens - int(keep * self.important), keep - int(keep * self.important)
        while left > wanted > 0:
            yield left - left // 2, facts.token_width, left // 2
            left -= min(8, left // 2, left - wanted)


class VScanEntry(EncoderSelectorEntry):
    """Most attended tokens of every window in a shallow layer, and of the whole image in the last; others merge in.

    ``windows`` is the number of windows along each side, ``local_layer`` the shallow layer or its depth.

    Based on VScan (arXiv 2505.22654), its stage in front of the decoder.
    """

    summary = "highest CLS attention by window and overall; the others merge into the nearest"
    paper = "VScan (arXiv 2505.22654)"
    needs = "the CLS rows of two encoder layers, projected tokens"
    reads = ("cls_attention",)
    reads_encoder_grid = True
    projects = True
    needs_cls = True
    name: Literal["vscan"] = "vscan"
    local_layer: LayerOrDepth = 0.25
    windows: Annotated[int, Field(ge=1, le=16)] = 4

    @property
    def layers_named(self) -> tuple[int, ...]:
        return (self.local_layer,) if isinstance(self.local_layer, int) else ()

    def layers_read(self, facts: ModelFacts, running: Sequence[int]) -> tuple[int, ...]:
        return _at_depth(self.local_layer, facts.encoder, running), running[-1]

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return ((tokens, facts.decoder.width, keep), (keep, tokens, facts.decoder.width))


class DivPruneEntry(EncoderSelectorEntry):
    """Tokens that are far from one another: each the one whose nearest chosen neighbour is furthest away.

    Based on DivPrune (arXiv 2503.02175).
    """

    summary = "largest distance to the tokens chosen so far (max-min)"
    paper = "DivPrune (arXiv 2503.02175)"
    needs = "projected tokens"
    projects = True
    name: Literal["divprune"] = "divprune"

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return ((tokens, facts.decoder.width, tokens),)


class CDPrunerEntry(EncoderSelectorEntry):
    """Tokens that are relevant to the question and unlike one another: greedy MAP of a determinantal point process.

    ``relevance`` says whether a token is relevant where its ``cosine`` to the question is high, or, as the authors find
    for CLIP's embeddings, where it is low (``negative_cosine``).

    Based on CDPruner (arXiv 2506.10967); checkpoints carry no CLIP text encoder, so relevance is that of the decoder's
    own space.
    """

    summary = "relevance to the question times diversity (DPP)"
    paper = "CDPruner (arXiv 2506.10967)"
    needs = "projected tokens and the question"
    projects = True
    text_aware = True
    name: Literal["cdpruner"] = "cdpruner"
    relevance: Literal["cosine", "negative_cosine"] = "cosine"
    as_published: bool = False

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return (
            (tokens, facts.decoder.width, tokens),
            (1, text, facts.decoder.width),
            (tokens, facts.decoder.width, 1),
            (1, keep * (keep - 1) // 2, tokens),
        )


class ToDREEntry(EncoderSelectorEntry):
    """From the most attended token on, each the one that resembles the chosen ones least in sum.

    Based on ToDRE (arXiv 2505.18757), stage 1; its stage 2 is a ``visual_exit``.
    """

    summary = "smallest summed similarity to the tokens chosen so far (max-sum)"
    paper = "ToDRE (arXiv 2505.18757)"
    needs = "projected tokens; the CLS row where there is one"
    reads = ("cls_attention",)
    reads_encoder_grid = True
    projects = True
    name: Literal["todre"] = "todre"

    def layers_read(self, facts: ModelFacts, running: Sequence[int]) -> tuple[int, ...]:
        return super().layers_read(facts, running) if facts.encoder.has_cls else ()

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return ((tokens, facts.decoder.width, tokens),)


class MMTokEntry(EncoderSelectorEntry):
    """Tokens that together cover the question's words and the image's own tokens best (greedy maximum coverage).

    ``alpha`` weighs the image against the question; the temperatures say how local a token's coverage is.

    Based on MMTok (arXiv 2508.18264); no words are left out of the question.
    """

    summary = "greedy coverage of the question and of the image"
    paper = "MMTok (arXiv 2508.18264)"
    needs = "features, projected tokens and the question"
    projects = True
    text_aware = True
    name: Literal["mmtok"] = "mmtok"
    text_temperature: Multiple = 0.02
    vision_temperature: Multiple = 0.2
    alpha: Weight = 0.5

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return (
            (tokens, facts.token_width, tokens),
            (text, facts.decoder.width, tokens),
            (keep, text + tokens, tokens),
        )


class VisionZipEntry(EncoderSelectorEntry):
    """Most attended tokens, and for the share ``contextual`` of the budget tokens that stand for the others.

    A contextual token is the mean of what it stands for; ``as_published`` adds the mean of the others to the token
    itself, about twice the norm, as the authors' code does. Without a CLS token attention received takes its place.

    Based on VisionZip (arXiv 2412.04467).
    """

    summary = "highest attention, and contextual tokens that the others merge into"
    paper = "VisionZip (arXiv 2412.04467)"
    needs = "the CLS row (or attention received) and keys of an encoder layer"
    reads = ("cls_attention", "keys")
    reads_encoder_grid = True
    name: Literal["visionzip"] = "visionzip"
    contextual: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.15625
    as_published: bool = False

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return _contextual(tokens, keep, self.contextual, facts)


class PruMergeEntry(EncoderSelectorEntry):
    """Most attended tokens, each with its nearest tokens merged in, and one token for all that are dropped.

    ``spatial`` is PruMerge+: all but the share ``important`` of the budget goes to places spread over the image.

    Based on LLaVA-PruMerge (arXiv 2403.15388), at a fixed budget.
    """

    summary = "highest CLS attention with neighbours merged in, one token for the rest"
    paper = "LLaVA-PruMerge (arXiv 2403.15388)"
    needs = "one-head CLS attention and keys of the encoder layer behind the features"
    reads = ("one_head_cls_attention", "full_keys")
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["prumerge"] = "prumerge"
    spatial: bool = False
    important: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.25
    as_published: bool = False

    def layers_read(self, facts: ModelFacts, running: Sequence[int]) -> tuple[int, ...]:
        return _behind_features(facts.encoder, running)

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return ((keep - 1, facts.token_width, tokens), (keep, tokens, facts.token_width))


class ToMeEntry(EncoderSelectorEntry):
    """The most similar pairs of tokens merge, again and again, until the budget is met.

    Based on ToMe (arXiv 2210.09461), applied behind the encoder and not inside its layers.
    """

    summary = "similar tokens merge pairwise (bipartite matching)"
    paper = "ToMe (arXiv 2210.09461)"
    needs = "keys of an encoder layer"
    reads = ("keys",)
    reads_encoder_grid = True
    name: Literal["tome"] = "tome"

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return _matching(tokens, keep, facts)


class TurboEntry(EncoderSelectorEntry):
    """As ToMe, but tokens that the CLS token attends to are spared; ``alpha`` says how much.

    Based on Turbo (arXiv 2407.11717).
    """

    summary = "similar tokens of little CLS attention merge pairwise"
    paper = "Turbo (arXiv 2407.11717)"
    needs = "the CLS row and keys of an encoder layer"
    reads = ("keys", "cls_attention")
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["turbo"] = "turbo"
    alpha: Weight = 1.0

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return _matching(tokens, keep, facts, carried=2)


class PoolingEntry(EncoderSelectorEntry):
    """The grid in cells of near-equal size, each the mean of its tokens: adaptive average pooling to any budget."""

    summary = "mean over cells of the grid; a baseline that merges"
    name: Literal["pooling"] = "pooling"

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        sizes = [prod(grid) for grid in grids] or [tokens]
        shares = zip(shared_out(keep, sizes), sizes, strict=True)
        return tuple((share, size, facts.token_width) for share, size in shares)


class ClusteringEntry(EncoderSelectorEntry):
    """Clusters of similar tokens, each as its mean at its centre (DPC-KNN); ``neighbours`` sets how local density is.

    Based on DPC-KNN (Du et al. 2016), as TCFormer (arXiv 2204.08680) and Chat-UniVi (arXiv 2311.08046) use it.
    """

    summary = "means of clusters (DPC-KNN)"
    paper = "DPC-KNN, as in Chat-UniVi (arXiv 2311.08046)"
    needs = "features"
    name: Literal["clustering"] = "clustering"
    neighbours: Annotated[int, Field(ge=1)] = 5

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return ((tokens, facts.token_width, tokens), (keep, tokens, facts.token_width))


class HiREDEntry(EncoderSelectorEntry):
    """Tiles share the budget by the attention that their part of the whole view gets; then the most attended tokens.

    ``share`` of the budget goes to the whole view. Of an image that is one view the most attended tokens are kept.

    Based on HiRED (arXiv 2408.10945).
    """

    summary = "CLS attention, with a budget for each tile"
    paper = "HiRED (arXiv 2408.10945)"
    needs = "the CLS row of the last encoder layer; with tiles, of the first one too"
    where = "across tiles"
    reads = ("cls_attention",)
    reads_encoder_grid = True
    needs_cls = True
    across_views = True
    name: Literal["hired"] = "hired"
    share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5
    as_published: bool = False

    def layers_read(self, facts: ModelFacts, running: Sequence[int]) -> tuple[int, ...]:
        return (running[0], running[-1]) if facts.layout.span_views > 1 else (running[-1],)

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return _by_region(facts)


class GlobalCom2Entry(EncoderSelectorEntry):
    """The whole view says what share of the budget each tile gets, and has a say in which of its tokens stay.

    ``temperature`` evens the shares out. Of an image that is one view the highest scores are kept.

    Based on GlobalCom2 (arXiv 2501.05179).
    """

    summary = "CLS scores of tile and whole view, with a budget for each tile"
    paper = "GlobalCom2 (arXiv 2501.05179)"
    needs = "the CLS row of the layer behind the features, before the softmax"
    where = "across tiles"
    reads = ("cls_logits",)
    reads_encoder_grid = True
    needs_cls = True
    across_views = True
    name: Literal["globalcom2"] = "globalcom2"
    temperature: Multiple = 10.0
    as_published: bool = False

    def layers_read(self, facts: ModelFacts, running: Sequence[int]) -> tuple[int, ...]:
        return _behind_features(facts.encoder, running)

    def products(
        self, tokens: int, keep: int, text: int, facts: ModelFacts, grids: Sequence[Grid]
    ) -> Iterable[Product]:
        return _by_region(facts)


class EVSEntry(EncoderSelectorEntry):
    """What changes from frame to frame of a video, at one budget for all frames; the first frame comes first.

    For a model that is made ready for clips (``--frames``) and gives a clip one run of tokens. A frame is a grid of
    tokens, of which some models make one of two pictures. ``frames`` holds the recipe to clips of that many; without
    it, any clip is served.

    Based on EVS (arXiv 2510.14624).
    """

    summary = "lowest similarity to the frame before"
    paper = "EVS (arXiv 2510.14624)"
    needs = "projected tokens of several frames"
    where = "across frames"
    projects = True
    across_frames = True
    name: Literal["evs"] = "evs"
    frames: Annotated[int, Field(ge=2)] | None = None
