"""Three estimates of the information of a latent about an image, from pairs. None is the mutual information.

Limits, in short:

- nHSIC (robench.core.hsic), as MIMIR computes it: no unit. Its kernel has a fixed width, so it hardly responds to
  images in [0, 1], and it grows with the number of rows even if they are independent.
- Matrix-based Renyi entropy: bits, at most log2 of the number of rows. It depends on the kernel width.
- InfoNCE: a lower bound in nats from a trained critic, at most log of the number of rows that the critic must
  distinguish. If a latent determines its image, the true value is infinite, and the bound shows how well the critic
  learned.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from robench.core.hsic import nhsic
from robench.core.rng import Stream

ALPHA = 1.01
# Rows per kernel, and rows that the critic must distinguish: MIMIR's batch size.
GROUP = 128
# Hyperparameters of InfoNCE's critic.
COMPONENTS, WIDTH, STEPS, BATCH, RATE, DECAY = 32, 64, 120, 128, 2e-3, 1e-2


def kernel(x: Tensor) -> Tensor:
    """A Gaussian kernel (m, m) over rows (m, d) with trace 1; its width is the median distance of two rows.

    Equal rows give a constant kernel.
    """
    distances = torch.cdist(x.double(), x.double())
    m = len(x)
    width = distances[torch.triu(torch.ones(m, m, dtype=torch.bool, device=x.device), 1)].median()
    if float(width) == 0:
        return torch.full_like(distances, 1 / m)
    return torch.exp(-distances.square() / (2 * width**2)) / m


def renyi_entropy(matrix: Tensor, alpha: float = ALPHA) -> Tensor:
    """S(A) = log2(tr A^alpha) / (1 - alpha), in bits, of a positive semidefinite matrix with trace 1.

    Giraldo, Rao and Principe 2015, "Measures of entropy from data using infinitely divisible kernels" (definition 2).
    """
    values = torch.linalg.eigvalsh(matrix).clamp_min(0)
    return (values**alpha).sum().log2() / (1 - alpha)


def renyi_information(x: Tensor, y: Tensor, alpha: float = ALPHA) -> float:
    """I(A; B) = S(A) + S(B) - S(A o B / tr(A o B)), in bits, between rows (m, ...) and rows (m, ...).

    Giraldo et al. 2015; Yu et al. 2019, "Multivariate extension of matrix-based Renyi's alpha-order entropy functional"
    (arXiv 1808.07912).
    """
    a, b = kernel(x.flatten(1)), kernel(y.flatten(1))
    both = a * b
    joint = renyi_entropy(both / both.trace(), alpha)
    return float(renyi_entropy(a, alpha) + renyi_entropy(b, alpha) - joint)


def plain_nhsic(x: Tensor, y: Tensor) -> float:
    """nHSIC as MIMIR penalizes it, in float64; see robench.core.hsic."""
    return float(nhsic(x.double(), y.double()))


class Critic(nn.Module):
    """The critic exp f(x, y) with f = g(x).h(y) / temperature, where g(x) and h(y) have unit length."""

    def __init__(self, d_x: int, d_y: int):
        super().__init__()
        self.g, self.h = (
            nn.Sequential(nn.Linear(d, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)) for d in (d_x, d_y)
        )
        self.scale = nn.Parameter(torch.tensor(math.log(5.0)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores (m, m) of every pair of x and y."""
        g, h = functional.normalize(self.g(x), dim=1), functional.normalize(self.h(y), dim=1)
        return self.scale.exp().clamp_max(100.0) * g @ h.T


def infonce(x: Tensor, y: Tensor, seed: int, group: int = GROUP) -> float:
    """van den Oord et al. 2018, "Representation learning with contrastive predictive coding" (arXiv 1807.03748).

    A lower bound on I(x; y) in nats, at most log(group): log(group) minus the mean cross-entropy of finding the y of an
    x among `group` candidates. Two critics are each trained on one half of the rows and evaluated on the other half;
    the result is their mean. An overfitted critic can fall below 0, which counts as 0. The rows are first projected on
    principal components of the training half. A function of x has no more information about y than x, so this is still
    a lower bound.

    Args:
        x, y: pairs of rows, (N, ...), with N at least 2 * group.
        seed: determines halves, critics and batches.
    """
    if len(x) != len(y) or len(x) < 2 * group:
        raise ValueError(
            f"infonce needs two batches of equal length, at least {2 * group}: got {len(x)=} and {len(y)=}"
        )
    order = _order(len(x), seed, "halves")
    middle = len(x) // 2
    halves = order[:middle], order[middle:]
    bounds = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for number, (train, test) in enumerate((halves, halves[::-1])):
            torch.manual_seed(int(Stream.of(seed, "infonce", number).key[0]))
            bounds.append(_bound(x.flatten(1).float(), y.flatten(1).float(), train, test, group))
    return sum(bounds) / len(bounds)


def _bound(x: Tensor, y: Tensor, train: Tensor, test: Tensor, group: int) -> float:
    (x, y), count = (_components(rows, train) for rows in (x, y)), min(BATCH, len(train))
    critic = Critic(x.shape[1], y.shape[1])
    optimiser = torch.optim.AdamW(critic.parameters(), RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        batch = train[torch.randperm(len(train))[:count]]
        scores = critic(x[batch], y[batch])
        loss = functional.cross_entropy(scores, torch.arange(count))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        values = []
        for start in range(0, len(test) - group + 1, group):
            part = test[start : start + group]
            scores = critic(x[part], y[part])
            values.append(math.log(group) - float(functional.cross_entropy(scores, torch.arange(group))))
    return sum(values) / len(values)


def _components(x: Tensor, train: Tensor) -> Tensor:
    """Project rows on the principal components of the training rows, scaled to variance 1 on these."""
    mean = x[train].mean(0)
    centred = x[train] - mean
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = min(COMPONENTS, int((sizes > 1e-5 * sizes[0].clamp_min(1e-12)).sum()), len(train) - 1)
    kept = max(kept, 1)
    return (x - mean) @ axes[:kept].T / (sizes[:kept] / len(train) ** 0.5).clamp_min(1e-12)


def in_groups(estimate: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, seed: int) -> float:
    """The mean of an estimate over groups of GROUP rows, chosen by the seed. Left-over rows are not used."""
    order = _order(len(x), seed, "groups")
    parts = [order[start : start + GROUP] for start in range(0, len(x) - GROUP + 1, GROUP)]
    return sum(estimate(x[part], y[part]) for part in parts) / len(parts)


def unpaired(y: Tensor, seed: int) -> Tensor:
    """A random permutation of the rows of `y` (N, ...) in which no row keeps its place.

    Shifting by one row would not do, because neighbors in a dataset may share a class or be similar otherwise.
    """
    order = _order(len(y), seed, "unpaired")
    others = torch.empty_like(y)
    others[order] = y[order.roll(1)]
    return others


def _order(n: int, seed: int, what: str) -> Tensor:
    places = torch.arange(n)
    bits = Stream.of(seed, "diagnose", what).bits(places, torch.zeros_like(places), 0, 1)
    return bits[:, 0].argsort(stable=True)
