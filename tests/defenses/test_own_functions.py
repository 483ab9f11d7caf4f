"""`python:module.function` takes its image size from the dataset, in every command that loads it."""

import json
import sys

import pytest

from robench.cli import main

MODULE = """
import torch
from torch import nn


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10)).eval()


def build():
    return network()


network_itself = network()


def sized(image_size):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 10)).eval()


def preset(image_size=7):
    return sized(image_size)
"""
DATASET = ("--dataset", "digits", "--threat", "Linf:0.05", "--samples", "8")


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Call the command line in a folder that contains the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_sizes", raising=False)
    (tmp_path / "own_sizes.py").write_text(MODULE)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return end.value.code, out, err

    return call


@pytest.mark.parametrize("function", ["build", "sized", "preset", "network_itself"])
def test_the_image_size_is_that_of_the_data_set(cli, tmp_path, function):
    name = f"python:own_sizes.{function}"
    code, _, err = cli("run", "--defense", name, "--attack", "fgsm", *DATASET)
    assert code == 0, err
    (record,) = tmp_path.glob("results/**/record.json")
    assert json.loads(record.read_text())["defense"]["name"] == name
    for again in (
        ("verify", str(record.parent), "--defense", name),
        ("check", str(record.parent), "--defense", name),
    ):
        code, out, err = cli(*again)
        assert code == 0, out + err
    # The network has no image right, so the baseline made no passes, and there is no ratio to print.
    assert "the baseline took 0, " in out
    code, _, err = cli(
        "run",
        "--defense",
        name,
        "--attack",
        "fgsm",
        "--knowledge",
        "transfer:python:own_sizes.build",
        *DATASET,
    )
    assert code == 0, err


def test_a_diagnosis_takes_it_from_the_data_set_too(cli):
    code, out, err = cli("diagnose", "--defense", "python:own_sizes.build", *DATASET)
    assert code == 0, err
    assert "python:own_sizes.build" in out


def test_a_size_in_the_name_comes_first(cli):
    code, _, err = cli(
        "run", "--defense", "python:own_sizes.preset(image_size=7)", "--attack", "fgsm", *DATASET
    )
    assert code == 2 and "takes images of 7 px" in err


def test_without_a_data_set_the_size_must_be_named(cli):
    code, _, err = cli("show", "python:own_sizes.build")
    assert code == 2 and "add image_size=" in err
    code, out, err = cli("show", "python:own_sizes.build(image_size=8)")
    assert code == 0 and "(N, 3, 8, 8)" in out, err
