"""Training from another card's checkpoint: all of it learns, or the head alone; on a part of the images."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.defenses import load
from robench.training import read_recipe, train
from robench.training.batches import InMemory
from robench.training.recipe import Finetuning, Recipe, decisive_fields
from robench.training.stages import finetuning_stage

CARD = """
builder = "vit(image_size=16, patch_size=4, width=64, depth=4, heads=4, num_classes=10)"
dataset = "digits"
[recipe]
start = "mimir-digits"
samples = 64
measured = 20
threads = 1
evaluation = "Linf:0.1"
[recipe.finetuning]
epochs = 1
warmup = 0
batch_size = 32
lr = 1e-3
steps = 0
drop_path = 0.0
probe = true
"""


def trained(place, text=CARD, **options):
    (place / "own.toml").write_text(text)
    result = train(str(place / "own.toml"), output=place / "a.safetensors", progress=False, **options)
    return result, load_file(result.path)


def test_a_probe_leaves_the_encoder_as_it_was(tmp_path):
    result, state = trained(tmp_path)
    start = load("mimir-digits").defense.classifier.state_dict()
    changed = {key.split(".")[0] for key in start if not torch.equal(state[key], start[key])}
    assert changed == {"fc_norm", "head"} and result.n == 20


class Normed(nn.Module):
    """A body with batch normalization and dropout, and a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.LazyLinear(10))

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def test_a_frozen_encoder_is_in_evaluation_mode_in_training_and_after_attacks():
    data = load_dataset("digits", "train").first(32)
    model, average = Normed(), Normed()
    model(data.x), average(data.x)
    stage = finetuning_stage(model, average, Finetuning(probe=True, epochs=1, batch_size=8, steps=1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    list(stage.run(InMemory(data.x, data.y), Recipe()))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head.1.weight", "head.1.bias"}
    assert not any(part.training for part in model.body) and all(part.training for part in model.head)


def test_without_probe_all_of_it_learns_from_there(tmp_path):
    _, state = trained(tmp_path, CARD.replace("probe = true", ""))
    start = load("mimir-digits").defense.classifier.state_dict()
    weight = "blocks.0.mlp.fc1.weight"
    assert 0 < (state[weight] - start[weight]).abs().max() < 0.05


def test_a_start_is_the_same_as_its_file_by_hand(tmp_path):
    first, _ = trained(tmp_path)
    (tmp_path / "other").mkdir()
    by_hand, _ = trained(
        tmp_path / "other",
        CARD.replace('start = "mimir-digits"\n', ""),
        pretrained=load("mimir-digits").checkpoint,
    )
    assert by_hand.sha256 == first.sha256


def test_the_part_that_is_trained_on_decides_the_weights(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = trained(tmp_path)[0], trained(tmp_path / "other", CARD.replace("64\nm", "96\nm"))[0]
    assert first.sha256 != second.sha256


def test_what_does_not_decide_the_weights_is_no_part_of_the_fingerprint():
    plain, other = Recipe(), Recipe(measured=3, start="mimir-digits")
    assert decisive_fields(plain) == decisive_fields(other) != decisive_fields(Recipe(samples=3))
    assert not {"samples", "start", "measured"} & set(decisive_fields(plain))


def test_digits_come_in_other_sizes():
    small, large = load_dataset("digits").first(3), load_dataset("digits(size=32)").first(3)
    assert (small.name, large.name) == ("digits", "digits(size=32)")
    least = load_dataset("digits(size=8)").x[:3]
    again = torch.nn.functional.interpolate(least, size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(again, large.x[:]) and small.x.shape[-1] == 16
    with pytest.raises(UsageError, match="expected one of 8, 16, 32"):
        load_dataset("digits(size=24)")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('start = "mimir-digits"', "", "a probe needs an encoder: give recipe.start"),
        ('"mimir-digits"', '"mimir-digit"', 'unknown defense "mimir-digit"'),
        ('"mimir-digits"', '"trades-digits"', "trades-digits has no checkpoint to start from"),
        ("width=64", "width=32", "it belongs to another network|of shape"),
        ("probe = true", 'probe = "yes"', "expected True or False"),
        ("samples = 64", "samples = 5000", "its train split has 1258"),
        ("[recipe.fine", "[recipe.pretraining]\nepochs = 1\n[recipe.fine", "give only one"),
    ],
)
def test_bad_recipes_are_one_clear_line(tmp_path, old, new, said):
    with pytest.raises((UsageError, ResourceError), match=said) as caught:
        trained(tmp_path, CARD.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_network_without_a_head_cannot_be_probed(tmp_path):
    with pytest.raises(UsageError, match="probe trains only the head, but Linear has no module head"):
        finetuning_stage(nn.Linear(2, 2), nn.Linear(2, 2), Finetuning(probe=True))
    assert read_recipe({"finetuning": {"probe": True}}, "a.toml").finetuning.probe
