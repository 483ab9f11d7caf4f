import pytest
import torch

from robench.core import specs
from robench.core.errors import UsageError
from robench.defenses.vit import vit


def test_the_state_is_laid_out_as_mimirs_fine_tuned_checkpoints():
    """152 keys for 12 blocks, no `norm`: facts of the released ViT checkpoints."""
    state = vit(
        image_size=32, patch_size=2, width=12, depth=12, heads=3, num_classes=10
    ).classifier.state_dict()
    assert len(state) == 152
    assert state["pos_embed"].shape == (1, 257, 12)
    assert {"fc_norm.weight", "blocks.11.attn.qkv.bias", "head.weight", "cls_token"} <= set(state)
    assert not any(key.startswith("norm.") for key in state)


def test_features_are_the_tokens_after_the_last_block_before_any_norm():
    torch.manual_seed(0)
    defense = vit(image_size=8, patch_size=4, width=12, depth=2, heads=3, num_classes=5).eval()
    x = torch.rand(3, 3, 8, 8)
    features = defense.features(x)
    assert features.shape == (3, 5, 12)
    network = defense.classifier
    logits = network.head(network.fc_norm(features[:, 1:].mean(1)))
    torch.testing.assert_close(defense(x), logits)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="patch_size=5"):
        specs.build(specs.parse("vit(image_size=16, patch_size=5, width=8, heads=2)"), vit)
