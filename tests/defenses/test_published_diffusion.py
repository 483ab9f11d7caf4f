"""The published files of diffusion models: whose network they make, what is taken of them, what is refused."""

import math

import pytest
import torch
from torch.nn import functional as F

from robench import catalog
from robench.core import specs
from robench.core.errors import ResourceError, UsageError
from robench.defenses import build_purifier, diffusion, find_card, load, load_purifier
from robench.defenses._ddpmpp import time_inputs
from robench.defenses._schedule import Schedule
from tests.defenses import published
from tests.defenses.test_diffusion import rows

WIDTHS, LAYERS, ATTENDS, GROUPS = [8, 16], 1, [False, True], 4
SIZES = {"image_size": 16, "widths": WIDTHS, "layers": LAYERS, "attention": [8], "groups": GROUPS, "t": 9}
LAYOUTS = {"adm": published.adm(WIDTHS, LAYERS, ATTENDS), "ddpm++": published.ddpmpp(WIDTHS, LAYERS, ATTENDS)}


@pytest.fixture(autouse=True)
def diffusers():
    pytest.importorskip("diffusers", reason=f"diffusion purifiers need {diffusion.INSTALL}")


def named(kind, **settings):
    head = {"head_width": 4} if kind == "adm" else {}
    return str(specs.Spec("diffpure", {"network": kind, **SIZES, **head, "steps": 1, **settings}))


def as_trained(state):
    """A file as score_sde_pytorch's trainer writes it: the weights in use have had other values."""
    model = {key: tensor + 1 for key, tensor in state.items()}
    average = [tensor for key, tensor in state.items() if key != "module.sigmas"]
    adam = {"state": {0: {"step": 3, "exp_avg": average[0]}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    ema = {"decay": 0.9999, "num_updates": 3, "shadow_params": average}
    return {"optimizer": adam, "model": model, "ema": ema, "step": 3}


def write(kind, path, state=None):
    state = published.drawn(LAYOUTS[kind]) if state is None else state
    torch.save(as_trained(state) if kind == "ddpm++" else state, path)
    return state


def wanted(kind, state, x, t, purifier):
    if kind == "adm":
        return published.adm_noise(state, x, t - 1, LAYERS, GROUPS, 4)
    return published.ddpmpp_noise(state, x, purifier.time_inputs[t - 1], LAYERS, ATTENDS, GROUPS)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_published_file_makes_its_authors_network(kind, tmp_path):
    state = write(kind, tmp_path / "w.pth")
    purifier = load_purifier(named(kind), checkpoint=tmp_path / "w.pth")
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 700])
    got = purifier.predict_noise(x, t)
    torch.testing.assert_close(got, wanted(kind, state, x, t, purifier), rtol=1e-5, atol=1e-5)
    assert (got[0] - purifier.predict_noise(x, t.flip(0))[0]).abs().max() > 1e-3
    torch.save(purifier.state_dict(), tmp_path / "ours.pt")
    again = load_purifier(named(kind), checkpoint=tmp_path / "ours.pt")
    assert torch.equal(again.predict_noise(x, t), got)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_its_gradient_is_exact_in_little_memory(kind, tmp_path):
    write(kind, tmp_path / "w.pth")
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    grads = []
    for remember in (True, False):
        purifier = load_purifier(named(kind, remember=remember, steps=2), checkpoint=tmp_path / "w.pth")
        with rows(3, 4):
            grads += torch.autograd.grad(purifier(x).square().sum(), x)
    assert torch.equal(*grads) and grads[0].abs().max() > 0


@pytest.mark.parametrize(
    ("card", "kind", "layout", "names", "numbers"),
    [
        # Counted in the authors' own networks.
        (
            "diffpure-imagenet", "adm",
            ([256, 256, 512, 512, 1024, 1024], 2, [False] * 3 + [True] * 3), 566, 552_814_086,
        ),
        (
            "diffpure-score-sde-cifar10", "ddpm++",
            ([128, 256, 256, 256], 8, [False, True, False, False]), 957, 106_633_579,
        ),
    ],
)  # fmt: skip
def test_the_cards_take_the_published_files(card, kind, layout, names, numbers):
    shapes = {"adm": published.adm, "ddpm++": published.ddpmpp}[kind](*layout)
    assert len(shapes) == names and sum(math.prod(shape) for shape in shapes.values()) == numbers
    with torch.device("meta"):
        purifier = build_purifier(specs.parse(catalog.cards()[card].builder))
        found = purifier.fitted({key: torch.empty(shape) for key, shape in shapes.items()})
    ours = {key: tensor.shape for key, tensor in purifier.state_dict().items()}
    assert {key: tensor.shape for key, tensor in found.items()} == ours


def test_the_card_of_a_file_that_is_not_there_says_where_it_goes(tmp_path, monkeypatch):
    name = "diffpure-score-sde-cifar10+standard-digits"
    with pytest.raises(
        ResourceError, match=r"get them from https://drive\S+ .*as score_sde/checkpoint_8.pth"
    ):
        load(name)
    (tmp_path / "score_sde").mkdir()
    (tmp_path / "score_sde" / "checkpoint_8.pth").write_bytes(b"PK")
    monkeypatch.setenv("ROBENCH_CHECKPOINTS", str(tmp_path))
    with pytest.raises(
        ResourceError, match=r"score_sde/checkpoint_8.pth is a zip archive that is damaged"
    ) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_brought_file_is_taken_on_trust_and_said_to_be(tmp_path, monkeypatch):
    write("ddpm++", tmp_path / "w.pth")
    card = tmp_path / "own.toml"
    card.write_text(
        f"builder = '{named('ddpm++')}'\ndataset = 'digits'\nclassifier = 'standard-digits'\n"
        "checkpoint = 'w.pth'\norigin = 'somewhere'\n"
    )
    loaded = load(str(card))
    assert "own has no sha256 yet" in loaded.notes[0] and loaded.checkpoint == tmp_path / "w.pth"
    assert loaded.defense(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_a_brought_file_does_not_make_its_card_the_familys(monkeypatch):
    assert find_card("diffpure").name == "diffpure-digits"
    cards = {**catalog.cards()}
    cards["shipped"] = catalog.Card("shipped", "diffpure", "imagenet", "diffpure", checkpoint="a.safetensors")
    monkeypatch.setattr(catalog, "cards", lambda: cards)
    assert find_card("diffpure", "imagenet").name == "shipped"


def broken(kind, change):
    state = published.drawn(LAYOUTS[kind])
    change(state)
    return state


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (
            "adm", lambda s: s.update({"label_emb.weight": torch.ones(9, 32)}),
            r"has network.label_emb.weight, of shape \(9, 32\)",
        ),
        (
            "adm", lambda s: s.pop("output_blocks.1.2.in_layers.2.weight"),
            "lacks network.up_blocks.0.upsamplers.0.conv1.weight",
        ),
        (
            "adm", lambda s: s.update({"input_blocks.0.0.weight": torch.ones(8, 1, 3, 3)}),
            r"conv_in.weight of shape \(8, 1, 3, 3\): the network needs of shape \(8, 3, 3, 3\)",
        ),
        ("adm", lambda s: s["out.2.bias"].fill_(torch.nan), "NaN or infinite numbers in network.conv_out.bias"),
        (
            "ddpm++", lambda s: s.pop("module.all_modules.5.Conv_0.bias"),
            "lacks network.down.2.residual.conv1.bias",
        ),
    ],
)  # fmt: skip
def test_another_networks_file_is_refused_in_one_line(kind, change, said, tmp_path):
    write(kind, tmp_path / "w.pth", broken(kind, change))
    with pytest.raises(ResourceError, match=said) as caught:
        load_purifier(named(kind), checkpoint=tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_an_average_of_other_weights_is_refused(tmp_path):
    file = as_trained(published.drawn(LAYOUTS["ddpm++"]))
    file["ema"]["shadow_params"].append(torch.ones(3))
    torch.save(file, tmp_path / "w.pth")
    with pytest.raises(ResourceError, match="moving average that does not fit"):
        load_purifier(named("ddpm++"), checkpoint=tmp_path / "w.pth")


@pytest.mark.parametrize(("start", "end"), [(1e-4, 0.02), (0.001, 0.001)])
def test_a_time_maps_to_that_of_the_same_noise(start, end):
    schedule = Schedule(1000, start, end)
    times = time_inputs(schedule).double() / 999
    left = (-(times**2) * 1000 * (end - start) / 2 - times * 1000 * start).exp()
    kept = torch.tensor(schedule.kept[1:], dtype=torch.float64)
    early = slice(0, 900)
    torch.testing.assert_close(left[early], kept[early], rtol=1e-5, atol=0)
    assert times.min() > 0 and times.max() <= 1 and (times[1:] >= times[:-1]).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"network": "unet"}, "network='unet': expected one of ddpm, adm, ddpm"),
        (
            {"head_width": 3},
            r"head_width=3: expected 0, or a divisor of the widths that have attention, \[16\]",
        ),
        ({"groups": 0}, "groups=0: expected at least 1"),
        ({"t": 1.5}, "t=1.5: expected a whole number"),
        ({"t": "far"}, "t='far': expected a whole number"),
        ({"steps": True}, "steps=True: expected a whole number"),
        ({"size_mode": "crop"}, "size_mode='crop': expected one of exact, tile, interpolate, resize"),
    ],
)
def test_bad_settings_end_in_one_line(settings, said):
    with pytest.raises(UsageError, match=said):
        build_purifier(specs.Spec("diffpure", {**SIZES, **settings}))


def test_images_of_another_size_are_scaled_to_its_own_and_back(tmp_path):
    write("ddpm++", tmp_path / "w.pth")
    purifier = load_purifier(named("ddpm++", size_mode="resize"), checkpoint=tmp_path / "w.pth")
    x = torch.rand(2, 3, 14, 14, generator=torch.Generator().manual_seed(3))

    def scaled(images, side):
        return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)

    purifier.check(14)
    with rows(1, 2):
        got = purifier(x)
    with rows(1, 2):
        assert torch.equal(got, scaled(purifier.purify(scaled(x, 16)), 14))
