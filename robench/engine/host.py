"""Facts of every lane, brought from the device together."""

import torch
from torch import Tensor


def on_host(**columns: Tensor | None) -> dict[str, Tensor]:
    """Columns (S,) of bools or float32 on the CPU, None left out.

    One copy takes all of them: the host waits for the device at every copy.
    """
    present = {name: column for name, column in columns.items() if column is not None}
    if all(column.device.type == "cpu" for column in present.values()):
        return present
    packed = torch.stack([column.to(torch.float32) for column in present.values()]).cpu()
    return {name: row.to(column.dtype) for row, (name, column) in zip(packed, present.items(), strict=True)}
