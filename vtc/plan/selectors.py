"""Which selectors in front of the decoder can choose among a model's visual tokens, and why others cannot."""

from __future__ import annotations

from vtc.facts.model import ModelFacts
from vtc.facts.views import views_of
from vtc.recipe.selectors import ENCODER_SELECTORS, EncoderSelectorEntry

Entry = EncoderSelectorEntry | type[EncoderSelectorEntry]


def why_not(entry: Entry, facts: ModelFacts, *, pruned: bool) -> str | None:
    """What stands against a selector on a model, to go on behind its name; None where nothing does.

    Parameters
    ----------
    entry
        A recipe's entry, or a class of them.
    facts
        The model's sizes.
    pruned
        Whether an earlier stage has pruned already, so that grids are no longer whole.
    """
    layout = facts.layout
    if entry.needs_cls and not facts.encoder.has_cls:
        return "needs a CLS token, and this encoder has none"
    if entry.across_frames:
        if layout.frames == 1 or layout.spans > 1:
            return f"needs the frames of a video in one run of tokens, and {facts.model_type} has none here"
        if pruned:
            return "compares whole frames, and an earlier stage has pruned those"
    if entry.compares_patches and layout.grids != (layout.view_grid,):
        views_here = f"the {layout.span_views} views of an image here never see each other"
        return f"ranks patches by attention among them, and {views_here}"
    if entry.across_views:
        try:
            views = views_of(layout)
        except ValueError as error:
            return f"shares its budget between a full view and its crops, and {error}"
        if views and pruned:
            return "shares its budget between whole views, and an earlier stage has pruned those"
    return None


def these_work(facts: ModelFacts | None, *, filtered: bool, pruned: bool) -> str:
    """Name the selectors against which nothing stands.

    Parameters
    ----------
    facts
        The model's sizes; None where no model is known yet.
    filtered
        Whether an earlier stage has replaced the encoder's own patches.
    pruned
        As for :func:`why_not`.
    """
    return ", ".join(
        name
        for name, entry in ENCODER_SELECTORS.items()
        if not (filtered and entry.reads_encoder_grid)
        and (facts is None or why_not(entry, facts, pruned=pruned) is None)
    )
