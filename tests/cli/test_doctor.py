"""What the doctor finds, and the mend it names for what is missing."""

import dataclasses
import io
import re
import shutil
import tomllib
from collections import namedtuple
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console

from robench.catalog import Card
from robench.cli import _examine as doctor
from robench.cli._examine import MISSING, OK, WARN, examine, report
from robench.data import cifar10
from robench.defenses._checkpoints import sha256_of

Usage = namedtuple("Usage", "total used free")


def named(findings):
    return {item.name: item for item in findings}


def test_a_healthy_machine(tmp_path):
    found = named(examine(tmp_path / "results", tmp_path))
    for name in ("python", "robench", "torch", "torchvision", "timm", "cpu", "digits", "results"):
        assert found[name].status == OK, found[name]
    assert ">=2.11" in found["torch"].detail
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("system", "status", "text"),
    [
        ("Linux", OK, "is tested"),
        ("Darwin", OK, "macOS.*not tested"),
        ("Windows", OK, "not tested"),
        ("Plan9", WARN, "never"),
    ],
)
def test_the_systems_that_are_supported(monkeypatch, system, status, text):
    monkeypatch.setattr("platform.system", lambda: system)
    (found,) = doctor._system()
    assert found.status == status and re.search(text, found.detail)


def test_missing_cifar10_is_named_with_the_way_to_get_it(tmp_path):
    item = named(examine(tmp_path, tmp_path))["cifar10"]
    assert item.status == WARN
    assert str(tmp_path) in item.detail
    assert "--data-dir" in item.mend


def test_cifar10_is_found_whole_and_a_lost_file_is_named(tmp_path):
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for name in doctor._CIFAR_FILES:
        (folder / name).touch()
    assert [item.status for item in doctor._cifar10(tmp_path)] == [OK]
    (folder / "data_batch_3").unlink()
    assert ["lacks data_batch_3" in item.detail for item in doctor._cifar10(tmp_path)] == [True]


@pytest.mark.parametrize(
    ("found", "status"), [("2.11", OK), ("2.15.0+cu132", OK), ("2.10.1", MISSING), (None, MISSING)]
)
def test_versions_are_held_against_the_declared_bounds(found, status):
    assert doctor._bound("torch", found, ">=2.11", "mend").status == status


@pytest.fixture
def card(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    digest = "9e1b91dd97eb93b9dfb1f7b01f3b6e1b4bc53b3e5c4cd2d8b3c3ab3e0e2f3d0a"
    return Card(
        "mine", "vit", "digits", checkpoint="weights.safetensors", sha256=digest, path=tmp_path / "mine.toml"
    )


def test_checkpoints_are_held_against_their_cards(card, tmp_path):
    tampered = doctor._checkpoint(card)
    assert tampered.status == MISSING
    assert "has sha256" in tampered.detail
    honest = dataclasses.replace(card, sha256=sha256_of(tmp_path / "weights.safetensors"))
    assert doctor._checkpoint(honest).status == OK
    (tmp_path / "weights.safetensors").unlink()
    lost = doctor._checkpoint(dataclasses.replace(honest, recipe={"epochs": 1}))
    assert lost.status == MISSING
    assert "robench train mine" in lost.mend
    assert doctor._checkpoint(dataclasses.replace(card, checkpoint="hf://a/b/c")).status == OK


def test_a_results_folder_under_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (item,) = doctor._disk(tmp_path / "file" / "results")
    assert item.status == MISSING
    assert "--results" in item.mend


def test_a_nearly_full_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 * 2**30, 10 * 2**30, 2**20))
    _, item = doctor._disk(tmp_path)
    assert (item.name, item.status) == ("free disk", WARN)
    assert "--results" in item.mend


def test_the_report_fits_80_columns_and_counts_what_needs_a_look(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    console.print(
        report([doctor.Finding("a[b]", MISSING, "x" * 200, "mend it"), doctor.Finding("c", OK, "fine")])
    )
    text = console.file.getvalue()
    assert "a[b]" in text and "mend it" in text and "1 of 2 need attention" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_last_line_agrees_with_the_lines_above():
    def last(*findings):
        console = Console(file=io.StringIO(), width=80)
        console.print(report(list(findings)))
        return console.file.getvalue().rstrip().splitlines()[-1]

    there = doctor.Finding("torch", OK, "2.11")
    absent = doctor.Finding("wandb", OK, "not installed; optional, for logs", "pip install wandb")
    assert last(there) == "everything required is installed"
    assert last(there, absent) == "everything required is installed; 1 optional package is not installed"
    assert last(there, absent, absent).endswith("; 2 optional packages are not installed")


def test_a_missing_dependency_is_named_with_what_needs_it(monkeypatch):
    version = doctor.installed_version
    monkeypatch.setattr(
        doctor, "installed_version", lambda name: None if name in ("diffusers", "onnx") else version(name)
    )
    monkeypatch.setattr(doctor, "requires", lambda name: ["diffusers>=0.42.1", 'onnx>=1.16; extra == "onnx"'])
    found = named(doctor._software())
    assert found["diffusers"].status == MISSING and "for diffusion purifiers" in found["diffusers"].detail
    assert found["diffusers"].mend == 'pip install "diffusers>=0.42.1"'
    assert found["onnx"].status == OK and "optional, for defenses from ONNX" in found["onnx"].detail


@pytest.mark.parametrize(
    ("package", "module", "error", "mend"),
    [
        (
            "torchvision",
            "torchvision",
            RuntimeError("operator torchvision::nms does not exist"),
            "same index",
        ),
        ("imagecorruptions-imaug", "imagecorruptions", ImportError("libxcb.so.1: cannot open"), "libgl1"),
        ("opencv-python", "cv2", ImportError("libGL.so.1: cannot open shared object file\nmore"), "libgl1"),
        ("numba", "numba", SystemError("initialization failed"), 'pip install --force-reinstall "numba'),
    ],
)
def test_a_dependency_that_cannot_be_imported_is_named(monkeypatch, tmp_path, package, module, error, mend):
    whole = doctor.importlib.import_module

    def broken(name, *given):
        if name == module:
            raise error
        return whole(name, *given)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    item = named(examine(tmp_path, tmp_path))[package]
    assert item.status == MISSING and mend in item.mend
    assert f"({type(error).__name__}: {' '.join(str(error).split())})" in item.detail
    assert named(examine(tmp_path, quick=True))[package].status == OK


def test_a_probe_that_fails_is_a_line_and_the_others_go_on(monkeypatch, tmp_path):
    def broken(*_):
        raise OSError("libcudart.so: cannot open")

    monkeypatch.setattr(doctor, "_cifar10", broken)
    found = named(examine(tmp_path, tmp_path))
    assert found["cifar10"].status == MISSING and "libcudart" in found["cifar10"].detail
    assert found["free disk"].status == OK


def test_modules_bear_the_names_that_doctor_imports():
    of_package: dict[str, set[str]] = {}
    for module, packages in packages_distributions().items():
        for package in packages:
            of_package.setdefault(canonicalize_name(package), set()).add(module)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        name = Requirement(text).name
        assert doctor._module(name) in of_package[canonicalize_name(name)]


def test_the_extras_that_doctor_names_exist():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for package, (extra, _) in doctor._EXTRAS.items():
        assert any(text.startswith(package) for text in project["optional-dependencies"][extra])
    dependencies = {Requirement(text).name for text in project["dependencies"]}
    assert set(doctor._PURPOSES) <= dependencies
