"""A record answers for a defense only while the defense answers as it did: names and weights outlive edited code."""

import json
import os
import sys

import pytest
import torch
from torch import nn

import robench
from robench.core import registry
from robench.core.errors import ResourceError
from robench.defenses import Defense
from robench.evaluation import record_jobs

CODE = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x):
        return self.layer(x.flatten(1) * SCALE)

def make():
    return Linear()
"""


class Once(Defense):
    """A linear defense, perhaps with noise of its own."""

    scale = 1.0

    def __init__(self, noise: float = 0.0):
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)), num_classes=10, image_size=16
        )
        self.noise = noise
        self.stochastic = noise > 0

    def forward(self, x):
        x = x * type(self).scale
        if self.noise:
            x = x + self.noise * robench.core.rng.normal_like(x)
        return super().forward(x)


def a_run(tmp_path, defense, attack="pgd(steps=2)", **options):
    notes = []
    record = robench.run(
        defense, attack, dataset="digits", threat="Linf:0.01", samples=20, results=tmp_path / "results",
        note=notes.append, **options,
    )  # fmt: skip
    return record, " ".join(notes)


def superseded(tmp_path):
    return list((tmp_path / "results").rglob("superseded/*/record.json"))


def test_edited_code_is_run_again_and_the_old_record_is_kept(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_defense.py"

    def wrote(scale):
        file.write_text(CODE.replace("SCALE", scale))
        # Two edits within a second look alike to Python's cache.
        sys.modules.pop("edited_defense", None)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return a_run(tmp_path, "python:edited_defense.make(image_size=16)")

    first, _ = wrote("1.0")
    _, notes = wrote("(0.5 + 0.5)")
    assert "using the saved record in" in notes and not superseded(tmp_path)
    second, notes = wrote("0.3")
    assert "using the saved record in" not in notes
    assert "of 20 clean margins have changed" in notes and "it was moved to" in notes
    assert first.key == second.key and first.files != second.files
    assert len(superseded(tmp_path)) == 1
    _, notes = wrote("0.3")
    assert "using the saved record in" in notes


@pytest.mark.parametrize(
    ("text", "noted"), [("3 of 4 rows start with a zero gradient", True), ("one class", False)]
)
def test_only_the_logits_are_compared_and_a_record_with_warnings_of_gradients_says_so(tmp_path, text, noted):
    record, _ = a_run(tmp_path, "standard-digits")
    raw = json.loads((record.folder / "record.json").read_text())
    raw["health"] = [{"code": "of-a-test", "text": text}]
    (record.folder / "record.json").write_text(json.dumps(raw))
    _, notes = a_run(tmp_path, "standard-digits")
    assert "using the saved record in" in notes
    assert ("its warnings concern gradients: use --fresh if they changed" in notes) == noted


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_builder_whose_code_changes_is_run_again(tmp_path, monkeypatch, noise):
    monkeypatch.setitem(registry.defenses._builders, "once", Once)
    monkeypatch.setitem(registry.defenses._holders, "once", "a package")
    name = f"once(noise={noise})"
    a_run(tmp_path, name)
    _, notes = a_run(tmp_path, name)
    assert "using the saved record in" in notes
    monkeypatch.setattr(Once, "scale", 0.7)
    _, notes = a_run(tmp_path, name)
    assert "clean margins have changed" in notes and len(superseded(tmp_path)) == 1


def test_a_record_in_a_folder_that_cannot_be_written_is_returned(tmp_path, monkeypatch):
    first, _ = a_run(tmp_path, "standard-digits")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)

    def refused(*_, **__):
        raise ResourceError("cannot be written")

    monkeypatch.setattr(record_jobs, "claim", refused)
    again, notes = a_run(tmp_path, "standard-digits")
    assert "using the saved record in" in notes and again.key == first.key
    with pytest.raises(ResourceError, match="cannot be written"):
        a_run(tmp_path, "standard-digits", fresh=True)
