"""Which of a bundle's variants is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vtc.bundle.facts import FORMS, Form, Variant, precision_and_form, variant_name
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.errors import InputError
from vtc.runtime.variants import choose_variant

ORT: tuple[Form, ...] = ("ort", "portable", "opset23")


def variant(name: str) -> Variant:
    return Variant(name, *precision_and_form(name))


@pytest.fixture
def manifest(toy_bundle: Path) -> Manifest:
    names = ("q4", "fp32", "q4-ort", "fp32-opset23", "fp16", "int8-static")
    return replace(load_manifest(toy_bundle), variants=tuple(map(variant, names)))


@pytest.mark.parametrize("precision", ["fp32", "int8-static", "q4"])
@pytest.mark.parametrize("form", FORMS)
def test_names_say_precision_and_form(precision: str, form: str) -> None:
    assert precision_and_form(variant_name(precision, form)) == (precision, form)


@pytest.mark.parametrize("name", ["fp32-portable", "-ort", "ort", "fp16-fast"])
def test_other_names_are_precisions(name: str) -> None:
    assert precision_and_form(name) == (name, "portable")


@pytest.mark.parametrize(
    ("wanted", "default", "forms", "found"),
    [
        (None, "fp32", ORT, "fp32"),
        (None, "fp16", ORT, "fp16"),
        (None, "bf16", ORT, "q4-ort"),  # the bundle's first precision
        ("q4", "fp32", ORT, "q4-ort"),
        ("q4", "fp32", ("portable",), "q4"),
        ("q4-portable", "fp32", ORT, "q4"),
        ("fp32-opset23", "fp32", ORT, "fp32-opset23"),
        ("int8-static", "fp32", ORT, "int8-static"),
    ],
)
def test_choice(manifest: Manifest, wanted: str | None, default: str, forms: tuple[Form, ...], found: str) -> None:
    assert choose_variant(manifest, wanted, default, forms).name == found


def test_what_is_not_there_is_refused_with_what_is(manifest: Manifest) -> None:
    with pytest.raises(InputError, match=r"holds no fp16-ort graphs, only q4, fp32, .*--precision fp16-ort"):
        choose_variant(manifest, "fp16-ort", "fp32", ORT)
    with pytest.raises(InputError, match="q4-ort graphs are not for this backend or provider, which runs q4, fp32"):
        choose_variant(manifest, "q4-ort", "fp32", ("portable",))
