"""The votes of a randomized defense, and the smoothed classifier as a model that attacks can search."""

import math

import torch
from torch import Tensor, nn

from robench.core.rng import parts
from robench.engine.batched_model import Network, answer


class SoftVote(nn.Module):
    """The mean softmax over several noise draws, as log-probabilities; the attacked form of a majority vote.

    Salman et al. 2019, "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", arXiv
    1906.04584, equation 6: cross entropy on these log-probabilities is their attack on the smoothed classifier, while
    the mean loss over draws is not.

    Args:
        defense: a randomized model, from images (N, C, H, W) in [0, 1] to logits (N, K).
        draws: number of draws of each call, at least 1.
    """

    stochastic = True

    def __init__(self, defense: nn.Module, draws: int):
        super().__init__()
        self.defense, self.draws = defense, draws

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, K) of images (N, C, H, W)."""
        with parts(self.draws):
            logits = self.defense(x.repeat_interleave(self.draws, 0))
        each = logits.log_softmax(1).view(len(x), self.draws, -1)
        return each.logsumexp(1) - math.log(self.draws)


def count_votes(network: Network, x: Tensor, ids: Tensor, draws: int) -> Tensor:
    """The number of votes of each class over draws 0 .. draws - 1 of the network's noise, int64 (M, K) on the CPU.

    A draw with a NaN logit votes for no class. Batches are full whatever the number of images: the pairs of image and
    draw are their rows.

    Args:
        network: a randomized defense with its random numbers.
        x, ids: images (M, C, H, W) and their ids (M,), on the device.
    """
    size, total = network.batch_size, len(x) * draws
    votes: Tensor | None = None
    for start in range(0, total, size):
        pair = torch.arange(start, min(start + size, total), device=x.device)
        image, draw = pair // draws, pair % draws
        logits = network.logits(x[image], ids[image], draw)
        if votes is None:
            votes = torch.zeros(len(x), logits.shape[1], dtype=torch.int64)
        classes, voter = answer(logits).cpu(), image.cpu()
        cast = classes >= 0
        votes.index_put_((voter[cast], classes[cast]), torch.ones(int(cast.sum()), dtype=torch.int64), True)
    return votes if votes is not None else torch.zeros(0, 1, dtype=torch.int64)
