"""Purification by a diffusion model: some steps of noise, and the way back."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robench import registry
from robench.defenses._fit import Fitting
from robench.defenses._schedule import Schedule
from robench.defenses.loaders._base import needed
from robench.random import normal_like

INSTALL = 'pip install "robench[diffusion]"'
# What eta each sampler has unless it is given, and which it takes.
_ETAS = {"ddpm": (1.0, (1.0, 1.0)), "ddim": (0.0, (0.0, 1.0))}
# How the attention's tensors are called in files from before diffusers 0.17.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@registry.purifiers.register("diffpure")
class DiffPure(Fitting):
    """Noise to time `t`, then the reverse process of a diffusion model back to time 0.

    Nie et al. 2022, "Diffusion Models for Adversarial Purification", arXiv 2205.07460, in discrete time; the idea
    for editing images is SDEdit's, Meng et al. 2021, arXiv 2108.01073. The network is `UNet2DModel` of `diffusers`
    in the layout of Ho et al. 2020, arXiv 2006.11239, predicting the noise.

    The gradient is exact. With `remember=False` each reverse step is computed again on the way back, so that the
    memory does not grow with the steps but for the images between them.

    Args:
        image_size: side of the images.
        widths: channels of each resolution, from the whole image on; each has half the side of the one before.
        layers: residual blocks a resolution on the way down; one more on the way up.
        attention: sides, in pixels, of the resolutions that have self-attention; the smallest always has it, once
            in the middle.
        groups: of the group normalisation.
        dropout: in training.
        length, beta_start, beta_end: of the schedule.
        t: how far the images are noised, in steps of the schedule (DiffPure's t* is t / length).
        steps: how many reverse steps lead back, spread evenly; 0 for every one.
        sampler: "ddpm", Ho's equation 7 with the variance beta tilde, or "ddim", Song's equation 12.
        eta: ddim's noise, 0 for none after the forward one, 1 for ddpm's; None for the sampler's own.
        clip: keep each predicted clean image in [0, 1].
        remember: keep every activation for the backward pass.
        fit: how images of another size are taken, see `Fitting`; the network is convolutional, and its attention
            knows no positions.

    Raises:
        ValueError: for a setting out of range.
        ResourceError: when `diffusers` is not installed.
    """

    stochastic = True

    def __init__(
        self,
        image_size: int = 32,
        widths: Sequence[int] = (128, 256, 256, 256),
        layers: int = 2,
        attention: Sequence[int] = (16,),
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
        fit: str = "exact",
    ):
        super().__init__(image_size, 2 ** max(0, len(widths) - 1), fit)
        self.schedule = Schedule(length, beta_start, beta_end)
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
        self.network = _unet(image_size, widths, layers, attention, groups, dropout)

    def purify(self, x: Tensor) -> Tensor:
        """See `Fitting.purify`."""
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
        return self.network(x, t - 1).sample  # diffusers counts from 0

    def fitted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A `UNet2DModel`'s own file, of any age, is taken as well."""
        if "conv_in.weight" not in state:
            return state
        return {f"network.{_new_name(key)}": tensor for key, tensor in state.items()}

    def _step(self, x: Tensor, t: int, before: int, noise: Tensor | None) -> Tensor:
        predicted = self.predict_noise(x, torch.full((len(x),), t, device=x.device))
        return self.schedule.reverse(x, predicted, t, before, self.eta, noise, self.clip)


def _unet(
    image_size: int,
    widths: Sequence[int],
    layers: int,
    attention: Sequence[int],
    groups: int,
    dropout: float,
) -> nn.Module:
    if not widths or any(width < 1 or width % groups for width in widths):
        raise ValueError(f"widths={list(widths)}: expected one or more multiples of groups={groups}")
    if layers < 1:
        raise ValueError(f"{layers=}: expected at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"{dropout=}: expected at least 0 and below 1")
    factor = 2 ** (len(widths) - 1)
    if image_size < factor or image_size % factor:
        raise ValueError(f"image_size={image_size}: expected a multiple of {factor} for {len(widths)} widths")
    sides = [image_size >> i for i in range(len(widths))]
    if strangers := set(attention) - set(sides):
        raise ValueError(
            f"attention={list(attention)}: no resolution has side {min(strangers)}, only {sides}"
        )
    down = tuple("AttnDownBlock2D" if side in attention else "DownBlock2D" for side in sides)
    up = tuple("AttnUpBlock2D" if side in attention else "UpBlock2D" for side in reversed(sides))
    unet_2d: Any = needed("diffusers.models.unets.unet_2d", "diffpure", INSTALL)
    attending: Any = needed("diffusers.models.attention_processor", "diffpure", INSTALL)
    network = unet_2d.UNet2DModel(
        sample_size=image_size,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=groups,
        dropout=dropout,
        # One head, and the constants of Ho's network.
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    for module in network.modules():
        if isinstance(module, attending.Attention):
            # Torch's fused attention has several kernels, and a step computed again might get another one.
            module.set_processor(attending.AttnProcessor())
    return network


def _new_name(key: str) -> str:
    for old, new in _OLD_NAMES.items():
        key = key.replace(old, new)
    return key
