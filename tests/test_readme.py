"""The Python script and the commands of the README run unchanged."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision

from robench.cli.main import cli
from robench.data import Images
from tests.documents import run

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
OWN = TEXT[TEXT.index("## Your own model") : TEXT.index("## What do you want to do?")]


@pytest.fixture
def cifar10(monkeypatch):
    """Eight random images in the place of CIFAR-10, so that nothing is downloaded."""
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = Images("cifar10", "test", x, torch.arange(8), torch.arange(8), tuple("abcdefghij"))
    from robench.core import registry

    monkeypatch.setitem(registry.datasets._builders, "cifar10", lambda split="test", data_dir=None: images)


def test_the_script_runs_and_its_record_is_verified(cifar10, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", OWN, re.DOTALL)
    assert code == (ROOT / "examples" / "cifar10.py").read_text()
    assert len(code.strip().splitlines()) <= 22
    quick = code.replace('"autoattack"', '"pgd(steps=1)"').replace("samples=1000", "samples=8")
    (tmp_path / "cifar10.py").write_text(quick)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    run("python cifar10.py", tmp_path)
    assert capsys.readouterr().out.startswith("pgd(steps=1), Linf:8/255, 8 images")
    (command,) = re.findall(r"^    (robench verify .*)$", OWN, re.MULTILINE)
    run(command, tmp_path)
    assert capsys.readouterr().out.startswith("VERIFIED")
    (command,) = re.findall(r"^    (robench run --defense python:.*)$", OWN, re.MULTILINE)
    shorter = {
        "--attack autoattack": "--attack fgsm",
        "--protocol cifar10-linf": "--dataset cifar10 --samples 8",
    }
    for old, new in shorter.items():
        assert old in command
        command = command.replace(old, new)
    run(f"{command} --threat Linf:8/255", tmp_path)
    assert "python:cifar10.build" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", re.findall(r"^    (robench .*)$|`(robench [a-z]+[^`]*)`", TEXT, re.MULTILINE)
)
def test_every_command_has_the_options_that_are_named(command):
    words = shlex.split(next(filter(None, command)))
    known = cli.get_command(None, words[1])  # type: ignore[arg-type]
    assert known is not None, words
    options = {name for parameter in known.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options | {"--trust"}


def test_the_first_two_shell_blocks_are_the_two_commands():
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[:2]
    assert blocks[0].strip() == "pip install . && robench run --defense mimir --attack autoattack"
    assert "pytest" in blocks[1]


def test_it_is_short_and_its_links_lead_somewhere():
    assert TEXT.count("\n") < 150
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)


def test_the_examples_are_listed():
    listed = set(re.findall(r"\]\(([^)]+)\)", (ROOT / "examples" / "README.md").read_text()))
    assert listed == {path.name for path in (ROOT / "examples").iterdir() if path.name != "README.md"} - {
        "__pycache__"
    }
