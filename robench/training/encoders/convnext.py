"""ConvNeXt by sparse convolution: Tian et al., "Designing BERT for Convolutional Networks: Sparse and
Hierarchical Masked Modeling" (SparK), arXiv 2301.03580, on timm's ConvNeXt (Liu et al., arXiv 2201.03545)."""

from typing import Any

from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from robench.training.encoders._base import Encoder, require, visible_images


class ConvNeXtEncoder(Encoder):
    """Sparse convolutions: hidden positions are zero in the input and are not computed in the output.

    All other layers process visible positions only. A patch is the area under one position of the last feature map,
    32 x 32 pixels for the published networks. MIMIR (arXiv 2312.04960) names this architecture, but its pre-training
    code is not published. Our choices:

    - Pre-training has a separate last LayerNorm, because timm's is in the head, after the pooling. The nHSIC penalty
      uses the visible positions after it. It is the norm that SparK applies to the last feature map before its decoder.
    - The weights keep timm's initialization, as in SparK's code.
    """

    redrawn = False
    network: ConvNeXt

    def __init__(self, network: ConvNeXt, image_size: int | None = None):
        require(image_size is not None, "the side of the images for a ConvNeXt: give image_size")
        assert image_size is not None
        patch = int(network.feature_info[-1]["reduction"])
        require(
            image_size % patch == 0,
            f"images of a multiple of {patch} pixels for this ConvNeXt: got {image_size}",
        )
        require(isinstance(network.norm_pre, nn.Identity), "a ConvNeXt that pools before its last LayerNorm")
        downsampling = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
        require(
            all(m.kernel_size == m.stride and m.dilation == (1, 1) for m in downsampling),
            "a ConvNeXt whose down-sampling does not overlap",
        )
        blocks = [m for m in network.modules() if isinstance(m, ConvNeXtBlock)]
        require(
            all(not hasattr(b.mlp, "grn") for b in blocks), "a ConvNeXt without global response normalization"
        )
        super().__init__(network, patch, image_size // patch, network.num_features)
        self.norm = nn.LayerNorm(network.num_features, eps=1e-6)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """See `Encoder.forward`; (N, visible, D)."""
        return self.norm(self.maps(x, keep)[-1].reshape(*keep.shape, -1))

    def maps(self, x: Tensor, keep: Tensor) -> list[Tensor]:
        """The output of every stage at visible positions, from the largest, (N * visible, C, u, u)."""
        network: Any = self.network
        # Windows of the stem and of down-sampling layers do not overlap, so patches are processed as separate images.
        maps = network.stem(visible_images(x, keep, self.patch))
        outputs = []
        for stage in network.stages:
            maps = stage.downsample(maps)
            for block in stage.blocks:
                maps = self._block(block, maps, keep)
            outputs.append(maps)
        return outputs

    def _block(self, block: Any, maps: Tensor, keep: Tensor) -> Tensor:
        """timm's block on maps (N * visible, C, u, u), with the depthwise convolution applied to the sparse map."""
        y = self._gather(block.conv_dw(self.scatter(maps, keep)), keep)
        if block.use_conv_mlp:
            y = block.mlp(block.norm(y))
        else:
            y = block.mlp(block.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if block.gamma is not None:
            y = y * block.gamma.view(1, -1, 1, 1)
        return block.drop_path(y) + maps

    def scatter(self, maps: Tensor, keep: Tensor) -> Tensor:
        """Place visible patches into a map of zeros, (N * visible, C, u, u) -> (N, C, side u, side u)."""
        n, side, (c, u) = len(keep), self.side, maps.shape[1:3]
        rows = maps.reshape(*keep.shape, c * u * u)
        sparse = rows.new_zeros(n, side * side, c * u * u)
        sparse = sparse.scatter(1, keep[:, :, None].expand_as(rows), rows)
        sparse = sparse.view(n, side, side, c, u, u).permute(0, 3, 1, 4, 2, 5)
        return sparse.reshape(n, c, side * u, side * u)

    def _gather(self, x: Tensor, keep: Tensor) -> Tensor:
        """The visible patches of a feature map, the inverse of `scatter`."""
        return visible_images(x, keep, x.shape[2] // self.side)
