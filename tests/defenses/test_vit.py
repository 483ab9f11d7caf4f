from functools import partial

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torch.nn import functional as F

from robench.core import specs
from robench.core.errors import UsageError
from robench.defenses.vit import vit
from robench.training import Pretraining
from robench.training.stages import pretraining_stage


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


@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("training", [False, True])
def test_weights_logits_and_gradients_are_timms_to_the_bit(pool, training):
    """The layers are our own, so that a run need not import timm."""
    norm = partial(nn.LayerNorm, eps=1e-6)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 10}
    torch.manual_seed(3)
    timms = TimmViT(**sizes, drop_path_rate=0.3, global_pool=pool, fc_norm=pool == "avg", norm_layer=norm)
    torch.manual_seed(3)
    ours = vit(16, 4, 24, 3, 3, 10, drop_path=0.3, pool=pool).classifier
    assert list(ours.state_dict()) == list(timms.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), timms.state_dict().values()))
    results = []
    for network in (timms, ours):
        x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(9)
        logits = network.train(training)(x)
        logits.square().sum().backward()
        results.append((logits, x.grad, *(weight.grad for weight in network.parameters())))
    assert all(map(torch.equal, *results))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="patch_size=5"):
        specs.build(specs.parse("vit(image_size=16, patch_size=5, width=8, heads=2)"), vit)


def test_a_convolutional_stem_and_the_class_token():
    """Against the same arithmetic by functions: four convolutions of stride 2 with LayerNorm over channels."""
    torch.manual_seed(0)
    defense = vit(image_size=32, width=12, depth=1, heads=2, num_classes=5, stem="conv", pool="token").eval()
    network, x = defense.classifier, torch.rand(2, 3, 32, 32)
    state = network.state_dict()
    y = x
    for k in (0, 3, 6, 9):
        weight, bias = (state[f"patch_embed.proj.stem.{k}.{name}"] for name in ("weight", "bias"))
        y = F.conv2d(y, weight, bias, stride=2, padding=1).permute(0, 2, 3, 1)
        scale, shift = (state[f"patch_embed.proj.stem.{k + 1}.{name}"] for name in ("weight", "bias"))
        y = F.gelu(F.layer_norm(y, y.shape[3:], scale, shift, 1e-6)).permute(0, 3, 1, 2)
    weight, bias = (state[f"patch_embed.proj.stem.12.{name}"] for name in ("weight", "bias"))
    tokens = torch.einsum("nchw,dc->nhwd", y, weight[:, :, 0, 0]).flatten(1, 2) + bias
    torch.testing.assert_close(network.patch_embed(x), tokens, atol=1e-5, rtol=1e-4)
    assert "norm.weight" in state and "fc_norm.weight" not in state
    torch.testing.assert_close(network.head(defense.features(x)[:, 0]), defense(x))
    with pytest.raises(UsageError, match="masked pre-training needs a ViT without a convolutional stem"):
        pretraining_stage(network, Pretraining(), torch.device("cpu"))
    for more, message in (
        ('stem="big"', "expected one of patch, conv"),
        ("patch_size=8, stem='conv'", "16 pixels"),
    ):
        with pytest.raises(UsageError, match=message):
            specs.build(specs.parse(f"vit(image_size=32, width=8, heads=2, {more})"), vit)


def test_normalisation_of_the_pixels():
    torch.manual_seed(0)
    plain = vit(image_size=8, patch_size=4, width=12, depth=1, heads=3, num_classes=5).eval()
    torch.manual_seed(0)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    other = vit(
        image_size=8, patch_size=4, width=12, depth=1, heads=3, num_classes=5, mean=mean, std=std
    ).eval()
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(
        other(x), plain((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    )
