import math

import pytest
import torch

from robench.defenses.convnext import convnext
from robench.defenses.swin import swin
from robench.defenses.vit import vit
from robench.training.schedule import cosine, layers_of, parameter_groups, set_lr


def test_cosine():
    rates = [cosine(step, total=110, warmup=10, peak=2.0, floor=0.5) for step in range(111)]
    assert rates[0] == 0
    assert rates[5] == 1
    assert rates[10] == max(rates) == 2
    assert rates[60] == pytest.approx(1.25)
    assert rates[110] == pytest.approx(0.5)
    assert rates[35] == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_layers_learn_slower_towards_the_pixels():
    network = vit(image_size=8, patch_size=4, width=8, depth=3, heads=2, num_classes=10).classifier
    groups = parameter_groups(network, weight_decay=0.05, layer_decay=0.5)
    optimizer = torch.optim.AdamW(groups)
    set_lr(optimizer, 1.0)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    expected = {
        "cls_token": (1 / 16, 0.0),
        "pos_embed": (1 / 16, 0.0),
        "patch_embed.proj.weight": (1 / 16, 0.05),
        "blocks.0.attn.qkv.weight": (1 / 8, 0.05),
        "blocks.0.norm1.weight": (1 / 8, 0.0),
        "blocks.2.mlp.fc2.bias": (1 / 2, 0.0),
        "fc_norm.weight": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
    }
    named = dict(network.named_parameters())
    assert {name: found[id(named[name])] for name in expected} == expected
    assert len(found) == len(named)


def test_frozen_parameters_are_left_out():
    network = vit(image_size=8, patch_size=4, width=8, depth=1, heads=2, num_classes=10).classifier
    network.pos_embed.requires_grad_(False)
    groups = parameter_groups(network, 0.05)
    assert all(p is not network.pos_embed for g in groups for p in g["params"])
    assert {g["lr_scale"] for g in groups} == {1.0}


def test_blocks_count_on_from_stage_to_stage():
    of_swin = swin(
        image_size=16, patch_size=2, width=8, depths=(2, 1), heads=(1, 2), window=4, num_classes=10
    )
    of_convnext = convnext(image_size=8, patch_size=1, width=8, depths=(1, 1, 1, 1), num_classes=10)
    first = {"patch_embed.norm.weight": 0, "layers.0.blocks.1.norm1.weight": 2, "norm.weight": 4}
    second = {"layers.1.downsample.norm.weight": 3, "layers.1.blocks.0.norm1.weight": 3}
    swin_layers = layers_of([name for name, _ in of_swin.classifier.named_parameters()])
    assert {**first, **second}.items() <= swin_layers.items()
    layers = layers_of([name for name, _ in of_convnext.classifier.named_parameters()])
    some = ("stem.0.weight", "stages.0.blocks.0.gamma", "stages.3.downsample.1.weight", "head.fc.weight")
    assert [layers[name] for name in some] == [0, 1, 4, 5]


def test_class_attention_is_scaled_like_the_first_blocks():
    """As in the official code of MIMIR, which reads the layer from the number in the name."""
    names = ["cls_token", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "blocks.2.norm1.weight"]
    names += ["blocks_token_only.0.norm1.weight", "blocks_token_only.1.attn.q.weight", "norm.weight"]
    assert list(layers_of(names).values()) == [4, 2, 1, 3, 2, 1, 0]


def test_tokens_are_decayed_if_asked_for():
    model = vit(image_size=16, patch_size=8, width=8, depth=1, heads=2).classifier
    for decayed in (False, True):
        groups = parameter_groups(model, 0.05, decay_tokens=decayed)
        (group,) = [g for g in groups if any(p is model.cls_token for p in g["params"])]
        assert group["weight_decay"] == (0.05 if decayed else 0)
