import pytest
import torch

from robench.defenses.convnext import convnext
from tests.combinations import first_only


@pytest.mark.parametrize(
    "network", first_only(1, [(96, (3, 3, 9, 3), 29), (96, (3, 3, 27, 3), 50), (128, (3, 3, 27, 3), 89)])
)
def test_the_papers_networks_have_the_papers_sizes(network):
    """arXiv 2201.03545, table 1: 29, 50 and 89 million parameters."""
    width, depths, millions = network
    with torch.device("meta"):
        defense = convnext(width=width, depths=depths)
    assert round(sum(p.numel() for p in defense.parameters()) / 1e6) == millions
    assert defense(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)


def test_small_images():
    torch.manual_seed(0)
    defense = convnext(image_size=16, patch_size=1, width=4, depths=(1, 1, 1, 1), num_classes=10).eval()
    x = torch.rand(2, 3, 16, 16)
    assert defense(x).shape == (2, 10)
    assert defense.features(x).shape == (2, 32, 2, 2)
    torch.testing.assert_close(defense.classifier.forward_head(defense.features(x)), defense(x))
    with pytest.raises(ValueError, match="multiple of 8"):
        convnext(image_size=20, patch_size=1)
    with pytest.raises(ValueError, match="four stages"):
        convnext(depths=(1, 1))
