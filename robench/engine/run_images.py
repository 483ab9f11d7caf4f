"""The images of a run as rows of an attack."""

from dataclasses import replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from robench.attacks._base import Rows, tensors
from robench.core.transfer import sent
from robench.engine.attack_context import AttackContext


class RunImages:
    """Makes rows of images, on the device of the lanes.

    Args:
        context: the inputs of the attack.
    """

    def __init__(self, context: AttackContext):
        self.context = context

    def rows(self, index: Tensor, rank: Tensor) -> Rows:
        """Active rows of samples (N,) with ranks (N,), and the features of the images that they are compared with."""
        context, samples = self.context, self.context.samples
        active = torch.ones_like(index, dtype=torch.bool)
        rows = Rows(
            samples.x[index], samples.y[index], context.clean_logits[index], samples.ids[index], rank, active
        )
        references = context.attack.references(self._run, rows)
        rows = replace(rows, **{name: sent(tensor, context.device) for name, tensor in tensors(rows).items()})
        if references is None:
            return rows
        x, ids = sent(samples.x[references], context.device), sent(samples.ids[references], context.device)
        return replace(rows, reference=context.network.features(x, ids, context.attack.layers or "last"))

    @cached_property
    def _run(self) -> Rows:
        """All images of the run, for attacks that select reference images."""
        samples, zeros = self.context.samples, torch.zeros_like(self.context.samples.ids)
        # LazyImages stay on disk and are indexed like a tensor.
        x = cast(Tensor, samples.x)
        return Rows(
            x, samples.y, self.context.clean_logits, samples.ids, zeros, torch.ones_like(zeros).bool()
        )
