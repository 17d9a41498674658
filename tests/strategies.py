"""Hypothesis strategies for recipes: any that is well formed, whether or not a model can take it."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

# A deadline fails on a busy machine, not on a slow test.
settings.register_profile("vtc", deadline=None)
settings.load_profile("vtc")

layer_numbers = st.integers(-12, 12)
layer_lists = st.lists(layer_numbers, min_size=1, max_size=4, unique=True)
keeps = st.integers(1, 300) | st.floats(0, 1, exclude_min=True, exclude_max=True)
budgets = st.lists(st.integers(1, 300), min_size=2, max_size=4, unique=True).map(sorted)

selectors = st.one_of(
    st.sampled_from(["random", "uniform", "cls_attention"]),
    st.fixed_dictionaries({"name": st.just("random")}, optional={"seed": st.integers(0, 2**32 - 1)}),
    st.fixed_dictionaries(
        {"name": st.just("cls_attention")},
        optional={"layers": st.sampled_from(["feature", "auto"]) | layer_numbers | layer_lists},
    ),
    st.fixed_dictionaries(
        {"name": st.just("learned")},
        optional={
            "checkpoint": st.sampled_from(["auto", "a.safetensors", "parts/b.safetensors"]),
            "diversity": st.floats(0, 1, exclude_max=True),
        },
    ),
)

prunes = st.fixed_dictionaries(
    {"kind": st.just("prune"), "selector": selectors},
    optional={"keep": keeps | budgets, "positions": st.sampled_from(["renumber", "original"])},
)
filters = st.fixed_dictionaries(
    {"kind": st.just("frequency_filter"), "keep": keeps}, optional={"preserve_mean": st.booleans()}
) | st.fixed_dictionaries(
    {"kind": st.just("frequency_filter"), "keep": st.just("auto")},
    optional={"energy": st.floats(0, 1, exclude_min=True)},
)
decoder_selectors = st.one_of(
    st.just("text_attention"),
    st.fixed_dictionaries(
        {"name": st.just("text_attention")},
        optional={
            "queries": st.sampled_from(["text_after_image", "all_text", "last_token", "raters"]),
            "rope": st.booleans(),
        },
    ),
)
cuts = st.fixed_dictionaries(
    {"kind": st.just("prune_in_decoder"), "layer": layer_numbers | st.floats(0, 1, exclude_min=True, exclude_max=True)},
    optional={"keep": keeps, "selector": decoder_selectors},
)
depths = st.floats(0, 1, exclude_min=True, exclude_max=True)
exits = st.fixed_dictionaries({"kind": st.just("visual_exit"), "layer": layer_numbers | depths | st.just("auto")})


def drops(component: str) -> st.SearchStrategy[dict[str, Any]]:
    """`drop_layers` stages of a component."""
    base = {"kind": st.just("drop_layers"), "component": st.just(component)}
    optional = {"visual_only": st.booleans()} if component == "decoder" else {}
    listed = st.fixed_dictionaries({**base, "layers": layer_lists}, optional=optional)
    auto = st.fixed_dictionaries({**base, "layers": st.just("auto"), "count": st.integers(1, 4)}, optional=optional)
    return listed | auto


in_any_order = st.lists(prunes | filters | cuts | exits | drops("decoder") | drops("encoder"), max_size=5)
in_data_order = st.tuples(
    st.lists(drops("encoder"), max_size=1),
    st.lists(filters, max_size=1),
    st.lists(prunes, max_size=2),
    st.lists(cuts, max_size=2),
    st.lists(exits, max_size=1),
    st.lists(drops("decoder"), max_size=2),
).map(lambda groups: [stage for group in groups for stage in group])

budgets = st.fixed_dictionaries({"keep_average": keeps}, optional={"ratio": st.floats(1, 9, exclude_min=True)})
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


def recipes(stages: st.SearchStrategy[list[dict[str, Any]]]) -> st.SearchStrategy[dict[str, Any]]:
    """Recipes as plain data."""
    return st.fixed_dictionaries(
        {"version": st.just(1), "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)}
        | {"stages": stages},
        optional={"description": words, "paper": words, "budget": budgets},
    )
