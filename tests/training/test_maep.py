"""MAEP's training: which pairs, which patches, which weights learn, and that it goes on where it stopped."""

import importlib.util

import pytest
import torch

from robench.core import specs
from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.defenses import Purifier, build_purifier, load
from robench.defenses._patches import patchify
from robench.training import read_recipe, train, trainer
from robench.training.purifier_training import find_purifier_training
from robench.training.purifier_training.maep import TrainMAEP

NETWORK = (
    "maep(image_size=16, patch_size=4, width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, "
    "decoder_heads=2)"
)
CARD = f"""
builder = "{NETWORK}"
dataset = "digits"
classifier = "standard-digits"
[recipe]
threads = 1
evaluation = "Linf:0.1"
shift = 1
samples = 256
measured = 64
[[recipe.purifying]]
method = 'maep(source="standard-digits", eps=0.1, step_size=0.05, steps=2)'
epochs = 2
warmup = 0
batch_size = 64
lr = 5e-3
[[recipe.purifying]]
method = 'maep(source="standard-digits", eps=0.1, step_size=0.1, steps=1, offline=False, mask_ratio=0, rank=2)'
epochs = 2
warmup = 0
batch_size = 64
lr = 5e-3
"""

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="LoRA needs peft")


def training(**settings):
    return TrainMAEP(**{"source": "standard-digits", "eps": 0.1, "step_size": 0.05, "steps": 2, **settings})


def network():
    torch.manual_seed(0)
    return build_purifier(specs.parse(NETWORK))


@pytest.fixture(scope="module")
def digits():
    images = load_dataset("digits", "train")
    return images.x[:300], images.y[:300]


def test_offline_pairs_lie_in_the_ball_and_fool_the_source(digits):
    x, y = digits
    config = training(eps="25.5/255", steps=5)
    assert config.eps == pytest.approx(0.1)
    clean, x_a = config.images(config.learner(network()), x, y).split(3, 1)
    assert torch.equal(clean, x)
    assert (x_a - x).abs().max() <= 0.1 + 1e-6 and x_a.min() >= 0 and x_a.max() <= 1
    source = load("standard-digits").defense
    assert (source(x).argmax(1) == y).float().mean() > 0.95
    assert (source(x_a).argmax(1) == y).float().mean() < 0.3


def test_on_the_fly_the_images_are_the_clean_ones_and_each_batch_is_attacked_anew(digits):
    x, y = digits
    config = training(offline=False)
    assert config.images(network(), x, y) is x
    first, second = config.attacked(x[:8], y[:8]), config.attacked(x[:8], y[:8])
    assert not torch.equal(first, second)  # the random starts
    assert all((each - x[:8]).abs().max() <= 0.1 + 1e-6 for each in (first, second))


def test_the_loss_is_l1_on_what_is_seen_and_squared_on_what_is_hidden(digits):
    """By hand, for a network whose guess is .25 everywhere, before it is clipped."""
    x = digits[0][:5]
    pairs = torch.cat([x, x], 1)
    model = network()
    torch.nn.init.zeros_(model.decoder_pred.weight)
    torch.nn.init.constant_(model.decoder_pred.bias, 0.25)
    error = 0.25 - patchify(x, 4)
    bare = training(mask_ratio=0).loss(model, pairs, digits[1][:5])
    torch.testing.assert_close(bare, error.abs().mean())
    torch.manual_seed(3)
    order = torch.rand(5, 16).argsort(1)[:, :, None].expand(-1, -1, 48)
    seen, hidden = error.gather(1, order[:, :12]), error.gather(1, order[:, 12:])
    torch.manual_seed(3)
    loss = training(mask_ratio=0.25, reconstruction=2.0).loss(model, pairs, digits[1][:5])
    torch.testing.assert_close(loss, seen.abs().mean() + 2 * hidden.square().mean())


def test_the_source_stays_frozen(digits):
    x, y = digits
    config, model = training(offline=False), network()
    before = {key: value.clone() for key, value in config._source.state_dict().items()}
    config.loss(config.learner(model).train(), x[:8], y[:8]).backward()
    assert all(p.grad is None and not p.requires_grad for p in config._source.parameters())
    assert not config._source.training
    assert all(torch.equal(value, before[key]) for key, value in config._source.state_dict().items())
    assert all(p.grad is not None for p in model.parameters())


@needs_peft
def test_lora_changes_the_decoder_alone_and_merging_keeps_what_it_computes(digits):
    x, y = digits
    model = network()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    config = training(mask_ratio=0, rank=2, offline=False)
    learner = config.learner(model)
    learning = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        config.loss(learner, x[:32], y[:32]).backward()
        optimizer.step()
    adapted = model(x[:4])
    config.finish(learner, model)
    torch.testing.assert_close(model(x[:4]), adapted)
    assert list(model.state_dict()) == list(start) and all(p.requires_grad for p in model.parameters())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])}
    maps = {f"decoder_blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert changed == {f"{name}.weight" for name in maps | {"decoder_embed", "decoder_pred"}}
    for key in changed:
        assert torch.linalg.matrix_rank((model.state_dict()[key] - start[key]).double(), rtol=1e-4) <= 2


def write(folder, text=CARD):
    (folder / "own.toml").write_text(text)
    return str(folder / "own.toml")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    result = train(write(place), output=place / "a.safetensors", progress=False, csv=place / "a.csv")
    losses = [float(row.split(",")[2]) for row in (place / "a.csv").read_text().splitlines()[1:]]
    return result, losses


@needs_peft
def test_both_stages_lower_their_loss(whole):
    result, losses = whole
    assert losses[1] < 0.8 * losses[0] and losses[3] < losses[2]
    assert result.n == 64


@needs_peft
@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_interrupted_training_ends_in_the_same_weights(tmp_path, monkeypatch, whole, number):
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save = trainer._Run.save

    def interrupted(self, stage):
        save(self, stage)
        if stage.name == f"purifier stage {number}":
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Run, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(write(tmp_path), output=tmp_path / "cut.safetensors", progress=False)
    monkeypatch.setattr(trainer._Run, "save", save)
    again = train(write(tmp_path), output=tmp_path / "cut.safetensors", progress=False)
    assert again.sha256 == whole[0].sha256


def test_without_peft_it_says_so_before_the_first_stage(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest)
    )
    with pytest.raises(ResourceError, match=r"needs peft: pip install peft") as caught:
        train(write(tmp_path), output=tmp_path / "a.safetensors", progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('source="standard-digits", mask_ratio=1', "mask_ratio=1: expected at least 0 and below 1"),
        ('source="standard-digits", mask_ratio=-0.5', "at least 0"),
        ('source="standard-digits", rank=1.5', "rank=1.5: expected a whole number"),
        ('source="standard-digits", rank=2, alpha=0', "alpha=0: expected above 0"),
        ('source="standard-digits", offline=1', "offline=1: expected True or False"),
        ('source="standard-digits", eps="8/0"', "radius of threat"),
        ('source="standard-digits", eps=-1', "at least 0"),
        ('source="standard-digit"', r'unknown defense "standard-digit": did you mean standard-digits'),
        ("steps=3", "name the defense to attack"),
    ],
)
def test_bad_settings_are_one_clear_line(settings, said):
    with pytest.raises(UsageError, match=said) as caught:
        find_purifier_training(f"maep({settings})")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "image_size=16",
            "image_size=8",
            "cannot be trained on digits: this purifier takes images of 8 px, not of 16 px",
        ),
        ("patch_size=4", "patch_size=5", "must be a multiple of patch_size=5"),
        (
            "mask_ratio=0,",
            "mask_ratio=1,",
            "purifying, stage 2: .*mask_ratio=1: expected at least 0 and below 1",
        ),
        ('source="standard-digits"', 'source="trades-digits"', "trades-digits comes without trained weights"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(tmp_path, old, new, said):
    card = write(tmp_path, CARD.replace(old, new).replace(", rank=2", ""))
    with pytest.raises((UsageError, ResourceError), match=said) as caught:
        train(card, output=tmp_path / "a.safetensors", progress=False)
    assert "\n" not in str(caught.value)


def test_another_purifier_is_refused():
    class Other(Purifier):
        pass

    with pytest.raises(ValueError, match="expected a maep purifier, got Other"):
        training().learner(Other())


def test_a_source_for_other_images_is_refused(digits, monkeypatch):
    config = training()
    x, y = digits
    with pytest.raises(UsageError, match="source standard-digits has 10 classes"):
        config.images(network(), x, y + 5)
    monkeypatch.setattr(config._source, "image_size", 32)
    with pytest.raises(UsageError, match="source standard-digits needs images of 32 px"):
        config.images(network(), x, y)


def test_fractions_are_read_in_a_recipe():
    table = {"purifying": [{"method": 'maep(source="standard-digits", eps="8/255", step_size="2/255")'}]}
    stage = read_recipe(table, "a.toml").purifying[0]
    assert find_purifier_training(stage.method) == TrainMAEP(source="standard-digits")
