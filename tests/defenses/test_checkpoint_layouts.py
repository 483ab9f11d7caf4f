"""Checkpoints laid out as MIMIR's authors release them, against stock timm models and a forward of our own."""

import argparse
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from robench import catalog
from robench.core import registry, specs
from robench.core.errors import ResourceError
from robench.core.specs import Spec
from robench.defenses import _checkpoint_layouts, load, load_defense
from robench.defenses._weights import read_weights
from tests.combinations import first_only
from tests.defenses import layouts, simmim

CARDS = {
    name: card for name, card in catalog.cards().items() if card.download_page and card.family == "mimir"
}
# What a card's spec says, in the words of `layouts`.
SHAPES = {
    "vit": lambda a: layouts.vit(a["width"], a["depth"], a["image_size"], a["patch_size"], a["num_classes"]),
    "convit": lambda a: layouts.convit(a["heads"]),
    "cait": lambda a: layouts.cait(a["width"], a["depth"], a["heads"]),
    "swin": lambda a: layouts.simmim_swin(a["width"], a["depths"], a["heads"], a["window"]),
}
# natural and robust accuracy in percent, in the order of the README's tables
PUBLISHED = {
    ("cifar10", "Linf:8/255", "AutoAttack"): [
        (84.82, 52.96), (88.11, 53.18), (91.94, 61.06), (89.30, 54.55), (92.82, 63.43),
        (80.74, 45.04), (87.49, 52.54), (89.30, 55.64),
    ],
    ("imagenet", "Linf:2/255", "PGD-20"): [(74.60, 54.56), (75.88, 55.42), (73.39, 53.39), (76.05, 56.78)],
    ("imagenet", "Linf:4/255", "PGD-20"): [(71.29, 40.98), (73.22, 41.26), (69.90, 40.53), (73.57, 40.03)],
    ("imagenet", "Linf:4/255", "AutoAttack"): [(71.00, 46.10), (76.32, 54.28), (76.62, 55.90), (78.62, 59.68)],
}  # fmt: skip


def stock_vit(width, depth, heads, image, patch, classes):
    return VisionTransformer(
        img_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=classes,
        qkv_bias=True, global_pool="avg", norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip


def official(state, **more):
    """What the authors' training script saves."""
    return {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "epoch": 49,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="vit_tiny", lr=None, betas=(0.9, 0.95)),
        **more,
    }


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def same_logits(defense, wanted, image, n=2, atol=1e-5):
    x = torch.rand(n, 3, image, image, generator=torch.Generator().manual_seed(1))
    x[1:] *= torch.linspace(0, 1, image)  # uniform noise alone looks the same everywhere
    with torch.no_grad():
        logits = wanted(x)
        assert logits.std(0).mean() > 0.01  # the images can be told apart at all
        torch.testing.assert_close(defense(x), logits, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "count"),
    [
        (layouts.vit(192, 12, 32, 2, 10), 152),
        (layouts.pretrained_vit(192, 12, 32, 2), 182),
        (layouts.convit(4), 180),
        (layouts.cait(192, 24, 4), 476),
        (layouts.cait(384, 36, 8), 692),
        (layouts.simmim_swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 7), 364),
        (layouts.simmim_swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 14), 355),
    ],
)
def test_the_layouts_have_as_many_keys_as_the_released_files(shapes, count):
    assert len(shapes) == count


# One of each kind of network by default.
FIRST = {specs.parse(CARDS[name].builder).name: name for name in reversed(CARDS)}.values()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in CARDS]
)
def test_every_released_network_is_told_from_its_shapes(name):
    spec = specs.parse(CARDS[name].builder)
    builder = registry.defenses.get(spec.name)
    shapes = SHAPES[spec.name](spec.arguments)
    found = _checkpoint_layouts.recognise(layouts.on_meta(shapes), [], Path("checkpoint-49.pth"))
    assert found is not None
    assert specs.canonical(found, builder) == specs.canonical(spec, builder)
    with torch.device("meta"):
        network = specs.build(spec, builder).classifier
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if spec.name == "swin":
        stored = {key for key in shapes if key.endswith(("attn_mask", "relative_position_index"))}
        computed = {key: tuple(value.shape) for key, value in network.named_buffers()}
        assert {key: shapes[key] for key in stored} == computed
        assert len(own) == len(shapes) - len(stored)
    else:
        assert own == shapes


def test_the_cards_claim_what_the_readme_says():
    claimed = {}
    for card in CARDS.values():
        (claim,) = card.claims
        assert claim["threat"] == card.threat and claim["source"].startswith(
            "README of github.com/xiaoyunxxy"
        )
        claimed.setdefault((card.dataset, card.threat, claim["attack"]), []).append(
            (claim["clean"], claim["robust"])
        )
    assert {key: sorted(rows) for key, rows in claimed.items()} == {
        k: sorted(v) for k, v in PUBLISHED.items()
    }
    assert len({card.download_page for card in CARDS.values()}) == len(CARDS) == 20


WRAPPED = {
    "official": official,
    "bare": lambda state: state,
    "nested": lambda state: {"model_state_dict": prefixed("module.base_model.", state), "epoch": 3},
    "prefixed": lambda state: prefixed("module.base_model.", state),
    "distributed": lambda state: {"state_dict": prefixed("module.", state)},
    "encoder": lambda state: prefixed("encoder.", state),
    "whole-defense": lambda state: prefixed("classifier.", state),
}


@pytest.mark.parametrize(
    "name",
    first_only(3, ["official", "nested", "encoder", "bare", "prefixed", "distributed", "whole-defense"]),
)
def test_vit_t_as_its_released_file_would_be_wrapped(tmp_path, name):
    wrap = WRAPPED[name]
    state = layouts.filled(layouts.vit(192, 12, 32, 2, 10))
    torch.save(wrap(state), tmp_path / "checkpoint-49.pth")
    found = load("mimir", "cifar10", tmp_path / "checkpoint-49.pth")
    assert (found.name, found.family) == ("mimir-vit-t-cifar10", "mimir")
    assert len(found.checkpoint_sha256) == 64 and found.checkpoint_sha256 in found.notes[0]
    stock = stock_vit(192, 12, 3, 32, 2, 10).eval()
    stock.load_state_dict(state)
    same_logits(found.defense, stock, 32)


@pytest.mark.parametrize(
    ("name", "shapes", "stock", "image"),
    [
        ("mimir-convit-t-cifar10", layouts.convit(4),
         partial(timm.create_model, "convit_tiny", img_size=32, patch_size=2, num_classes=10), 32),
        pytest.param("mimir-cait-xxs24-imagenet-eps4", layouts.cait(192, 24, 4),
         partial(timm.create_model, "cait_xxs24_224"), 224, marks=pytest.mark.slow),
        pytest.param("mimir-vit-s-imagenet-eps2", layouts.vit(384, 12, 224, 16, 1000),
         partial(stock_vit, 384, 12, 6, 224, 16, 1000), 224, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_released_sizes_against_stock_models(tmp_path, name, shapes, stock, image):
    state = layouts.filled(shapes)
    torch.save(official(state), tmp_path / "checkpoint.pth")
    model = stock().eval()
    model.load_state_dict(state)
    same_logits(load_defense(name, checkpoint=tmp_path / "checkpoint.pth"), model, image, atol=1e-4)


@pytest.mark.parametrize("stored", [True, False], ids=["masks-stored", "masks-left-out"])
@pytest.mark.parametrize(
    ("window", "depths", "heads"),
    [(4, (2, 3, 2), (2, 4, 1)), (8, (2, 2, 2), (1, 2, 4)), (8, (2,), (3,))],
    ids=["partly-shifted", "clipped-last-stage", "one-stage"],
)
def test_swin_in_simmims_layout_against_attention_over_the_whole_grid(
    tmp_path, window, depths, heads, stored
):
    """Grids 16, 8, 4: shifted windows, a stage that is one window, and one whose window is clipped."""
    state = layouts.filled(layouts.simmim_swin(12, depths, heads, window, image=32, patch=2, classes=7))
    wanted = partial(simmim.forward, dict(state), depths=depths, heads=heads, window=window)
    if not stored:
        state = {key: value for key, value in state.items() if not key.endswith("attn_mask")}
    torch.save({"model_state_dict": prefixed("module.base_model.", state)}, tmp_path / "swin.pth")
    defense = load_defense("swin(image_size=32)", checkpoint=tmp_path / "swin.pth")
    same_logits(defense, wanted, 32)
    x = torch.rand(2, 3, 32, 32)
    last = 16 // 2 ** (len(depths) - 1)
    assert defense.features(x).shape == (2, last**2, 12 * 2 ** (len(depths) - 1))
    torch.testing.assert_close(
        defense.classifier.head.fc(defense.classifier.norm(defense.features(x)).mean(1)), defense(x)
    )


def test_swins_own_layout_is_taken_too(tmp_path):
    spec = "swin(image_size=32, patch_size=2, width=12, depths=(2, 2), heads=(2, 4), window=4, num_classes=7)"
    network = specs.build(specs.parse(spec), registry.defenses.get("swin"))
    network.classifier.head.fc.weight.data.mul_(10)  # fresh weights hardly tell two images apart
    torch.save(network.classifier.state_dict(), tmp_path / "timm.pth")
    defense = load_defense("swin(image_size=32)", checkpoint=tmp_path / "timm.pth")
    same_logits(defense, lambda x: network.eval()(x), 32)


@pytest.mark.parametrize(
    "key", ["layers.0.blocks.1.attn_mask", "layers.1.blocks.0.attn.relative_position_index"]
)
def test_a_swin_whose_stored_indices_are_others_is_refused(tmp_path, key):
    state = layouts.filled(layouts.simmim_swin(12, (2, 2), (2, 4), 4, image=32, patch=2, classes=7))
    state[key] = state[key].flip(-1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ResourceError, match=f"has {key}"):
        load("swin", checkpoint=tmp_path / "odd.pth")


def test_features_are_the_tokens_after_the_last_norm(tmp_path):
    """MIMIR's adaptive attacks take timm's there, the class token first."""
    for spec in (
        "convit(image_size=8, patch_size=4, width=12, depth=3, heads=3, local=2, num_classes=5)",
        "cait(image_size=8, patch_size=4, width=12, depth=2, heads=3, num_classes=5)",
    ):
        torch.manual_seed(0)
        parsed = specs.parse(spec)
        defense = specs.build(parsed, registry.defenses.get(parsed.name)).eval()
        x = torch.rand(2, 3, 8, 8)
        features = defense.features(x)
        assert features.shape == (2, 5, 12)
        network = defense.classifier
        torch.testing.assert_close(network.head(features[:, 0]), defense(x))
        torch.testing.assert_close(features.mean(2), torch.zeros(2, 5), atol=1e-5, rtol=0)


def test_a_first_call_under_inference_mode_leaves_gradients(tmp_path):
    spec = specs.parse(
        "convit(image_size=8, patch_size=4, width=12, depth=3, heads=3, local=2, num_classes=5)"
    )
    defense = specs.build(spec, registry.defenses.get("convit")).eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        defense(x)
    x.requires_grad_(True)
    defense(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("state", "telling"),
    [
        (layouts.pretrained_vit(192, 2, 32, 4), "mask_token"),
        (
            prefixed("encoder.", layouts.simmim_swin(12, (2, 2), (2, 4), 4, image=32, patch=2))
            | {"encoder.mask_token": (1, 1, 12), "decoder.0.weight": (12, 24, 1, 1)},
            "mask_token",
        ),
    ],
    ids=["vit", "simmim"],
)
def test_a_pretrained_checkpoint_says_so(tmp_path, state, telling):
    torch.save(
        official(layouts.filled({k: v for k, v in state.items() if "head" not in k})), tmp_path / "pre.pth"
    )
    for name in ("mimir", "mimir-vit-t-cifar10", "vit", "swin"):
        with pytest.raises(
            ResourceError, match=f"pre-trained masked autoencoder.*{telling}.*fine-tune"
        ) as caught:
            load(name, "cifar10", tmp_path / "pre.pth")
        assert "\n" not in str(caught.value)


def test_only_plain_values_are_unpickled_besides_tensors(tmp_path):
    state = layouts.filled(layouts.vit(192, 1, 32, 8, 10))
    torch.save(official(state, best=torch.nn.ReLU()), tmp_path / "more.pth")
    with pytest.raises(ResourceError, match=r"holds a torch\.nn\S*ReLU, which is not unpickled") as caught:
        load("mimir", "cifar10", tmp_path / "more.pth")
    assert "\n" not in str(caught.value)


def test_a_network_that_no_card_has_is_built_and_recorded_as_itself(tmp_path):
    state = layouts.filled(layouts.vit(192, 12, 32, 4, 10))
    torch.save(official(state), tmp_path / "own.pth")
    spec = "vit(heads=3, image_size=32, num_classes=10, patch_size=4, width=192)"
    stock = stock_vit(192, 12, 3, 32, 4, 10).eval()
    stock.load_state_dict(state)
    for asked in ("mimir", "mimir-vit-b-cifar10"):
        found = load(asked, "cifar10", tmp_path / "own.pth")
        assert (found.name, found.family, found.card) == (spec, "mimir", None)
        assert spec in found.notes[0]
        same_logits(found.defense, stock, 32)


def test_heads_that_nothing_tells_are_asked_for(tmp_path):
    torch.save(layouts.filled(layouts.vit(40, 2, 32, 8, 10)), tmp_path / "own.pth")
    with pytest.raises(
        ResourceError,
        match=r"width 40 and 2 blocks, whose shapes do not determine its number of heads: specify it",
    ):
        load("mimir", "cifar10", tmp_path / "own.pth")
    found = load("vit(width=40, heads=5)", checkpoint=tmp_path / "own.pth")
    assert found.name == "vit(depth=2, heads=5, image_size=32, num_classes=10, patch_size=8, width=40)"
    assert found.defense.classifier.blocks[0].attn.num_heads == 5


def wide(depth):
    """A ViT of width 768 with an MLP of ratio 3."""
    state = layouts.vit(768, depth, 32, 8, 10)
    hidden = {"fc1.weight": (2304, 768), "fc1.bias": (2304,), "fc2.weight": (768, 2304)}
    return {key: hidden.get(".".join(key.split(".")[-2:]), shape) for key, shape in state.items()}


def test_heads_of_a_vit_come_from_the_stored_options_or_a_known_size(tmp_path):
    """vit_small_ds of MIMIR's code has the width of a ViT-B and 8 heads."""
    for name, depth, options, heads in (
        ("known", 8, None, 8),
        ("stored", 1, {"model": "vit_small_ds"}, None),  # another network than the options name
    ):
        state = layouts.filled(wide(depth))
        content = {"model": state} | ({"args": argparse.Namespace(**options)} if options else {})
        torch.save(content, tmp_path / f"{name}.pth")
        if heads is None:
            with pytest.raises(ResourceError, match="width 768 and 1 blocks, whose shapes"):
                load("mimir", "cifar10", tmp_path / f"{name}.pth")
            continue
        found = load("mimir", "cifar10", tmp_path / f"{name}.pth")
        assert found.defense.classifier.blocks[0].attn.num_heads == heads
    assert read_weights(tmp_path / "stored.pth").network == "vit_small_ds"
    hint = _checkpoint_layouts.named("vit_small")
    shapes = layouts.on_meta(layouts.vit(384, 12, 32, 8, 10))
    assert _checkpoint_layouts.recognise(shapes, hint, Path("x.pth")).arguments["heads"] == 6
    assert _checkpoint_layouts.named("resnet50") == []


def test_the_classifier_of_de3_loads_with_its_normalisation(tmp_path):
    """The official fine-tuning saves {"classifier": state}, for images with ImageNet's mean and deviation."""
    state = layouts.filled(layouts.vit(192, 12, 32, 8, 10))
    torch.save({"classifier": state, "optimizer": {"state": {}}, "epoch": 99}, tmp_path / "nim.pth")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = f"vit(width=192, heads=3, mean={mean}, std={std})"
    defense = load_defense(spec, checkpoint=tmp_path / "nim.pth")
    stock = stock_vit(192, 12, 3, 32, 8, 10).eval()
    stock.load_state_dict(state)
    scale, offset = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    same_logits(defense, lambda x: stock((x - offset) / scale), 32)


def test_a_swins_image_size_that_nothing_tells_is_asked_for(tmp_path):
    shapes = layouts.simmim_swin(12, (1, 1), (2, 4), 4, image=32, patch=2)
    torch.save(layouts.filled(shapes), tmp_path / "own.pth")
    with pytest.raises(ResourceError, match="do not determine its image size: specify it"):
        load("mimir", "cifar10", tmp_path / "own.pth")


_KEYS = sorted(
    {*layouts.vit(8, 1, 8, 4, 2), *layouts.convit(1), *layouts.simmim_swin(8, (1, 1), (1, 1), 2, 8, 2)}
)


@given(
    st.dictionaries(st.sampled_from(_KEYS), st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=12)
)
def test_no_table_of_shapes_breaks_the_recogniser(shapes):
    try:
        found = _checkpoint_layouts.recognise(layouts.on_meta(shapes), [], Path("any.pth"))
    except ResourceError as error:
        assert "any.pth" in str(error)
    else:
        assert found is None or isinstance(found, Spec)
