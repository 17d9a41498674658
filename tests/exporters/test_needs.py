"""What an export is said to write is what it writes."""

from __future__ import annotations

import onnx
import pytest

from exporters.needs import export_need, graph_bytes, run_need
from exporters.precision import precision
from tests.exporters.conftest import Exported
from vtc.bundle.manifest import load_manifest
from vtc.compressed.needs import costs_of
from vtc.models.base import VLMAdapter
from vtc.runtime.needs import bundle_need

pytestmark = pytest.mark.xdist_group("exported")


@pytest.mark.parametrize("name", ["cls", "none"])
def test_disk_is_within_15_percent_of_what_is_written(name: str, exported: Exported, adapter: VLMAdapter) -> None:
    wanted, bundle = exported(name)
    written = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    need = export_need(wanted.model.plan, costs_of(adapter), [precision("fp32")], samples=2)
    assert need.disk == pytest.approx(written, rel=0.15)


def test_a_planned_bundle_takes_to_run_what_the_written_one_does(exported: Exported, adapter: VLMAdapter) -> None:
    wanted, bundle = exported("cls")
    costs = costs_of(adapter)
    planned = run_need(precision("fp32"), wanted.model.plan, costs, answer=16)
    found = bundle_need(load_manifest(bundle), "fp32", "cpu")
    files = [file for file in (bundle / "onnx").glob("*.onnx") if "embed" not in file.name]
    weights = [tensor for file in files for tensor in onnx.load(file).graph.initializer]
    # What else is in the files are nodes, which in a model as small as this one is as much again.
    nodes = found.work - sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in weights)
    assert planned.work - costs.asked(wanted.model.plan) == pytest.approx(found.work - nodes, rel=0.15)
    assert planned.mapped == pytest.approx(found.mapped, rel=0.15)


def test_on_a_gpu_all_graphs_are_there(exported: Exported) -> None:
    manifest = load_manifest(exported("cls")[1])
    assert bundle_need(manifest, "fp32", "cuda").gpu == manifest.graph_bytes("fp32")


def test_few_bits_are_derived_from_graphs_that_are_written_first(exported: Exported, adapter: VLMAdapter) -> None:
    plan, costs = exported("cls")[0].model.plan, costs_of(adapter)
    whole, half, quarter = (graph_bytes(precision(name), plan, costs) for name in ("fp32", "fp16", "q4"))
    assert whole == 2 * half
    assert quarter == pytest.approx((0.5 + 4 / 32) / 4 * whole, rel=1e-4)
    apart = [export_need(plan, costs, [precision(name)], 1).disk for name in ("fp32", "q4")]
    both = export_need(plan, costs, [precision("fp32"), precision("q4")], 1).disk
    assert both == apart[1] > apart[0]


def test_every_layout_has_a_vision_graph_of_its_own(exported: Exported, adapter: VLMAdapter) -> None:
    wanted, bundle = exported("cls")
    asked = wanted.model.plan, costs_of(adapter), [precision("fp32")], 1
    one, two, three = (export_need(*asked, layouts).disk for layouts in (1, 2, 3))
    written = (bundle / "onnx" / "vision_encoder.onnx").stat().st_size
    assert three - two == two - one == pytest.approx(written, rel=0.15)
