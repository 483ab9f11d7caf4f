"""Group window attention's bookkeeping: which visible tokens share a window, and which windows a group.

Huang et al., "Green Hierarchical Vision Transformer for Masked Image Modeling", arXiv 2205.13515, section 3.2.
Everything here is decided by the mask alone, on the CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Group sizes tried between the largest window and twice it. More would save little, and each costs time.
CANDIDATES = 8


@dataclass(frozen=True)
class Groups:
    """Tokens in groups of one size, so that attention runs on dense tensors.

    Attributes:
        members: token of each slot, (G, g) int64; the spare slots of a group repeat its first token.
        allowed: whether a slot may attend to another of its group, (G, g, g): both of one window. A spare slot
            is seen by none and sees itself.
        bias: row of the relative position table for each pair, (G, g, g) int64; 0 where not allowed.
        slots: where each token stands in the flattened groups, (T,) int64.
    """

    members: Tensor
    allowed: Tensor
    bias: Tensor
    slots: Tensor

    def to(self, device: torch.device) -> "Groups":
        """The same on a device."""
        return Groups(*(t.to(device) for t in (self.members, self.allowed, self.bias, self.slots)))


def group_windows(places: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Groups:
    """Visible tokens by window, windows by group, so that attention costs least.

    Windows start at `shift` and those at the edges are cut, which is what Swin's cyclic shift with its mask
    comes to (arXiv 2103.14030, section 3.2).

    Args:
        places: row and column of each visible token, (T, 2) int64, on the CPU.
        window: height and width.
        shift: of the windows, down and right.
    """
    row, column = ((places[:, i] + window[i] - shift[i]) // window[i] for i in (0, 1))
    ids = row * (int(column.max()) + 1) + column
    order = ids.argsort(stable=True)
    sizes = ids[order].unique_consecutive(return_counts=True)[1]
    runs = order.split(sizes.tolist())
    packed = pack(sizes.tolist())
    groups = [torch.cat([runs[i] for i in group]) for group in packed]
    longest = max(map(len, groups))
    members = torch.stack([torch.cat([g, g[:1].expand(longest - len(g))]) for g in groups])
    real = torch.stack([torch.arange(longest) < len(g) for g in groups])
    allowed = (ids[members][:, :, None] == ids[members][:, None, :]) & real[:, None, :] & real[:, :, None]
    allowed |= torch.eye(longest, dtype=torch.bool) & ~real[:, :, None]
    at = places[members]
    apart = at[:, :, None] - at[:, None, :] + torch.tensor([window[0] - 1, window[1] - 1])
    bias = (apart[..., 0] * (2 * window[1] - 1) + apart[..., 1]).masked_fill(~allowed, 0)
    slots = torch.empty(len(places), dtype=torch.int64)
    slots[members[real]] = real.flatten().nonzero()[:, 0]
    return Groups(members, allowed, bias, slots)


def pack(sizes: list[int]) -> list[list[int]]:
    """Windows in groups: of several group sizes, the one whose attention costs least.

    The cost of n groups of size g is n g^2, that of the attention matrices; all else is computed a token, not
    a slot. Each group is filled as full as the rest of the windows allow, one after the other (arXiv
    2205.13515, algorithm 1). The paper tries every group size; we try a few, which is our choice.

    Args:
        sizes: tokens of each window, at least 1.

    Returns:
        The windows of each group, as positions in `sizes`.
    """
    largest, total = max(sizes), sum(sizes)
    capacities = {min(total, largest + (largest * i) // CANDIDATES) for i in range(CANDIDATES + 1)}
    # Sorted, so that of equal costs the smallest group wins on every machine.
    plans = [fill(sizes, capacity) for capacity in sorted(capacities)]
    return min(plans, key=lambda plan: len(plan) * max(sum(sizes[i] for i in g) for g in plan) ** 2)


def fill(sizes: list[int], capacity: int) -> list[list[int]]:
    """Groups of at most `capacity` tokens, each as full as it can be made of the windows that are left."""
    left = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    groups = []
    while left:
        # Bit s of reachable[k]: the first k windows can give a group of s tokens.
        reachable = [1]
        for i in left:
            reachable.append(reachable[-1] | reachable[-1] << sizes[i])
        goal = (reachable[-1] & ((1 << (capacity + 1)) - 1)).bit_length() - 1
        group = []
        for k in range(len(left), 0, -1):
            if not reachable[k - 1] >> goal & 1:
                group.append(left[k - 1])
                goal -= sizes[left[k - 1]]
        groups.append(group)
        left = [i for i in left if i not in group]
    return groups
