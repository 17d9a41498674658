"""How long a step of expert-parallel prefill or decoding takes, predicted from routes and a machine's constants.

A prediction is simulated, not measured, and says so. Attention and everything else that is not an expert is not part
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vtc.errors import InputError
from vtc.experts.placement import ExpertMap
from vtc.experts.statistics import TEXT, Floats, Numbers, Routes
from vtc.experts.traffic import Replay, replay

if TYPE_CHECKING:
    from vtc.experts.parallel import ParallelRun


@dataclass(frozen=True)
class Machine:
    """Devices of one kind, and what joins them, for layers of one shape.

    Attributes
    ----------
    seconds_per_call : float
        Of one token in one expert, where many tokens share it.
    seconds_per_expert : float
        Of an expert that gets any token: reading its weights, starting its products.
    bytes_per_second : float
        That a device sends; 0 where sending takes no time that could be told from the rest.
    seconds_per_message : float
        Of a message between two devices, however short.
    seconds_per_layer : float
        Of what every layer takes.
    seconds_per_token : float
        Of a token at its home, in each layer: it is packed to be sent, and its answers are added.
    seconds_per_shared_call : float
        That a call on any device adds to all, where devices share what computes: processes of one machine its cores
        and its memory. 0 for devices of their own.
    """

    seconds_per_call: float
    seconds_per_expert: float
    bytes_per_second: float
    seconds_per_message: float
    seconds_per_layer: float
    seconds_per_token: float = 0.0
    seconds_per_shared_call: float = 0.0

    @classmethod
    def from_data_sheet(
        cls,
        *,
        width: int,
        inner: int,
        weight_bytes: float,
        flops: float,
        memory: float,
        link: float,
        message: float,
        layer: float = 0.0,
    ) -> Machine:
        """Constants of a machine that was not measured.

        Parameters
        ----------
        width, inner : int
            Of the hidden state and inside an expert: three matrices of width times inner.
        weight_bytes : float
            Of one weight.
        flops, memory, link : float
            Operations, bytes of memory and bytes of the link a second, as they are really reached.
        message, layer : float
            Seconds of one message and of one layer.
        """
        weights = 3 * width * inner
        return cls(2 * weights / flops, weights * weight_bytes / memory, link, message, layer)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what they are spent on.

    Attributes
    ----------
    calls, experts : float
        Of the device with the most calls, and of the one with the most experts called, layer by layer.
    transfer : float
        Of the device that sends the most bytes.
    messages : float
        Of the device that talks to the most others, there and back.
    layers : float
        The rest.
    tokens : float
        Of the device that is home to the most.
    shared_calls : float
        Of all devices' calls, where they share what computes.
    """

    calls: float
    experts: float
    transfer: float
    messages: float
    layers: float
    tokens: float
    shared_calls: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return float(sum(asdict(self).values()))

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"simulated": True, "seconds": self.total, "seconds_of": asdict(self)}


_COMPUTE, _REST = [0, 1, 6], [2, 3, 4, 5]
"""Terms of `StepTime` that pass inside experts, and the others."""


def token_bytes(width: int, active: int, size: int = 4) -> int:
    """Bytes of a token that is sent to a device, with its calls' slots and weights, and of the answer."""
    return size * (2 * width + 2 * active)


def simulate_step(counted: Replay, machine: Machine, bytes_of_token: float) -> StepTime:
    """Time of one step whose traffic was counted."""
    work, rates = _work(counted, bytes_of_token), _rates(machine)
    return StepTime(*(float(amount * rate) for amount, rate in zip(work, rates, strict=True)))


def simulate_prefill(
    routes: Routes, placement: ExpertMap, homes: Numbers, machine: Machine, bytes_of_token: float, prompts: int
) -> StepTime:
    """Mean time of a prefill of so many prompts at once, of which the routes have some."""
    return _mean_step(routes, placement, homes, machine, bytes_of_token, _batches(routes, routes.sample, prompts))


def simulate_decode(
    routes: Routes, placement: ExpertMap, homes: Numbers, machine: Machine, bytes_of_token: float, prompts: int
) -> StepTime:
    """Mean time of one step of decoding, in which each of so many prompts has one token: its last text token."""
    text = np.flatnonzero(routes.modality == TEXT)
    _, from_end = np.unique(routes.sample[text][::-1], return_index=True)
    last = np.zeros(len(routes.sample), bool)
    last[text[::-1][from_end]] = True
    sample = np.where(last, routes.sample, -1)
    return _mean_step(routes, placement, homes, machine, bytes_of_token, _batches(routes, sample, prompts))


def _batches(routes: Routes, sample: Numbers, prompts: int) -> list[Numbers]:
    """Tokens of each batch of prompts; -1 is of none. What is left at the end is left out."""
    seen = np.unique(sample[sample >= 0])
    if not 0 < prompts <= len(seen):
        raise InputError(f"the routes have {len(seen)} prompts with such tokens; {prompts} at once cannot be simulated")
    whole = len(seen) // prompts * prompts
    return [np.flatnonzero(np.isin(sample, batch)) for batch in seen[:whole].reshape(-1, prompts)]


def _mean_step(
    routes: Routes,
    placement: ExpertMap,
    homes: Numbers,
    machine: Machine,
    bytes_of_token: float,
    batches: Sequence[Numbers],
) -> StepTime:
    rates, steps = _rates(machine), []
    for members in batches:
        some = Routes(routes.chosen[:, members], routes.modality[members], routes.sample[members])
        steps.append(_work(replay(some, placement, homes[members]), bytes_of_token) * rates)
    return StepTime(*np.mean(steps, axis=0).tolist())


def _work(counted: Replay, bytes_of_token: float) -> Floats:
    """Calls, experts, bytes, messages, layers and tokens of the device that has the most of each, and calls of all.

    Summed over layers, in the order of `StepTime`.
    """
    answers = counted.sent.transpose(0, 2, 1)
    # A token goes out with its calls and comes back as an answer; each is about half of the bytes.
    sent = (counted.sent.sum(axis=2) + answers.sum(axis=2)) * bytes_of_token / 2
    peers = (counted.sent > 0).sum(axis=2) + (answers > 0).sum(axis=2)
    per_layer = [counted.calls, counted.experts, sent, peers, np.ones_like(counted.calls), counted.at_home]
    return np.array([*(amounts.max(axis=1).sum() for amounts in per_layer), counted.calls.sum()], np.float64)


def _rates(machine: Machine) -> Floats:
    link = 1 / machine.bytes_per_second if machine.bytes_per_second else 0.0
    rates = [machine.seconds_per_call, machine.seconds_per_expert, link]
    others = [machine.seconds_per_message, machine.seconds_per_layer, machine.seconds_per_token]
    return np.array([*rates, *others, machine.seconds_per_shared_call])


def fit_machine(runs: Sequence[tuple[Replay, ParallelRun]], bytes_of_token: float) -> Machine:
    """Constants, none negative, that predict measured runs with the least relative error.

    Time inside experts is fitted alone; what is left of a step is for the rest. Constants whose amounts rose and fell
    together in all runs cannot be told apart, and only their sum means something.

    Parameters
    ----------
    runs : sequence of (Replay, ParallelRun)
        What was counted and what was measured, of several placements and numbers of tokens.
    bytes_of_token : float
    """
    from scipy.optimize import nnls

    if len(runs) < 3:
        raise InputError(f"{len(runs)} runs are too few to fit a machine's constants; measure at least 3")
    work = np.stack([_work(counted, bytes_of_token) for counted, _ in runs])
    compute = np.array([np.median(run.phases[..., 1].max(axis=2).sum(axis=1)) for _, run in runs])
    whole = np.array([np.median(run.seconds) for _, run in runs])
    rest = np.maximum(whole - compute, 0)
    found = np.zeros(work.shape[1])
    for columns, seconds in ((_COMPUTE, compute), (_REST, rest)):
        amounts = work[:, columns]
        scale = amounts.max(axis=0)
        scale[scale == 0] = 1
        constants, _ = nnls(amounts / scale / whole[:, None], seconds / whole)
        found[columns] = constants / scale
    call, expert, byte, message, layer, token, shared = found.tolist()
    return Machine(call, expert, 1 / byte if byte else 0.0, message, layer, token, shared)
