"""Purification by a diffusion model: some steps of noise, and the way back."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robench._moved import old_arguments
from robench.core import registry
from robench.core.rng import normal_like
from robench.defenses._image_size import FixedSizePurifier
from robench.defenses._schedule import Schedule
from robench.defenses._unets import INSTALL, KINDS, Sizes

__all__ = ["INSTALL", "DiffPure"]

# What eta each sampler has unless it is given, and which it takes.
_ETAS = {"ddpm": (1.0, (1.0, 1.0)), "ddim": (0.0, (0.0, 1.0))}


@registry.purifiers.register("diffpure")
@old_arguments(fit="size_mode")
class DiffPure(FixedSizePurifier):
    """Noise to time `t`, then the reverse process of a diffusion model back to time 0.

    Nie et al. 2022, "Diffusion Models for Adversarial Purification", arXiv 2205.07460, in discrete time; the idea
    for editing images is SDEdit's, Meng et al. 2021, arXiv 2108.01073.

    What differs from DiffPure's published code: it integrates the reverse SDE of the continuous process by
    Euler-Maruyama steps of 1e-3, whose noise has the variance beta and whose clean images are not clipped, and it
    leaves the purified image unclipped. Here each step is the ancestral one of the discretised process, with the
    variance beta tilde, or DDIM's. The variance that an "adm" network has learnt is not used, there or here.

    The gradient is exact. With `remember=False` each reverse step is computed again on the way back, so that the
    memory does not grow with the steps but for the images between them.

    Args:
        network: whose, which decides what published files can be loaded. "ddpm": Ho et al. 2020, arXiv 2006.11239;
            "adm": Dhariwal and Nichol 2021, arXiv 2105.05233; "ddpm++": Song et al. 2021, arXiv 2011.13456, asked
            at the continuous time of the same noise. All predict the noise; the first two are `UNet2DModel` of
            `diffusers`.
        image_size: side of the images.
        widths: channels of each resolution, from the whole image on; each has half the side of the one before.
        layers: residual blocks a resolution on the way down; one more on the way up.
        attention: sides, in pixels, of the resolutions that have self-attention; the smallest always has it, once
            in the middle.
        head_width: channels of an attention's head; 0 for one head.
        groups: of the group normalisation.
        dropout: in training.
        length, beta_start, beta_end: of the schedule.
        t: how far the images are noised, in steps of the schedule (DiffPure's t* is t / length).
        steps: how many reverse steps lead back, spread evenly; 0 for every one.
        sampler: "ddpm", Ho's equation 7 with the variance beta tilde, or "ddim", Song's equation 12.
        eta: ddim's noise, 0 for none after the forward one, 1 for ddpm's; None for the sampler's own.
        clip: keep each predicted clean image in [0, 1].
        remember: keep every activation for the backward pass.
        size_mode: how images of another size are handled, see `FixedSizePurifier`; the network is convolutional, and
            its attention has no position embeddings.

    Raises:
        ValueError: for a setting out of range.
        ResourceError: when `diffusers` is not installed.
    """

    stochastic = True

    def __init__(
        self,
        network: str = "ddpm",
        image_size: int = 32,
        widths: Sequence[int] = (128, 256, 256, 256),
        layers: int = 2,
        attention: Sequence[int] = (16,),
        head_width: int = 0,
        groups: int = 32,
        dropout: float = 0.0,
        length: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        t: int = 100,
        steps: int = 0,
        sampler: str = "ddpm",
        eta: float | None = None,
        clip: bool = True,
        remember: bool = False,
        size_mode: str = "exact",
    ):
        super().__init__(image_size, 2 ** max(0, len(widths) - 1), size_mode)
        self.schedule = Schedule(length, beta_start, beta_end)
        for name, value in {"t": t, "steps": steps}.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: expected a whole number")
        if not 1 <= t <= length:
            raise ValueError(f"t={t}: expected 1 to {length}, the length of the schedule")
        if not 0 <= steps <= t:
            raise ValueError(f"steps={steps}: expected 1 to t={t}, or 0 for every one")
        if sampler not in _ETAS:
            raise ValueError(f"sampler={sampler!r}: expected {' or '.join(_ETAS)}")
        own, (low, high) = _ETAS[sampler]
        self.eta = own if eta is None else eta
        if not low <= self.eta <= high:
            raise ValueError(
                f"eta={eta} for {sampler}: expected {low:g}" + (f" to {high:g}" if low < high else "")
            )
        count = steps or t
        self.times = [round(t * (count - i) / count) for i in range(count + 1)]
        self.clip, self.remember = clip, remember
        if network not in KINDS:
            raise ValueError(f"{network=}: expected one of {', '.join(KINDS)}")
        self.kind = KINDS[network]
        self.told = self.kind.told(self.schedule)
        self.network = self.kind.build(
            Sizes(image_size, widths, layers, attention, groups, head_width, dropout)
        )

    def purify(self, x: Tensor) -> Tensor:
        """See `FixedSizePurifier.purify`."""
        t = torch.full((len(x),), self.times[0], device=x.device)
        x = 2 * x - 1
        x = self.schedule.diffuse(x, t, normal_like(x))
        forget = not self.remember and torch.is_grad_enabled() and x.requires_grad
        for now, before in pairwise(self.times):
            # Drawn here and not in the step, which may be computed twice.
            noise = normal_like(x) if self.schedule.sigma(now, before, self.eta) else None
            if forget:
                x = checkpoint(self._step, x, now, before, noise, use_reentrant=False)
            else:
                x = self._step(x, now, before, noise)
        return ((x + 1) / 2).clamp(0, 1)

    def predict_noise(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t.

        Args:
            x: (N, 3, H, W), images in [-1, 1] at time t.
            t: (N,) int64, 1 .. length.
        """
        return self.kind.noise(self.network, x, self.told.to(t.device)[t - 1])

    def fitted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The network's own file, as its authors published it, is taken as well."""
        if any(key.startswith("network.") for key in state):
            return state
        own = self.kind.renamed(state, self.network)
        return {f"network.{key}": tensor for key, tensor in own.items()}

    def _step(self, x: Tensor, t: int, before: int, noise: Tensor | None) -> Tensor:
        predicted = self.predict_noise(x, torch.full((len(x),), t, device=x.device))
        return self.schedule.reverse(x, predicted, t, before, self.eta, noise, self.clip)
