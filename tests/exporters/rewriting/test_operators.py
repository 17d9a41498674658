"""The table of operators agrees with the installed ONNX Runtime and with what is written."""

from __future__ import annotations

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from exporters.rewriting.operators import OPERATORS, Operator, markdown

SCHEMAS = {(schema.domain, schema.name, schema.since_version): schema for schema in get_all_operator_schema()}
TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda one: f"{one.form}-{one.name}")
def test_each_operator_is_in_the_schemas(operator: Operator) -> None:
    schema = SCHEMAS[operator.domain, operator.name, operator.since]
    allowed = set(schema.type_constraints[0].allowed_type_strs)
    assert all(TYPES[kind] in allowed for kinds in operator.types.values() for kind in kinds)
    assert operator.sources
    assert operator.domain in ("", "com.microsoft") if operator.form == "ort" else operator.domain == ""


def test_the_page_has_a_line_for_each_operator() -> None:
    lines = list(markdown())
    assert len(lines) == 2 + len(OPERATORS)
    assert {line.count("|") for line in lines} == {9}
    assert "`com.microsoft.GroupQueryAttention`" in lines[2]
