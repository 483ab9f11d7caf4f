"""Purification by a diffusion model: add noise, then run the reverse process."""

import math
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

# Default eta and its allowed range for each sampler.
_ETAS = {"ddpm": (1.0, (1.0, 1.0)), "ddim": (0.0, (0.0, 1.0))}


@registry.purifiers.register("diffpure")
@old_arguments(fit="size_mode")
class DiffPure(FixedSizePurifier):
    """Diffuses images to time `t`, then runs the reverse process of a diffusion model back to time 0.

    Nie et al. 2022, "Diffusion Models for Adversarial Purification", arXiv 2205.07460, in discrete time; see also
    SDEdit, Meng et al. 2021, arXiv 2108.01073.

    DiffPure's published code differs: it integrates the reverse SDE of the continuous process by Euler-Maruyama steps
    of 1e-3 with noise of variance beta, and clips neither the predicted clean images nor the purified image. Here each
    step is the ancestral step of the discretized process, with variance beta tilde, or DDIM's step. Neither uses the
    learned variance of an "adm" network.

    The gradient is exact. With `remember=False`, the backward pass recomputes each reverse step, so that memory grows
    by only one image per step.

    Args:
        network: architecture, which determines the published files that can be loaded. "ddpm": Ho et al. 2020, arXiv
            2006.11239; "adm": Dhariwal and Nichol 2021, arXiv 2105.05233; "ddpm++": Song et al. 2021, arXiv 2011.13456,
            evaluated at the continuous time of the same noise level. All predict the noise; the first two are
            `UNet2DModel` of `diffusers`.
        image_size: side of the images in pixels.
        widths: channels at each resolution, from the highest; each has half the side of the previous one.
        layers: residual blocks per resolution on the down path; the up path has one more.
        attention: sides, in pixels, of the resolutions with self-attention; the middle block always has it.
        head_width: channels per attention head; 0 for a single head.
        groups: number of groups of the group normalization.
        dropout: dropout rate, for training only.
        length, beta_start, beta_end: number of steps of the noise schedule, and its first and last beta.
        t: time to which the images are diffused, in steps of the schedule (DiffPure's t* is t / length).
        steps: number of reverse steps, evenly spaced; 0 for all `t` of them.
        sampler: "ddpm", Ho's equation 7 with the variance beta tilde, or "ddim", Song's equation 12.
        eta: noise of the reverse steps of "ddim", from 0 (none) to 1 (as "ddpm"); None for the sampler's default.
        clip: clip each predicted clean image to [0, 1].
        remember: keep all activations for the backward pass.
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
        default, (low, high) = _ETAS[sampler]
        self.eta = default if eta is None else eta
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
        self.time_inputs = self.kind.time_inputs(self.schedule)
        self.network = self.kind.build(
            Sizes(image_size, widths, layers, attention, groups, head_width, dropout)
        )

    def purify(self, x: Tensor) -> Tensor:
        """See `FixedSizePurifier.purify`."""
        t = torch.full((len(x),), self.times[0], device=x.device)
        x = 2 * x - 1
        x = self.schedule.diffuse(x, t, normal_like(x))
        recompute = not self.remember and torch.is_grad_enabled() and x.requires_grad
        for now, before in pairwise(self.times):
            # Drawn outside the step, which may be computed twice.
            noise = normal_like(x) if self.schedule.sigma(now, before, self.eta) else None
            if recompute:
                x = checkpoint(self._step, x, now, before, noise, use_reentrant=False)
            else:
                x = self._step(x, now, before, noise)
        return ((x + 1) / 2).clamp(0, 1)

    def input_noise(self) -> float:
        """See `Purifier.input_noise`: that of the forward diffusion, divided by its factor of the image.

        Carlini et al. 2022, arXiv 2206.10550, section 3. The noise of the reverse steps does not depend on the image.
        """
        kept = self.schedule.kept[self.times[0]]
        return math.sqrt((1 - kept) / kept) / 2

    def predict_noise(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in x_t.

        Args:
            x: (N, 3, H, W), images in [-1, 1] at time t.
            t: (N,) int64, 1 .. length.
        """
        return self.kind.noise(self.network, x, self.time_inputs.to(t.device)[t - 1])

    def fitted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Also accepts the network's own file, as its authors published it."""
        if any(key.startswith("network.") for key in state):
            return state
        renamed = self.kind.renamed(state, self.network)
        return {f"network.{key}": tensor for key, tensor in renamed.items()}

    def _step(self, x: Tensor, t: int, before: int, noise: Tensor | None) -> Tensor:
        predicted = self.predict_noise(x, torch.full((len(x),), t, device=x.device))
        return self.schedule.reverse(x, predicted, t, before, self.eta, noise, self.clip)
