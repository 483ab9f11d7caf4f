"""Grouping of windows for group window attention.

Huang et al., "Green Hierarchical Vision Transformer for Masked Image Modeling", arXiv 2205.13515, section 3.2. The
grouping depends only on the mask and is computed on the CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Number of group sizes tried, from the largest window to twice its size. More would save little and take longer.
CANDIDATES = 8


@dataclass(frozen=True)
class Groups:
    """Tokens in groups of equal size, so that attention is computed on dense tensors.

    Attributes:
        members: index of the token in each slot, (G, g) int64; padding slots repeat the first token of the group.
        allowed: attention mask, (G, g, g): whether two slots of a group belong to one window. A padding slot attends
            only to itself, and no other slot attends to it.
        bias: row of the relative position table for each pair, (G, g, g) int64; 0 if the pair is masked.
        slots: index of each token in the flattened groups, (T,) int64.
    """

    members: Tensor
    allowed: Tensor
    bias: Tensor
    slots: Tensor

    def to(self, device: torch.device) -> "Groups":
        """Copy the tensors to a device."""
        return Groups(*(t.to(device) for t in (self.members, self.allowed, self.bias, self.slots)))


def group_windows(positions: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Groups:
    """Assign visible tokens to windows, and windows to groups, at the lowest cost of attention.

    Windows start at `shift`, and windows at the edges are smaller, which is equivalent to Swin's masked cyclic shift
    (arXiv 2103.14030, section 3.2).

    Args:
        positions: row and column of each visible token, (T, 2) int64, on the CPU.
        window: height and width of a window.
        shift: offset of the windows, down and to the right.
    """
    row, column = ((positions[:, i] + window[i] - shift[i]) // window[i] for i in (0, 1))
    ids = row * (int(column.max()) + 1) + column
    order = ids.argsort(stable=True)
    sizes = ids[order].unique_consecutive(return_counts=True)[1]
    windows = order.split(sizes.tolist())
    packed = pack(sizes.tolist())
    groups = [torch.cat([windows[i] for i in group]) for group in packed]
    size = max(map(len, groups))
    members = torch.stack([torch.cat([g, g[:1].expand(size - len(g))]) for g in groups])
    valid = torch.stack([torch.arange(size) < len(g) for g in groups])
    allowed = (ids[members][:, :, None] == ids[members][:, None, :]) & valid[:, None, :] & valid[:, :, None]
    allowed |= torch.eye(size, dtype=torch.bool) & ~valid[:, :, None]
    grid = positions[members]
    offset = grid[:, :, None] - grid[:, None, :] + torch.tensor([window[0] - 1, window[1] - 1])
    bias = (offset[..., 0] * (2 * window[1] - 1) + offset[..., 1]).masked_fill(~allowed, 0)
    slots = torch.empty(len(positions), dtype=torch.int64)
    slots[members[valid]] = valid.flatten().nonzero()[:, 0]
    return Groups(members, allowed, bias, slots)


def pack(sizes: list[int]) -> list[list[int]]:
    """Pack windows into groups, with the group size at which attention costs least.

    n groups of size g cost n g^2, the size of the attention matrices; the cost of all other layers depends on the
    number of tokens alone. Groups are filled one after another, each as full as possible (arXiv 2205.13515,
    algorithm 1). The paper tries every group size; our choice is to try only a few.

    Args:
        sizes: number of tokens of each window, at least 1.

    Returns:
        The windows of each group, as indices into `sizes`.
    """
    largest, total = max(sizes), sum(sizes)
    capacities = {min(total, largest + (largest * i) // CANDIDATES) for i in range(CANDIDATES + 1)}
    # Sorted, so that the smallest of several group sizes with equal costs is used on every machine.
    packings = [fill(sizes, capacity) for capacity in sorted(capacities)]
    return min(packings, key=lambda groups: len(groups) * max(sum(sizes[i] for i in g) for g in groups) ** 2)


def fill(sizes: list[int], capacity: int) -> list[list[int]]:
    """Fill groups of at most `capacity` tokens one after another, each as full as the remaining windows allow."""
    remaining = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    groups = []
    while remaining:
        # Bit s of reachable[k] is set if some of the first k windows have s tokens in total.
        reachable = [1]
        for i in remaining:
            reachable.append(reachable[-1] | reachable[-1] << sizes[i])
        total = (reachable[-1] & ((1 << (capacity + 1)) - 1)).bit_length() - 1
        group = []
        for k in range(len(remaining), 0, -1):
            if not reachable[k - 1] >> total & 1:
                group.append(remaining[k - 1])
                total -= sizes[remaining[k - 1]]
        groups.append(group)
        remaining = [i for i in remaining if i not in group]
    return groups
