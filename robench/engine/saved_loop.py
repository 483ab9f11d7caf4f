"""Saving and resuming the loop of an attack."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from robench.attacks._base import gather
from robench.engine.ahead import Recent
from robench.engine.attack_loop import Loop
from robench.engine.lanes import START, named, restored
from robench.engine.loss_monitor import COLUMNS


def dump(loop: Loop) -> dict[str, Tensor]:
    """The state that `load` needs to resume with identical results."""
    return {
        "counters": torch.tensor([loop.supply.queue.next]),
        "recent": torch.tensor([mean.value for mean in _recent(loop)], dtype=torch.float64),
        **named("lanes", loop.lanes),
        **{f"results.{name}": tensor for name, tensor in loop.results.tensors.items()},
        **{f"kept.{lane}": point for lane, point in loop.verdicts.kept.items()},
        **(named("state", loop.state) if loop.state is not None else {}),
        **loop.losses.dump(),
    }


def _recent(loop: Loop) -> tuple[Recent, Recent]:
    """The means on which the choice of the next rows and queries depends."""
    return loop.supply.wins, loop.ahead.accepted


def load(loop: Loop, saved: dict[str, Tensor]) -> None:
    """Restore the state of `dump` in a new loop; the caller restores the examples."""
    loop.supply.queue.next = int(saved["counters"][0])
    for mean, value in zip(_recent(loop), saved.get("recent", torch.empty(0)).tolist(), strict=False):
        mean.value = value
    loop.lanes = loop.verdicts.lanes = restored("lanes", loop.lanes, saved)
    loop.count = len(loop.lanes.sample)
    for name, tensor in loop.results.tensors.items():
        value = saved.get(f"results.{name}", tensor)
        if name == "counts":
            value = pad(value, (0, len(COLUMNS) - value.shape[-1]))
        setattr(loop.results, name, value)
    if "watched" in saved:
        # An earlier version saved totals, which are counted for one row that is always counted.
        totals = saved["watched"]
        loop.results.counts[0, 0, : len(totals)] = totals.int()
        loop.results.counts[0, 0, COLUMNS["nonfinite"]] = int(saved["counters"][1])
    loop.verdicts.kept = {
        int(name.removeprefix("kept.")): tensor.to(loop.context.device)
        for name, tensor in saved.items()
        if name.startswith("kept.")
    }
    loop.losses.load(saved)
    if not any(name.startswith("state.") for name in saved):
        return
    loop.rows = loop.images.rows(loop.lanes.held, loop.lanes.rank)
    first = gather(loop.rows, torch.zeros(START, dtype=torch.int64, device=loop.context.device))
    template = loop.context.attack.init(loop.context.problem, first)
    loop.state = restored("state", template, saved, loop.context.device)
