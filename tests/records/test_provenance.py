"""Commit and dirty flag follow what decides a result, and a wheel has neither."""

import subprocess

import pytest

from robench.records import provenance
from robench.records.provenance import device_name, git_state, installed_version, platform_facts


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "robench").mkdir(parents=True)
    (root / "robench" / "a.py").write_text("1")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    return root


def test_a_clean_checkout_has_its_commit(checkout):
    state = git_state(checkout)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False


@pytest.mark.parametrize(
    ("file", "dirty"), [("robench/a.py", True), ("robench/new.py", True), ("results.txt", False)]
)
def test_what_decides_a_result_makes_it_dirty(checkout, file, dirty):
    (checkout / file).write_text("2")
    assert git_state(checkout)["dirty"] is dirty


def test_a_wheel_inside_another_repository_has_no_commit(checkout):
    inside = checkout / "env" / "site-packages"
    inside.mkdir(parents=True)
    assert git_state(inside) is None
    assert git_state(checkout.parent) is None


def test_versions_come_without_importing():
    assert installed_version("torch") == platform_facts()["torch"]
    assert installed_version("no-such-package-here") is None


def test_versions_are_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(provenance, "version", lambda package: read.append(package) or "1")
    assert installed_version("a-package-of-this-test") == installed_version("a-package-of-this-test") == "1"
    assert read == ["a-package-of-this-test"]


def test_a_cpu_has_a_name():
    assert device_name("cpu").startswith("cpu: ")
    assert device_name("cpu").endswith("threads")
