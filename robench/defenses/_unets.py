"""Networks that predict the noise of a diffusion model: three kinds, named after the published weights they load."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.defenses import _adm, _ddpmpp
from robench.defenses._schedule import Schedule
from robench.defenses.loaders._base import needed

INSTALL = "pip install diffusers"
# Names of the attention's tensors before diffusers 0.17.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class Sizes:
    """Sizes that every kind of network is built from; see `DiffPure`.

    Raises:
        ValueError: for incompatible sizes.
    """

    image_size: int
    widths: Sequence[int]
    layers: int
    attention: Sequence[int]
    groups: int
    head_width: int
    dropout: float

    def __post_init__(self) -> None:
        widths, groups, head = list(self.widths), self.groups, self.head_width
        if groups < 1:
            raise ValueError(f"{groups=}: expected at least 1")
        if not widths or any(width < 1 or width % groups for width in widths):
            raise ValueError(f"{widths=}: expected one or more multiples of {groups=}")
        if self.layers < 1:
            raise ValueError(f"layers={self.layers}: expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected at least 0 and below 1")
        factor = 2 ** (len(widths) - 1)
        if self.image_size < factor or self.image_size % factor:
            raise ValueError(
                f"image_size={self.image_size}: expected a multiple of {factor} for {len(widths)} widths"
            )
        if unknown := set(self.attention) - set(self.sides):
            raise ValueError(
                f"attention={list(self.attention)}: no resolution has side {min(unknown)}, only {self.sides}"
            )
        attending = {w for w, side in zip(widths, self.sides, strict=True) if self.attends(side)} | {
            widths[-1]
        }
        if head < 0 or (head and any(width % head for width in attending)):
            raise ValueError(
                f"head_width={head}: expected 0, or a divisor of the widths that have attention, {sorted(attending)}"
            )

    @property
    def sides(self) -> list[int]:
        """Side of each resolution, from the whole image down."""
        return [self.image_size >> i for i in range(len(self.widths))]

    def attends(self, side: int) -> bool:
        return side in self.attention


@dataclass(frozen=True)
class Kind:
    """One kind of network.

    Attributes:
        build: builds the network with initial weights.
        time_inputs: the network's time input for each time 1 .. length, (length,).
        noise: predicts the noise in images (N, 3, H, W) in [-1, 1], from the network, the images and time inputs (N,).
        renamed: renames the tensors of the authors' file to the network's; other files are returned unchanged.
    """

    build: Callable[[Sizes], nn.Module]
    time_inputs: Callable[[Schedule], Tensor]
    noise: Callable[[nn.Module, Tensor, Tensor], Tensor]
    renamed: Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]]


def _ho(sizes: Sizes) -> nn.Module:
    """Ho's network, with one attention head."""
    return _unet(
        sizes, "DownBlock2D", "UpBlock2D", norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False,
        freq_shift=1,
    )  # fmt: skip


def _dhariwal(sizes: Sizes) -> nn.Module:
    """Residual blocks that change the resolution, scale and shift by the time; three more channels for the variance."""
    return _unet(
        sizes, "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", out_channels=6,
        resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet",
        attn_norm_num_groups=sizes.groups, norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0,
    )  # fmt: skip


def _unet(sizes: Sizes, down: str, up: str, **constants: Any) -> nn.Module:
    unet_2d: Any = needed("diffusers.models.unets.unet_2d", "diffpure", INSTALL)
    attending: Any = needed("diffusers.models.attention_processor", "diffpure", INSTALL)
    attends = [sizes.attends(side) for side in sizes.sides]
    network = unet_2d.UNet2DModel(
        sample_size=sizes.image_size,
        block_out_channels=tuple(sizes.widths),
        layers_per_block=sizes.layers,
        down_block_types=tuple("AttnDownBlock2D" if yes else down for yes in attends),
        up_block_types=tuple("AttnUpBlock2D" if yes else up for yes in reversed(attends)),
        norm_num_groups=sizes.groups,
        attention_head_dim=sizes.head_width or None,
        dropout=sizes.dropout,
        **constants,
    )
    for module in network.modules():
        if isinstance(module, attending.Attention):
            # Torch's fused attention chooses among several kernels, so a recomputed step might use another one.
            module.set_processor(attending.AttnProcessor())
    return network


def _current_names(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    tensors = {}
    for key, tensor in state.items():
        for old, new in _OLD_NAMES.items():
            key = key.replace(old, new)
        tensors[key] = tensor
    return tensors


def _index(schedule: Schedule) -> Tensor:
    return torch.arange(schedule.length)


def _first_three(network: nn.Module, x: Tensor, times: Tensor) -> Tensor:
    return network(x, times).sample[:, :3]


KINDS = {
    # Ho et al. 2020, arXiv 2006.11239; the files of google/ddpm-cifar10-32 and similar models.
    "ddpm": Kind(_ho, _index, _first_three, _current_names),
    # Dhariwal and Nichol 2021, arXiv 2105.05233; the unconditional files of openai/guided-diffusion.
    "adm": Kind(_dhariwal, _index, _first_three, _adm.renamed),
    # Song et al. 2021, arXiv 2011.13456; the vp/cifar10_ddpmpp files of yang-song/score_sde_pytorch.
    "ddpm++": Kind(
        lambda sizes: _ddpmpp.DDPMpp(
            sizes.widths,
            [sizes.attends(side) for side in sizes.sides],
            sizes.layers,
            sizes.groups,
            sizes.head_width,
            sizes.dropout,
        ),
        _ddpmpp.time_inputs,
        lambda network, x, times: network(x, times),
        _ddpmpp.renamed,
    ),
}
