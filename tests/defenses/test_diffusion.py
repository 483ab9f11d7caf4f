"""Purification by a diffusion model: exact gradients in little memory, noise by the row, others' weights, refusals."""

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from robench import catalog
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.precision import computing
from robench.core.rng import Stream, noise
from robench.defenses import Defense, build_purifier, diffusion, load
from tests.combinations import each_once

pytest.importorskip("diffusers", reason=f"diffusion purifiers need {diffusion.INSTALL}")

SMALL = {
    "image_size": 8, "widths": [8, 16], "layers": 1, "attention": [8], "groups": 4, "t": 60, "steps": 6,
}  # fmt: skip


def purifier(**settings):
    torch.manual_seed(0)
    return build_purifier(specs.Spec("diffpure", {**SMALL, **settings})).eval().requires_grad_(False)


def images(n=4, side=8):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


@contextmanager
def rows(*samples):
    ids = torch.tensor(samples)
    with noise(Stream.of(0, "judge"), ids, torch.zeros_like(ids), torch.zeros_like(ids)):
        yield


def gradient(model, x, precision="fp32"):
    """The gradient, and the numbers that were kept for it at the end of the forward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    with saved_tensors_hooks(keep, lambda tensor: tensor), computing(precision, x.device):
        purified = model(x)
    loss = (purified.float() * torch.linspace(-1, 1, purified[0].numel()).view_as(purified[0])).sum()
    (grad,) = torch.autograd.grad(loss, x)
    return grad, sum(kept.values())


@pytest.mark.parametrize(("sampler", "precision"), each_once(["ddpm", "ddim"], ["fp32", "bf16"]))
def test_the_gradient_is_exact_in_little_memory(sampler, precision):
    whole, much = gradient(purifier(sampler=sampler, remember=True), images(), precision)
    again, little = gradient(purifier(sampler=sampler), images(), precision)
    assert torch.equal(whole, again) and whole.flatten(1).norm(dim=1).min() > 0
    assert little < much / 20


def test_memory_grows_by_images_and_not_by_activations():
    x = images()
    short, long = (gradient(purifier(steps=steps), x)[1] for steps in (2, 6))
    # An image and its noise a step.
    assert long - short <= 4 * 2 * x.numel() + 100


def test_ddim_is_deterministic_given_the_forward_noise():
    """Without eta each of its three steps draws nothing: the noise of the way there decides."""
    x, drawn = images(), []
    draw = diffusion.normal_like

    def counted(x):
        drawn.append(x)
        return draw(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "normal_like", counted)
        model = purifier(sampler="ddim", steps=3)
        torch.manual_seed(3)
        first = model(x)
        torch.manual_seed(3)
        assert torch.equal(first, model(x)) and len(drawn) == 2
        assert not torch.equal(first, model(x)) and model.stochastic
        drawn.clear()
        purifier(sampler="ddim", steps=3, eta=0.5)(x)
        assert len(drawn) == 3  # the last step, to time 0, adds nothing


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_row_does_not_depend_on_its_neighbours(sampler):
    model, x = purifier(sampler=sampler, eta=None), images()
    with rows(5, 6, 7, 8):
        together = model(x)
    with rows(7, 5):
        apart = model(x[[2, 0]])
    torch.testing.assert_close(apart, together[[2, 0]], rtol=1e-5, atol=1e-6)
    with rows(9, 5):
        other = model(x[[2, 0]])
    assert (other[0] - together[2]).abs().max() > 1e-3


def test_few_noising_steps_change_little_and_many_change_all():
    """With alpha bar near 1 the image comes back; from pure noise nothing of it can."""
    x = images()
    near, far = purifier(t=1, steps=1), purifier(t=1000, steps=4)
    assert (near(x) - x).abs().mean() < 0.02
    torch.manual_seed(0)
    one = far(x)
    torch.manual_seed(0)
    assert (far(1 - x) - one).abs().mean() < 0.05 and one.min() >= 0 and one.max() <= 1


def test_times_are_spread_evenly_down_to_the_image():
    assert purifier(t=100, steps=4).times == [100, 75, 50, 25, 0]
    assert purifier(t=3, steps=0).times == [3, 2, 1, 0]
    assert purifier(t=10, steps=3).times == [10, 7, 3, 0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"t": 0}, "t=0: expected 1 to 1000"),
        ({"t": 1001}, "t=1001: expected 1 to 1000"),
        ({"steps": 61}, "steps=61: expected 1 to t=60"),
        ({"steps": -1}, "steps=-1: expected 1 to t=60"),
        ({"sampler": "euler"}, "sampler='euler': expected ddpm or ddim"),
        ({"sampler": "ddim", "eta": -0.1}, "eta=-0.1 for ddim: expected 0 to 1"),
        ({"eta": 0.5}, "eta=0.5 for ddpm: expected 1"),
        ({"beta_end": 2.0}, "expected 0 < start <= end < 1"),
        ({"image_size": 9}, "image_size=9: expected a multiple of 2"),
        ({"widths": [8, 18]}, "multiples of groups=4"),
        ({"attention": [5]}, r"no resolution has side 5, only \[8, 4\]"),
        ({"layers": 0}, "layers=0: expected at least 1"),
        ({"dropout": 1.0}, "dropout=1.0: expected at least 0 and below 1"),
        ({"stride": 2}, "takes no argument stride"),
    ],
)
def test_bad_settings_end_in_one_line(settings, said):
    with pytest.raises(UsageError, match=said) as caught:
        purifier(**settings)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused(tmp_path):
    save_file(purifier().state_dict(), tmp_path / "w.safetensors")
    name = str(specs.Spec("diffpure", SMALL))
    with pytest.raises(UsageError, match="takes images of 8 px, not of 16 px"):
        load(f"{name}+standard-digits", checkpoint=tmp_path / "w.safetensors")


def test_without_diffusers_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers.models.unets.unet_2d", None)
    with pytest.raises(ResourceError, match=r"diffpure needs diffusers.*pip install diffusers"):
        purifier()


def theirs(spec):
    """The network of a card as `diffusers` builds it from the configuration of google/ddpm-cifar10-32."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel(
        sample_size=32, act_fn="silu", attention_head_dim=None, block_out_channels=spec["widths"],
        center_input_sample=False, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, in_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2, mid_block_scale_factor=1, norm_eps=1e-6, norm_num_groups=spec["groups"],
        out_channels=3, time_embedding_type="positional",
    ).eval()  # fmt: skip


def aged(state):
    """The names that the published file has: those of 2022."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    names = dict.fromkeys(state)
    for key in names:
        names[key] = key
        for new, name in old.items():
            names[key] = names[key].replace(f".{new}.", f".{name}.")
    return {names[key]: tensor for key, tensor in state.items()}


def register(monkeypatch):
    """A classifier for images of 32 px that needs no weights: whether an image is bright."""

    def averages():
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        return Defense(classifier, num_classes=2, image_size=32)

    monkeypatch.setitem(registry.defenses._builders, "averages", averages)
    monkeypatch.setitem(registry.defenses._holders, "averages", "tests.averages")


@pytest.mark.parametrize("age", [dict, aged])
def test_a_unets_own_file_is_taken(tmp_path, age, monkeypatch):
    torch.manual_seed(1)
    wanted = theirs({"widths": (8, 16, 16, 16), "groups": 8}).requires_grad_(False)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(age(wanted.state_dict()), file)
    register(monkeypatch)
    name = "diffpure(image_size=32, widths=[8, 16, 16, 16], layers=2, attention=[16], groups=8, t=9, steps=1)"
    defense = load(f"{name}+averages", checkpoint=file).defense
    model = defense.purifier
    assert defense(images(2, 32)).shape == (2, 2)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([1, 700])
    torch.testing.assert_close(model.predict_noise(x, t), wanted(x, t - 1).sample, rtol=1e-5, atol=1e-5)
    assert model.fitted(model.state_dict()).keys() == model.state_dict().keys()


def test_the_published_cards_network_is_the_published_one():
    card = catalog.cards()["diffpure-cifar10-google"]
    with torch.device("meta"):
        ours = build_purifier(specs.parse(card.builder))
        wanted = theirs({"widths": (128, 256, 256, 256), "groups": 32}).state_dict()
    found = {key.removeprefix("network."): value.shape for key, value in ours.state_dict().items()}
    assert found == {key: value.shape for key, value in wanted.items()}
    # 143 MB in fp32, as the repository shows
    assert sum(shape.numel() for shape in found.values()) * 4 == pytest.approx(143e6, rel=0.01)
