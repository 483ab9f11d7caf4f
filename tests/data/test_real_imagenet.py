"""A real classifier on real ImageNet images, from the command line and from Python."""

import json

import pytest
import torch

from robench import load_defense
from robench.cli import main
from robench.data import load_dataset
from robench.evaluation.protocol import choose_protocol
from tests.data.real import REAL, needs

WEIGHTS = REAL / "weights" / "squeezenet1_1_imagenet.safetensors"
SQUEEZENET = (
    "torchvision:squeezenet1_1(image_size=227, mean=(123/255, 117/255, 104/255), std=(1/255, 1/255, 1/255))"
)
# Specs can only contain literals.
for fraction in ("123/255", "117/255", "104/255", "1/255"):
    SQUEEZENET = SQUEEZENET.replace(fraction, repr(eval(fraction)))
IMAGES = 'imagenet(preprocessing="none")'

pytestmark = [needs("imagenet"), needs("weights/squeezenet1_1_imagenet.safetensors")]


def right(samples):
    images = load_dataset(IMAGES, samples=samples, data_dir=str(REAL))
    defense = load_defense(SQUEEZENET, dataset=IMAGES, checkpoint=WEIGHTS)
    with torch.no_grad():
        found = torch.cat([defense(x).argmax(1) for x in images.x.split(50)])
    return int((found == images.y).sum())


@pytest.mark.slow
def test_squeezenet_classifies_724_of_1000_images_correctly():
    # According to the authors of the image set.
    assert right(1000) == 724


@pytest.mark.slow
def test_a_run_records_its_preprocessing(tmp_path, capsys):
    arguments = ["--data-dir", str(REAL), "--checkpoint", str(WEIGHTS), "--results", str(tmp_path)]
    arguments += ["--dataset", IMAGES, "--threat", "Linf:1/255", "--samples", "12", "--attack", "fgsm"]
    with pytest.raises(SystemExit) as end:
        main(["run", "--defense", SQUEEZENET, *arguments, "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    (record,) = json.loads(out)["records"]
    assert record["dataset"]["name"] == IMAGES
    assert record["clean_accuracy"]["value"] == right(12) / 12
    assert record["robust_accuracy"]["value"] < record["clean_accuracy"]["value"]


def test_the_protocol_names_its_preprocessing():
    assert str(choose_protocol("imagenet-linf", None, None, None).dataset) == (
        'imagenet(preprocessing="BicubicRes256Crop224")'
    )
