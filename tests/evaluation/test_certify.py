"""`robench certify` from the command line: bounds, files, verification, interruptions and mistakes."""

import dataclasses
import hashlib
import json
import math
import shutil
import signal
import time

import numpy as np
import pytest

from robench.cli import main
from robench.core.errors import ResourceError
from robench.records import certification as files
from robench.records.collection import collect
from tests.certification.cases import write_images
from tests.processes import Command

DEFENSE = "smoothed(sigma=0.25)+python:tests.certification.cases.linear"
DATA = ("--dataset", "npz:own.npz(classes=2)", "--samples", "12")
SHORT = (
    "--method",
    "smoothing(selection=20)",
    "--draws",
    "200",
    "--attack",
    "apgd(steps=3)",
    "--workers",
    "1",
)
WHOLE = ("certify", "--defense", DEFENSE, *DATA, "--threat", "L2:0.25", *SHORT)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with images and the result of WHOLE, which tests copy."""
    place = tmp_path_factory.mktemp("certified")
    write_images(place / "own.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        with pytest.raises(SystemExit) as end:
            main(list(WHOLE))
    assert end.value.code == 0
    return place


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)

    def call(*arguments: str):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return end.value.code, out, err

    return call


def result_of(tmp_path) -> files.Certification:
    (file,) = (tmp_path / "results").rglob(files.FILE)
    return files.read(file.parent)


def test_both_bounds_enclose_the_exact_accuracy(cli, tmp_path):
    from tests.certification.cases import labelled, linear

    code, out, err = cli(*WHOLE)
    assert code == 0, err
    result, model = result_of(tmp_path), linear()
    exact = int((model.distances(*labelled(model, 12), "L2") > 0.25).sum())
    assert 0 < exact < 12
    assert result.attacked is not None
    assert result.certified.correct <= exact <= result.attacked.accuracy.correct
    assert result.attacked.accuracy.correct - result.certified.correct <= 4
    assert f"at least {100 * result.certified.value:.2f} %" in out and "at most" in out
    rows = files.read_rows(result.folder)
    # No attack is spent on what is proven, and nothing is both proven and fooled.
    assert result.attacked.attacked <= 12 - result.certified.correct
    assert not (rows.holds(0.25) & (rows.fooled_by != "")).any()
    assert [share.correct for _, share in result.curve] == sorted(
        (share.correct for _, share in result.curve), reverse=True
    )
    assert (tmp_path / "results" / "curves").glob("*.png")


def test_a_saved_result_is_reused_verified_and_shown(cli, tmp_path):
    result = result_of(tmp_path)
    before = (result.folder / files.FILE).read_bytes()
    code, out, _ = cli(*WHOLE, "--json")
    assert code == 0 and (result.folder / files.FILE).read_bytes() == before
    (shown,) = json.loads(out)["certifications"]
    assert shown["certified"]["correct"] == result.certified.correct
    code, out, err = cli("verify", str(result.folder), "--trust", "--replay", "12")
    assert code == 0, err
    assert f"VERIFIED: at least {result.certified.correct} and at most" in out
    assert "on trust: attacked.suite and attacked.draws, the protocol's name, times" in out
    code, out, _ = cli("board", "--trust")
    assert code == 0 and "certified from below" in out and ">= " in out and "<= " in out
    code, out, _ = cli("board", "--trust", "--format", "json")
    assert json.loads(out)["certified"][0]["defense"] == result.defense.name
    assert cli("board", "--trust", "--format", "html", "--output", "page")[0] == 0
    assert "certified from below" in (tmp_path / "page" / "index.html").read_text()


def test_the_same_seed_gives_the_same_rows_after_a_kill(cli, tmp_path):
    result = result_of(tmp_path)
    rows, key = (result.folder / files.ROWS).read_bytes(), result.key
    for killed_after in (0.0, 0.2):
        place = tmp_path / f"again-{killed_after}"
        command = Command(*WHOLE, "--results", str(place), cwd=tmp_path, saves=True)
        deadline = time.monotonic() + 120
        while not list(place.rglob("state")) and command.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(killed_after)
        command.send_signal(signal.SIGKILL)
        command.wait()
        assert cli(*WHOLE, "--results", str(place))[0] == 0
        (file,) = place.rglob(files.FILE)
        assert (file.parent / files.ROWS).read_bytes() == rows and files.read(file.parent).key == key
        assert not list(place.rglob("*.partial"))


def test_the_number_of_workers_changes_no_byte(cli, tmp_path):
    result = result_of(tmp_path)
    place = tmp_path / "in-two"
    code, _, err = cli(*WHOLE[:-1], "2", "--results", str(place))
    assert code == 0, err
    (file,) = place.rglob(files.FILE)
    again = files.read(file.parent)
    assert again.files == result.files and again.key == result.key and again.curve == result.curve


def test_a_network_of_relus_is_proven_and_verified(cli, tmp_path):
    network = "python:tests.certification.cases.relus"
    for method in ("crown", "ibp"):
        code, out, err = cli(
            "certify", "--method", method, "--defense", network, *DATA, "--threat", "Linf:0.01"
        )
        assert code == 0, err
        assert "at Linf:0.01: at least" in out and f"certified by {method}" in out
        folder = next(
            file.parent for file in (tmp_path / "results").rglob(files.FILE) if file.parent.name == method
        )
        result = files.read(folder)
        # Little lies between the bounds: the network is linear on [0, 1].
        assert result.attacked and 0 < result.certified.correct <= result.attacked.accuracy.correct < 12
        assert result.attacked.accuracy.correct <= result.certified.correct + 1
        assert (result.norm, result.alpha, len(result.curve)) == ("Linf", 0, 1)
        code, out, err = cli("verify", str(folder), "--trust", "--replay", "12")
        assert code == 0 and f"VERIFIED: at least {result.certified.correct}" in out, out + err


def test_a_network_without_a_known_bound_ends_in_one_line(cli):
    code, out, err = cli("certify", "--method", "crown", "--defense", "mimir-digits", "--samples", "2")
    assert (code, out, err) == (2, "", "robench: mimir-digits: no bound known for LayerNorm\n")


def test_another_setting_keeps_the_old_result(cli, tmp_path):
    result = result_of(tmp_path)
    assert cli(*WHOLE[:-4], "--attack", "none")[0] == 0
    kept = list((result.folder / "superseded").rglob(files.FILE))
    assert len(kept) == 1 and files.read(kept[0].parent).key == result.key
    assert files.read(result.folder).attacked is None
    found = collect([tmp_path / "results"])
    assert len(found.certifications) == 1 and not found.left_out


def test_a_command_with_bytes_that_are_no_text_is_written_and_read(cli, tmp_path):
    result = result_of(tmp_path)
    command = b"robench certify --results \xff\xfe".decode(errors="surrogateescape")
    new = files.write(
        tmp_path / "new", dataclasses.replace(result, command=command), files.read_rows(result.folder), {}
    )
    assert files.read(new.folder).command == command


def test_a_record_beside_a_certification_is_verified_too(cli, tmp_path):
    assert cli(*WHOLE[:-4], "--attack", "none")[0] == 0
    (folder,) = (tmp_path / "results").glob("*/*/smooth*")
    plain = "python:tests.certification.cases.linear"
    run = ("run", "--defense", plain, *DATA, "--threat", "L2:0.25", "--attack", "fgsm", "--workers", "1")
    assert cli(*run, "--results", "attacked")[0] == 0
    (file,) = (tmp_path / "attacked").rglob("record.json")
    shutil.copytree(file.parent, folder, dirs_exist_ok=True)
    code, out, err = cli("verify", str(folder), "--trust")
    assert code == 0 and out.count("VERIFIED") == 2, err
    content = json.loads((folder / "record.json").read_text())
    content["robust_accuracy"].update(correct=12, value=1.0)
    (folder / "record.json").write_text(json.dumps(content))
    code, out, err = cli("verify", str(folder), "--trust")
    assert code == 1 and out.count("VERIFIED") == 1 and "record.json failed: robust_accuracy" in err
    (folder / "record.json").unlink()
    (folder / "record.json").symlink_to("nowhere")
    assert cli("verify", str(folder), "--trust")[0] != 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda content: content["certified"].update(correct=12, value=1.0), "certified"),
        (lambda content: content["attacked"]["accuracy"].update(correct=0), "attacked.accuracy.correct"),
        (lambda content: content["dataset"].update(digest="0" * 64), "dataset.digest"),
        (lambda content: content["files"].update({files.ROWS: "0" * 64}), f"files.{files.ROWS}"),
        (lambda content: content.update(average_radius=9.0), "average_radius"),
        (lambda content: content.update(alpha=0.0001), "alpha"),
        (lambda content: content["attacked"]["accuracy"].update(value=0.999), "attacked.accuracy.value"),
        (lambda c: c["attacked"]["accuracy"].update(interval=[0.9, 1.0]), "attacked.accuracy.interval"),
        (lambda content: content["attacked"].update(attacked=12), "attacked.attacked"),
        (lambda content: content.update(attacked=None), "bounds.fooled_by"),
        (lambda content: content["facts"].update(sigma=9.0), "facts"),
        (lambda content: content.update(of_vote=False), "of_vote"),
        (lambda content: content.update(norm="Linf"), "norm"),
        (lambda content: content.update(curve=[]), "curve"),
        (lambda content: content.update(curve=content["curve"][:1]), "curve"),
        (lambda content: content["defense"].update(family="mimir"), "defense.family"),
        (lambda content: content["defense"].update(parameters=1), "defense.parameters"),
    ],
)
def test_a_false_figure_fails_verification(cli, tmp_path, change, field):
    folder = result_of(tmp_path).folder
    content = json.loads((folder / files.FILE).read_text())
    change(content)
    (folder / files.FILE).write_text(json.dumps(content))
    code, out, err = cli("verify", str(folder), "--trust")
    assert code == 1 and "FAILED" in out and field in err.split("failed: ")[1].rstrip().split(", ")


def first_radius(value):
    return lambda rows: {"radius": np.array([value, *rows.radius[1:]])}


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: {"radius": rows.radius + 5, "prediction": rows.label.copy()},
        # Rounding moves votes between devices, but the radius follows from them.
        lambda rows: {"radius": rows.radius + 5, "votes": rows.votes + np.where(rows.votes < 200, 1, -1)},
        lambda rows: {"votes": rows.votes + 10**9},
        *map(first_radius, (math.inf, math.nan, -1.0)),
    ],
)
def test_false_rows_fail_verification(cli, tmp_path, change):
    result = result_of(tmp_path)
    rows = files.read_rows(result.folder)
    encoded = dataclasses.replace(rows, **change(rows)).encode()
    (result.folder / files.ROWS).write_bytes(encoded)
    content = json.loads((result.folder / files.FILE).read_text())
    content["files"][files.ROWS] = hashlib.sha256(encoded).hexdigest()
    (result.folder / files.FILE).write_text(json.dumps(content))
    code, _, err = cli("verify", str(result.folder), "--trust", "--replay", "12")
    assert code == 1 and "bounds.radius" in err


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("certify", "--defense", "pgd-at-digits"), 2, "smoothed(sigma=0.25)+pgd-at-digits"),
        (("certify", "--defense", DEFENSE, *DATA, "--method", "smooth"), 2, "smoothing"),
        (("certify", "--defense", DEFENSE, *DATA, "--threat", "Linf:0.1"), 2, "certifies L2 radii"),
        (("certify", "--defense", DEFENSE, *DATA, "--draws", "5"), 2, "cannot certify anything"),
        (
            ("certify", "--defense", DEFENSE, *DATA, "--draws", "5", "--method", "smoothing(draws=9)"),
            2,
            "twice",
        ),
        (("certify", "--defense", "smoothed(sigma=0)+pgd-at-digits"), 2, "sigma"),
    ],
)
def test_mistakes_are_one_line(cli, arguments, code, reason):
    actual, _, err = cli(*arguments)
    assert actual == code and reason in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', '{"schema": 2}'])
def test_a_damaged_file_is_named_and_spoils_no_board(cli, tmp_path, content):
    shutil.rmtree(tmp_path / "results")
    folder = tmp_path / "results" / "x" / "y" / "smoothing"
    folder.mkdir(parents=True)
    (folder / files.FILE).write_text(content)
    with pytest.raises(ResourceError):
        files.read(folder)
    found = collect([tmp_path / "results"])
    assert not found.certifications and len(found.left_out) == 1
    code, out, err = cli("board")
    assert code == 1 and files.FILE in out and "1 of 1 left out" in err
