"""The state of a training: taken up whole, or begun again where it is damaged, or refused where it went wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vtc.errors import InputError
from vtc.training.state import load_state, save_state


def trained(path: Path) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A module after one step, whose state is written."""
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(path, module, optimizer, 1, [{"loss": 2.0}], "run")
    return module, optimizer


def changed(path: Path, tensors: Callable[[dict[str, Tensor]], object], **metadata: str) -> None:
    with safe_open(path, framework="pt") as file:
        values, told = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors(values)
    save_file(values, path, metadata={**told, **metadata})


def test_state_is_taken_up(tmp_path: Path) -> None:
    module, optimizer = trained(tmp_path / "state")
    assert load_state(tmp_path / "state", module, optimizer, "run") == (1, [{"loss": 2.0}])
    assert load_state(tmp_path / "state", module, optimizer, "other run") == (0, [])


@pytest.mark.parametrize("fault", ["step", "log", "missing", "shape", "bytes"])
def test_damaged_state_is_begun_again(fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state"
    module, optimizer = trained(path)
    before = module.weight.detach().clone()
    match fault:
        case "step" | "log":
            changed(path, len, **{fault: "x"})
        case "missing":
            changed(path, lambda values: values.pop("parameter weight"))
        case "shape":
            changed(path, lambda values: values.update({"parameter bias": torch.zeros(5)}))
        case _:
            path.write_bytes(path.read_bytes()[:40])
    assert load_state(path, module, optimizer, "run") == (0, [])
    assert caplog.messages == [f"{path}: notes of an interrupted training are damaged; it begins anew"]
    assert torch.equal(module.weight, before)


def test_state_that_went_wrong_is_refused_by_name(tmp_path: Path) -> None:
    module, optimizer = trained(tmp_path / "state")
    changed(tmp_path / "state", lambda values: values["exp_avg bias"].fill_(float("nan")))
    with pytest.raises(InputError, match="exp_avg bias is not all finite numbers; remove the file"):
        load_state(tmp_path / "state", module, optimizer, "run")
