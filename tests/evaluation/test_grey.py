"""Images with one channel, from the command line to every table and picture."""

import json
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from robench.cli import main
from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.defenses import load
from robench.verification.verify import verify

MODULE = """
import torch
from torch import nn

def build(channels=1):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10))
    net.load_state_dict(torch.load("grey.pt", weights_only=True))
    return net

def plain():
    return build()

def coloured():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10))
"""
DEFENSE = "python:own_grey.build(channels=1, image_size=8)"


def digits():
    """scikit-learn's digits as they are: 8 px, one channel, 17 levels of grey."""
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)
    return (numpy.asarray(pixels).reshape(-1, 8, 8) / 16).astype(numpy.float32), numpy.asarray(y)


def train(x, y):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10))
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network, and the digits in an archive and in a folder of pictures."""
    folder = tmp_path_factory.mktemp("grey")
    x, y = digits()
    torch.save(
        train(torch.from_numpy(x[:600])[:, None], torch.from_numpy(y[:600])).state_dict(), folder / "grey.pt"
    )
    numpy.savez(folder / "mnist.npz", x=x[600:700], y=y[600:700])
    for i in range(600, 640):
        path = folder / "pictures" / str(y[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[i] * 255).round().astype(numpy.uint8)).save(path)
    (folder / "own_grey.py").write_text(MODULE)
    return folder


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Runs a command in that folder and gives what it prints."""
    monkeypatch.chdir(place)
    monkeypatch.delitem(sys.modules, "own_grey", raising=False)

    def call(*words, code=0):
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        out, errors = capsys.readouterr()
        assert caught.value.code == code, errors
        return out if code == 0 else " ".join(errors.split())

    return call


RUN = ("run", "--defense", DEFENSE, "--threat", "Linf:0.1", "--samples", 20)


def test_an_archive_from_run_to_page(run):
    out = run(*RUN, "--dataset", "npz:mnist.npz", "--attack", "pgd(steps=5)+square(queries=20)", "--json")
    (record,) = json.loads(out)["records"]
    assert record["dataset"]["name"] == "npz:mnist.npz(channels=1)"
    assert record["clean_accuracy"]["value"] >= 0.8 > record["robust_accuracy"]["value"] > 0
    folder = next(Path("results").rglob("record.json")).parent
    images = load_dataset("npz:mnist.npz(channels=1)", samples=20)
    assert images.x.shape == (20, 1, 8, 8)
    assert all(finding.held for finding in verify(folder, load(DEFENSE), images))
    assert "robust accuracy is at most" in run("verify", folder, "--defense", DEFENSE, "--trust")
    assert "picture" in run("show", folder, "--picture", "picture.png", "--trust")
    with Image.open("picture.png") as picture:
        # Gray stays grey: no color map is laid over the digits.
        pixels = numpy.asarray(picture.convert("RGB")).astype(int)
        shown = pixels[int(len(pixels) * 0.2) : int(len(pixels) * 0.4), 180:280]
        assert numpy.ptp(shown, axis=-1).max() < 40
    assert "grey" in run("board", "results")
    run("board", "results", "--format", "html", "--output", "page")
    assert "robust" in run("check", folder, "--defense", DEFENSE, "--trust")
    assert "(N, 1, 8, 8)" in run("show", DEFENSE)


@pytest.mark.parametrize("dataset", ["npz:mnist.npz", "npz:mnist.npz(channels=1)", "folder:pictures"])
@pytest.mark.parametrize("defense", [DEFENSE, "python:own_grey.plain(image_size=8)"])
def test_images_follow_the_defense(run, dataset, defense):
    words = ("--samples", 6, "--threat", "L2:0.5", "--attack", "fgsm", "--fresh", "--json")
    out = run("run", "--defense", defense, "--dataset", dataset, *words)
    assert json.loads(out)["records"][0]["dataset"]["name"].endswith("(channels=1)")


def test_a_network_of_colours_gets_colours(run):
    words = (
        "--dataset",
        "npz:mnist.npz",
        "--samples",
        4,
        "--threat",
        "Linf:0.1",
        "--attack",
        "fgsm",
        "--json",
    )
    out = run("run", "--defense", "python:own_grey.coloured(image_size=8)", *words)
    assert json.loads(out)["records"][0]["dataset"]["name"] == "npz:mnist.npz"


@pytest.mark.slow
def test_diagnose_takes_grey_images(run):
    words = ("--dataset", "npz:mnist.npz", "--threat", "Linf:0.1", "--samples", 8)
    assert "own_grey" in run("diagnose", "--defense", DEFENSE, *words)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("digits --attack fgsm --threat Linf:0.1", "takes images of"),
        ("npz:mnist.npz(channels=2) --attack fgsm --threat Linf:0.1", "channels=2: expected 3, or 1"),
        ("npz:mnist.npz --attack imagenet-c", "corruptions need images with 3 channels"),
        ("npz:mnist.npz --attack fgsm --threat recolor:0.1", "needs images with 3 channels"),
    ],
)
def test_what_is_of_colours_alone_is_refused_in_one_line(run, words, line):
    assert line in run("run", "--defense", DEFENSE, "--samples", 4, "--dataset", *words.split(), code=2)


def test_channels_and_sizes_that_do_not_fit(run):
    for defense, line in (
        ("python:own_grey.build(channels=1, image_size=9)", "two images of 9 px and 1 channel"),
        ("python:own_grey.plain(channels=2, image_size=8)", "expected 3, or 1 for grayscale"),
        (
            "maep-digits(size_mode='interpolate')+python:own_grey.plain(image_size=8)",
            "purifies images of 3 channels",
        ),
    ):
        with pytest.raises(UsageError, match=line):
            load(defense)


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 1, 8, 8)])
def test_every_layout_of_grey_arrays(tmp_path, shape):
    x = numpy.random.default_rng(0).integers(0, 256, shape, dtype=numpy.uint8)
    numpy.savez(tmp_path / "a.npz", x=x, y=numpy.arange(5))
    grey = load_dataset(f"npz:{tmp_path}/a.npz(channels=1)").x[:]
    assert grey.shape == (5, 1, 8, 8) and torch.equal(grey.flatten(), torch.from_numpy(x).flatten() / 255)
    assert torch.equal(load_dataset(f"npz:{tmp_path}/a.npz").x[:], grey.expand(-1, 3, -1, -1))


def test_colours_are_not_made_grey_in_silence(tmp_path):
    numpy.savez(tmp_path / "a.npz", x=numpy.zeros((5, 8, 8, 3), numpy.uint8), y=numpy.arange(5))
    with pytest.raises(ResourceError, match="have 3 channels: omit channels=1"):
        load_dataset(f"npz:{tmp_path}/a.npz(channels=1)")
