"""MAEP as a purifier: other image sizes, its gradient, its keys, what it refuses, what it stands in front of."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from robench.core import specs
from robench.core.errors import UsageError
from robench.core.trust import trusting
from robench.data import load_dataset
from robench.defenses import build_purifier, load
from robench.defenses._checkpoints import sha256_of
from robench.defenses._image_size import resized
from robench.defenses._patches import patchify, unpatchify
from robench.defenses.loaders import robustbench as robustbench_loader
from tests.defenses import files

SIZES = "image_size=8, patch_size=4, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2"


def tiny(size_mode="exact", sizes=SIZES):
    torch.manual_seed(0)
    return build_purifier(specs.parse(f'maep({sizes}, size_mode="{size_mode}")')).eval()


def images(n, side):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(side))


def test_patches_put_together_are_the_image():
    x = images(2, 12)
    for patch in (2, 3, 4, 12):
        assert torch.equal(unpatchify(patchify(x, patch), patch), x)


def test_tiles_are_purified_each_by_itself():
    alone, tiled = tiny(), tiny("tile")
    x = images(2, 24)
    whole = tiled(x)
    assert whole.shape == x.shape
    for row in range(0, 24, 8):
        for column in range(0, 24, 8):
            tile = (..., slice(row, row + 8), slice(column, column + 8))
            torch.testing.assert_close(whole[tile], alone(x[tile]))


@pytest.mark.parametrize("size_mode", ["tile", "interpolate"])
def test_the_training_size_is_taken_as_it_is(size_mode):
    x = images(3, 8)
    assert torch.equal(tiny(size_mode)(x), tiny()(x))


def test_positions_are_resized_as_a_grid():
    """A ramp becomes a ramp of twice the length, away from the border: new column j lies at (j + .5) / 2 - .5.

    Torch's cubic (a = -.75) is exact for constants alone: a ramp comes out up to 3/64 beside it.
    """
    column = torch.arange(8.0).expand(8, 8)
    ramps = torch.stack([column, column.T, torch.ones(8, 8)], 2).reshape(1, 64, 3)
    larger = resized(torch.cat([torch.full((1, 1, 3), 9.0), ramps], 1), 16)
    assert torch.equal(larger[0, 0], torch.full((3,), 9.0))
    across, down, ones = larger[0, 1:].T.reshape(3, 16, 16)
    wanted = (torch.arange(16.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(across[:, 4:12], wanted[4:12].expand(16, 8), rtol=0, atol=3 / 64 + 1e-5)
    torch.testing.assert_close(down, across.T)
    torch.testing.assert_close(ones, torch.ones(16, 16))


def test_interpolation_sees_the_image_as_a_whole_and_tiles_do_not():
    x = images(1, 16)
    other = x.clone()
    other[..., 8:, 8:] = 0.5
    for size_mode, reaches in (("interpolate", True), ("tile", False)):
        purifier = tiny(size_mode)
        torch.nn.init.constant_(purifier.decoder_pred.bias, 0.5)  # nothing is clipped
        here = (..., slice(0, 8), slice(0, 8))
        assert torch.equal(purifier(x)[here], purifier(other)[here]) != reaches


def test_it_is_mae_as_the_official_code_names_it():
    """A ViT of timm with the encoder's weights under the same names gives the same tokens."""
    purifier = tiny()
    vit = VisionTransformer(8, 4, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    vit.norm.eps = 1e-6
    for block in vit.blocks:
        block.norm1.eps = block.norm2.eps = 1e-6
    state = {key: value for key, value in purifier.state_dict().items() if key in vit.state_dict()}
    vit.load_state_dict(state)
    seen = []
    purifier.norm.register_forward_hook(lambda module, args, tokens: seen.append(tokens))
    x = images(2, 8)
    purifier(x)
    torch.testing.assert_close(seen[0], vit.forward_features(x))
    rest = {key.split(".")[0] for key in purifier.state_dict() if key not in state}
    assert rest == {"mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks"} | {
        "decoder_norm",
        "decoder_pred",
    }


def test_hidden_patches_change_nothing():
    purifier = tiny()
    x = images(2, 8)
    keep = torch.tensor([[0, 3], [2, 1]])
    other = patchify(x, 4)
    for image, seen in enumerate(keep.tolist()):
        for hidden in {0, 1, 2, 3} - set(seen):
            other[image, hidden] += 1
    other = unpatchify(other, 4)
    assert torch.equal(purifier.pixels(x, keep), purifier.pixels(other, keep))
    assert not torch.allclose(purifier.pixels(x), purifier.pixels(other))
    every = torch.tensor([[3, 0, 1, 2]]).expand(2, -1)  # all seen, in another order
    torch.testing.assert_close(purifier.pixels(x, every), purifier.pixels(x))


@pytest.mark.parametrize("size_mode", ["tile", "interpolate"])
def test_the_gradient_is_exact(size_mode):
    purifier = tiny(size_mode).double()
    # A sharper network: at its start the gradient of the pixels is too small to be measured well.
    torch.nn.init.normal_(purifier.decoder_pred.weight, std=0.5)
    x = images(1, 16).double().requires_grad_()
    out = purifier(x)
    inside = (out > 0.01) & (out < 0.99)
    assert inside.float().mean() > 0.1
    (grad,) = torch.autograd.grad(out[inside].sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ends = [purifier(x + sign * 1e-6 * direction)[inside].sum() for sign in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, (grad * direction).sum(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("patch_size=3", "image_size=8 must be a multiple of patch_size=3"),
        ("patch_size=16", "image_size=8 must be a multiple of patch_size=16"),
        ("heads=3", "must be multiples of heads=3"),
        ("patch_size=0", "patch_size=0: expected at least 1"),
        ("width=0", "width=0: expected at least 1"),
        ('size_mode="crop"', "expected one of exact, tile, interpolate"),
        ("width=6, heads=1", "multiple of 4"),
    ],
)
def test_bad_settings_are_refused(changed, said):
    given = specs.parse(f"maep({SIZES})").arguments | specs.parse(f"maep({changed})").arguments
    with pytest.raises(UsageError, match=said) as caught:
        build_purifier(specs.Spec("maep", given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size_mode", "side", "said"),
    [
        (
            "exact",
            16,
            'images of 8 px, not of 16 px: size_mode="tile" takes multiples of 8 px, size_mode="interpolate" of 4',
        ),
        ("tile", 20, 'size_mode="tile" takes images of a multiple of 8 px, not of 20 px'),
        ("tile", 4, "multiple of 8 px, not of 4 px"),
        ("interpolate", 18, 'size_mode="interpolate" takes images of a multiple of 4 px, not of 18 px'),
    ],
)
def test_images_that_do_not_fit_are_refused(size_mode, side, said):
    purifier = tiny(size_mode)
    for refuse in (lambda: purifier.check(side), lambda: purifier(images(1, side))):
        with pytest.raises(ValueError, match=said):
            refuse()


def behind_a_card(folder, builder, checkpoint):
    """A card whose checkpoint is at hand, so that nothing is downloaded."""
    lines = {
        "builder": builder,
        "dataset": "digits",
        "checkpoint": checkpoint.name,
        "sha256": sha256_of(checkpoint),
    }
    (folder / "inner.toml").write_text("\n".join(f"{key} = '{value}'" for key, value in lines.items()))
    return folder / "inner.toml"


def test_the_shipped_one_stands_before_any_classifier(tmp_path):
    x = load_dataset("digits", "test").x[:4]
    for name in ("maep-digits", "maep-digits+pgd-at-digits"):
        defense = load(name).defense
        classifier = load(name.partition("+")[2] or "standard-digits").defense
        assert not defense.stochastic and defense.differentiable
        torch.testing.assert_close(defense(x), classifier(defense.purifier(x)))
    torch.manual_seed(0)
    save_file(torchvision.models.squeezenet1_1(num_classes=10).state_dict(), tmp_path / "net.safetensors")
    card = behind_a_card(
        tmp_path, "torchvision:squeezenet1_1(num_classes=10, image_size=224)", tmp_path / "net.safetensors"
    )
    for size_mode in ("tile", "interpolate"):
        with trusting():
            defense = load(f'maep-digits(size_mode="{size_mode}")+{card}').defense
        assert defense(images(1, 224)).shape == (1, 10)
    with trusting(), pytest.raises(UsageError, match="takes images of 16 px, not of 224 px: size_mode="):
        load(f"maep-digits+{card}")


@pytest.mark.skipif(
    not files.installed("robustbench"), reason=f"RobustBench's zoo needs {robustbench_loader.INSTALL}"
)
def test_it_stands_before_a_network_of_robustbench(tmp_path):
    network = files.write_robustbench(tmp_path / "tiny.pt")
    card = behind_a_card(tmp_path, f"robustbench:{files.ROBUSTBENCH}", tmp_path / "tiny.pt")
    defense = load(f'maep-digits(size_mode="tile")+{card}').defense
    x = images(2, 32)
    torch.testing.assert_close(defense(x), network(defense.purifier(x)), rtol=1e-4, atol=1e-4)
