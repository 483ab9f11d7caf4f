"""Models with known smallest perturbations, small nonlinear ones, and images for them."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """logits = W x + b over flattened images: the distance to each class boundary has a closed form."""

    def __init__(self, classes: int, shape: tuple[int, ...], seed: int = 0, coarse: int = 1):
        super().__init__()
        size = int(torch.tensor(shape).prod())
        generator = torch.Generator().manual_seed(seed)
        # Blocks of `coarse` pixels share a weight, which window-based attacks can follow.
        grid = (classes, shape[0], shape[1] // coarse, shape[2] // coarse)
        weight = torch.randn(grid, generator=generator)
        weight = weight.repeat_interleave(coarse, 2).repeat_interleave(coarse, 3).flatten(1)
        self.weight = nn.Parameter(30 * weight / size**0.5)
        self.bias = nn.Parameter(torch.randn(classes, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def distances(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """The smallest perturbation in `norm` that reaches another class, float64 (N,).

        In Linf and L2 no pixel may reach 0 or 1 on the way; in L1, which moves few pixels far, the box counts.
        """
        weight = self.weight.detach().double()
        logits = x.double().flatten(1) @ weight.T + self.bias.detach().double()
        gap = logits.gather(1, y[:, None]) - logits
        difference = weight[None] - weight[y][:, None]
        if norm == "L1":
            return _cheapest(gap, difference, x.double().flatten(1)).scatter(1, y[:, None], torch.inf).amin(1)
        dual = {"Linf": difference.abs().sum(2), "L2": difference.square().sum(2).sqrt()}
        ratio = gap / dual[norm].clamp_min(1e-30)
        return ratio.scatter(1, y[:, None], float("inf")).amin(1)


def _cheapest(gap: Tensor, difference: Tensor, x: Tensor) -> Tensor:
    """The smallest L1 step in [0, 1] that closes each gap (N, K): pixels with the largest weights move to 0 or 1."""
    room = torch.where(difference > 0, 1 - x[:, None], x[:, None])
    weight, order = difference.abs().sort(dim=2, descending=True)
    room = room.gather(2, order)
    before = (weight * room).cumsum(2) - weight * room
    return ((gap[..., None] - before).clamp_min(0) / weight.clamp_min(1e-30)).minimum(room).sum(2)


def small_net(classes: int = 10, side: int = 8, seed: int = 0) -> nn.Module:
    """A small random convolutional network with curved boundaries."""
    # torch.manual_seed formats the stack for each kind of device, which takes longer than the network.
    torch.default_generator.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(8 * (side // 2) ** 2, classes),
    )
    return net.eval()


def images(n: int, side: int = 8, seed: int = 0) -> Tensor:
    """Random images around the middle of the pixel range, (n, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, 3, side, side, generator=generator)
