"""Names and their holders; a real package of a third party, built and installed for the test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robench.core.errors import UsageError
from robench.core.registry import Registry

OUTSIDER = Path(__file__).parent / "outsider"


def one():
    return 1


def two():
    return 2


def test_a_taken_name_is_refused_naming_its_holder():
    registry = Registry("defense")
    registry.register("wall")(one)
    with pytest.raises(UsageError, match=r'defense "wall" is taken by .*one: .*two needs another name'):
        registry.register("wall")(two)
    assert registry.get("wall")() == 1


def test_an_unknown_name_is_answered_with_the_nearest():
    registry = Registry("attack")
    registry.register("square")(one)
    registry.register("fab")(two)
    with pytest.raises(UsageError) as error:
        registry.get("sqare")
    assert str(error.value) == 'unknown attack "sqare": did you mean square? robench list attacks shows all 2'


@pytest.fixture(scope="module")
def outsider(tmp_path_factory):
    """A folder with the outsider's package installed by pip, as a third party would have it."""
    place = tmp_path_factory.mktemp("outsider")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(place),
        str(OUTSIDER),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return place


def robench(place, *arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "robench", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
    )


def test_an_installed_package_adds_a_defense_an_attack_and_a_data_set(outsider, tmp_path):
    listed = robench(outsider, "list", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    for kind, name in (("defenses", "constant-shift"), ("attacks", "noise"), ("datasets", "two-tones")):
        assert name in [entry["name"] for entry in found[kind]]
    command = "run --defense constant-shift(threshold=0.4) --attack noise(steps=3)+pgd(loss='margin') "
    command += "--dataset two-tones --threat Linf:0.15 --samples 20 --json"
    ran = robench(outsider, *command.split(), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (record,) = json.loads(ran.stdout)["records"]
    assert record["clean_accuracy"]["value"] == 1
    # Dark images lie 0.1 from the threshold, bright ones 0.3: an attack within 0.15 turns half of them.
    assert record["robust_accuracy"]["value"] == 0.5
    assert record["suite"]["attacks"] == ["noise(steps=3)", 'pgd(loss="margin")']


def test_two_packages_with_one_name_are_refused(outsider, tmp_path):
    rival = tmp_path / "rival"
    info = rival / "rival-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robench.attacks]\nsquare = rival:Square\n")
    ran = robench(f"{rival}{os.pathsep}{outsider}", "list", "attacks", cwd=tmp_path)
    assert ran.returncode == 2
    assert "is taken by robench.attacks.square.Square: package rival needs another name" in ran.stderr
    assert "Traceback" not in ran.stderr
