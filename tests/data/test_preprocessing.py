"""Preprocessing by name, compared with torchvision and timm pixel by pixel."""

import json

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torchvision import models, transforms
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from robench import catalog
from robench.cli import main
from robench.core.errors import UsageError
from robench.core.specs import parse as parse_spec
from robench.core.trust import trusting
from robench.data import load_dataset
from robench.data._names import synsets
from robench.data.preprocessing import of_evaluation, parse, side
from robench.defenses import load_defense
from robench.defenses._base import Defense
from robench.defenses.loaders import open_spec
from tests.data.real import REAL, needs
from tests.data.test_image_files import VAL, picture

BICUBIC = InterpolationMode.BICUBIC
# The transforms of RobustBench 1.1.1 under these names (its Res224 does not keep the aspect ratio).
REFERENCES = {
    "Res256Crop224": [Resize(256), CenterCrop(224)],
    "BicubicRes256Crop224": [Resize(256, interpolation=BICUBIC), CenterCrop(224)],
    "Res224": [Resize([224, 224])],
    "Crop288": [CenterCrop(288)],
    "BicubicRes235Crop224": [Resize(235, interpolation=BICUBIC), CenterCrop(224)],
}


def shown(size=(301, 402), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("size", [(301, 402), (500, 333), (288, 288)])
def test_pixels_match_torchvision(name, size):
    reference = transforms.Compose(REFERENCES[name])(shown(size))
    assert np.array_equal(np.array(parse(name).change(shown(size))), np.array(reference))
    assert side(name) == reference.size[0] == reference.size[1]


@needs("imagenet")
@pytest.mark.parametrize("name", ["Res256Crop224", "BicubicRes256Crop224", "Res224"])
def test_real_images_match_torchvision(name):
    images = load_dataset(f'imagenet(preprocessing="{name}")', samples=6, data_dir=str(REAL))
    whole = transforms.Compose([*REFERENCES[name], transforms.ToTensor()])
    for k, (number, label) in enumerate(zip(images.ids.tolist(), images.y.tolist(), strict=True)):
        file = REAL / "imagenet" / "val" / synsets()[label] / VAL.format(number + 1)
        assert torch.equal(images.x[k], whole(Image.open(file).convert("RGB")))


@given(st.booleans(), st.integers(1, 600), st.integers(1, 600), st.sampled_from(["res", "crop", "both"]))
def test_names_are_parsed(bicubic, res, crop, kind):
    name = ("" if kind == "crop" else f"{'Bicubic' * bicubic}Res{res}") + (
        "" if kind == "res" else f"Crop{crop}"
    )
    if kind == "both" and crop > res:
        with pytest.raises(UsageError, match="cannot be cropped"):
            parse(name)
        return
    how = parse(name)
    assert how.smallest == (crop if kind == "crop" else 1)
    assert side(name) == (res if kind == "res" else crop)


@pytest.mark.parametrize(
    "name", ["", "res224", "BicubicCrop224", "Res0", "Res224Crop", "Res-1", 224, None, "Crop224Res256"]
)
def test_other_names_are_refused(name):
    with pytest.raises(UsageError, match="unknown preprocessing"):
        parse(name)


@pytest.mark.parametrize(
    "model",
    [
        "resnet18",
        "resnet50.a1_in1k",
        "vit_tiny_patch16_224",
        "convnext_tiny",
        "deit_tiny_patch16_224",
        "mobilevit_s",
    ],
)
def test_names_match_the_preprocessing_of_timm(model):
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    found, _ = open_spec(parse_spec(f"timm:{model}"), bare=True)
    name = found.defense.preprocessing
    assert name, config
    theirs: transforms.Compose = create_transform(**config)
    # Without the last two transforms, which convert to a tensor and normalize.
    expected = transforms.Compose(theirs.transforms[:-2])(shown())
    assert np.array_equal(np.array(parse(name).change(shown())), np.array(expected))


def test_other_preprocessing_has_no_name():
    assert of_evaluation(224, 1.0, "bicubic", "squash") == "BicubicRes224"
    assert of_evaluation(224, 0.9, "bicubic", "squash") == ""
    assert of_evaluation(224, 0.875, "lanczos") == ""
    assert of_evaluation(224, 1.0, "bicubic", "border") == ""
    assert of_evaluation(224, None, "bilinear") == "Res256Crop224"


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_b_16"])
def test_names_match_the_preprocessing_of_torchvision_weights(name):
    weights = models.get_model_weights(name).DEFAULT
    found, _ = open_spec(parse_spec(f"torchvision:{name}"), bare=True)
    theirs = weights.transforms()
    theirs.mean, theirs.std = [0.0] * 3, [1.0] * 3
    ours = transforms.ToTensor()(parse(found.defense.preprocessing).change(shown()))
    assert torch.equal(ours, theirs(shown()))


class Plain(nn.Module):
    """Pixels as logits."""

    def forward(self, x):
        return x.flatten(1)[:, :1000] * 9


def own():
    return Defense(Plain(), num_classes=1000, image_size=24, preprocessing="BicubicRes30Crop24")


def test_a_run_uses_and_records_the_preprocessing_of_the_defense(tmp_path, capsys):
    for number in (1, 2):
        picture(tmp_path / "val" / synsets()[number] / VAL.format(number), (40, 50), number)
    arguments = ["--dataset", 'imagenet(preprocessing="own")', "--threat", "Linf:1/255", "--samples", "2"]
    arguments += ["--data-dir", str(tmp_path), "--results", str(tmp_path / "results"), "--attack", "fgsm"]
    with pytest.raises(SystemExit) as end:
        main(["run", "--defense", "python:tests.data.test_preprocessing.own", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    (record,) = json.loads(out)["records"]
    name = 'imagenet(preprocessing="BicubicRes30Crop24")'
    assert record["dataset"]["name"] == name
    assert record["dataset"]["digest"] == load_dataset(name, samples=2, data_dir=str(tmp_path)).digest
    with pytest.raises(SystemExit) as end:
        main(["run", "--defense", "standard-digits", *arguments])
    assert end.value.code == 2
    assert "standard-digits does not specify its preprocessing" in capsys.readouterr().err
    with pytest.raises(UsageError, match="there is none here"):
        load_dataset('imagenet(preprocessing="own")', data_dir=str(tmp_path))


def test_a_card_sets_the_preprocessing_of_its_network(tmp_path):
    card = tmp_path / "my.toml"
    shipped = catalog.cards()["standard-digits"]
    whole = str(shipped.path.parent / shipped.checkpoint)
    text = shipped.path.read_text().replace(shipped.checkpoint, whole)
    card.write_text('preprocessing = "Res16"\n' + text)
    with trusting():
        assert load_defense(str(card)).preprocessing == "Res16"
