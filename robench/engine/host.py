"""Copies of per-lane values from the device to the host."""

import torch
from torch import Tensor


def on_host(**columns: Tensor | None) -> dict[str, Tensor]:
    """Copy columns (S,) of bools, float32 or float64 to the CPU in one transfer; None is left out.

    The host waits for the device at every transfer.
    """
    present = {name: column for name, column in columns.items() if column is not None}
    if all(column.device.type == "cpu" for column in present.values()):
        return present
    double = any(column.dtype == torch.float64 for column in present.values())
    kind = torch.float64 if double else torch.float32
    packed = torch.stack([column.to(kind) for column in present.values()]).cpu()
    return {name: row.to(column.dtype) for row, (name, column) in zip(packed, present.items(), strict=True)}
