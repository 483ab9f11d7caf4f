"""The examples of CONTRIBUTING run unchanged."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

import robench
import robench.data
import robench.defenses  # registers everything before the fixture `registered`
from robench import catalog
from robench.core import registry
from robench.evaluation.attack import attack
from tests.certification.cases import labelled, linear, write_images

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- test: (\w+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def registered(monkeypatch):
    """Registries that are restored after the examples."""
    # A module that is first imported by an example would be missing from the restored registry.
    for kind in (registry.attacks, registry.datasets, registry.certifiers, registry.defenses):
        for name in kind:
            if kind.holder(name).startswith("robench."):
                kind.get(name)
    for kind in (
        registry.defenses,
        registry.purifiers,
        registry.attacks,
        registry.datasets,
        registry.transformations,
        registry.certifiers,
    ):
        monkeypatch.setattr(kind, "_builders", dict(kind._builders))
        monkeypatch.setattr(kind, "_holders", dict(kind._holders))


def run(name):
    exec(compile(EXAMPLES[name], name, "exec"), {"__name__": name})


def test_a_card_is_one_file(tmp_path):
    path = tmp_path / "my-vit-digits.toml"
    path.write_text(EXAMPLES["card"])
    assert catalog.read(catalog.Card, path).family == "my-vit"
    assert "builder" in tomllib.loads(EXAMPLES["card"])


def test_a_defense_an_attack_and_a_data_set_work_together(registered):
    for name in ("defense", "attack", "dataset"):
        run(name)
    images = registry.datasets.get("stripes")()
    model = registry.defenses.get("my-linear")(num_classes=2)
    again = registry.defenses.get("my-linear")(num_classes=2)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    torch.nn.init.zeros_(model.classifier[1].bias)
    with torch.no_grad():
        model.classifier[1].weight.copy_((images.x[:2] - 0.5).flatten(1))
    assert (model(images.x).argmax(1) == images.y).all()
    result = attack("corners(steps=5)", model, images.x, images.y, threat="Linf:0.1")
    assert result.robust.all() and (result.forward == 5).all()


def test_a_purifier_stands_before_a_shipped_classifier(registered, tmp_path):
    run("purifier")
    record = robench.run(
        "my-grey(levels=4)+pgd-at-digits", "pgd(steps=2)", samples=10, threat="Linf:0.1", results=tmp_path
    )
    assert record.extra["stochastic"]["draws"] == 10 and record.job.defense.classifier == "pgd-at-digits"


@pytest.mark.parametrize(
    "name", ["card", "defense", "purifier", "attack", "dataset", "transformation", "certifier"]
)
def test_examples_are_short(name):
    # The twenty lines of an attack are those of its class, without imports and blank lines.
    lines = [
        line
        for line in EXAMPLES[name].splitlines()
        if line.strip() and not line.startswith(("from", "import"))
    ]
    assert len(lines) <= 21


def test_a_transformation_is_a_threat(registered):
    run("transformation")
    x = torch.full((4, 3, 8, 8), 0.5)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]) * torch.ones(2, 192) / 192)
        model[1].bias.copy_(torch.tensor([-0.42, 0.42]))  # bright from 0.42 on
    held = {
        radius: attack("pgd(steps=5)", model, x, torch.zeros(4).long(), threat=f"brightness:{radius}")
        for radius in (0.07, 0.09)
    }
    assert held[0.07].robust.all() and not held[0.09].robust.any()


def test_a_certifier_bounds_a_classifier_from_below(registered, tmp_path, monkeypatch):
    run("certifier")
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "own.npz")
    result = robench.certify(
        "python:tests.certification.cases.linear",
        "lipschitz(constant=50.0)",
        dataset="npz:own.npz(classes=2)",
        threat="L2:0.1",
        samples=12,
        attack="pgd(steps=20)",
    )
    exact = int((linear().distances(*labelled(linear(), 12), "L2") > 0.1).sum())
    assert result.certified.correct <= exact == result.attacked.accuracy.correct
    assert result.certified.correct > 0 and result.alpha == 0 and not result.of_vote
