"""robench diagnose: what was built to be caught is, what is sound is not, and doubts reach the board."""

import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from robench.cli import main
from robench.diagnosis import runs
from robench.records.collection import collect
from robench.reports.board import sections
from tests.engine.caught import CAUGHT, build
from tests.engine.test_backing_off import Narrow
from tests.models import images, small_net
from tests.processes import Command

# What a diagnosis must say at the least; the marks of its runs are the last resort.
EXPECTED = {
    "rounding": {"zero-gradients", "large-radius", "shattered-gradients", "not-converged"},
    "thermometer": {"zero-gradients", "large-radius", "shattered-gradients"},
    "k-WTA": {"zero-gradients", "large-radius", "shattered-gradients"},
    "huge logits": {"zero-gradients", "large-radius", "unconstrained-failure"},
    "a detector's constant": {"zero-gradients", "large-radius", "shattered-gradients"},
    "a gradient that misleads": {"unconstrained-failure", "warnings-of-runs"},
    "noise": {"warnings-of-runs"},
    "NaN where it is hard": {"warnings-of-runs"},
    "a gradient with NaN": {"warnings-of-runs"},
    "honest": set(),
}


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Call the command line in an empty folder, with images that a small network has right."""
    monkeypatch.chdir(tmp_path)

    def call(name, *arguments, threat="Linf:0.02"):
        x = images(16)
        with torch.no_grad():
            y = (small_net() if name in ("noise", "honest") else build(name))(x).nan_to_num(-1).argmax(1)
        np.savez(tmp_path / "own.npz", x=x.numpy(), y=y.numpy())
        said = [
            "diagnose",
            "--defense",
            f'python:tests.engine.caught.build(name="{name}")',
            "--threat",
            threat,
        ]
        with pytest.raises(SystemExit) as end:
            main([*said, "--dataset", "npz:own.npz(classes=10)", "--samples", "16", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return end.value.code, out, err

    return call


@pytest.fixture(scope="module")
def kept():
    """Diagnoses that were made before: exit code, stdout, stderr and a copy of their folder."""
    return {}


@pytest.fixture
def diagnosed(cli, kept, tmp_path, tmp_path_factory):
    """Diagnose a network, once for all tests of this file, in the folder of the test."""

    def call(name):
        if name in kept:
            shutil.copytree(kept[name][-1], tmp_path, dirs_exist_ok=True)
        else:
            copy = tmp_path_factory.mktemp("diagnosed") / "copy"
            kept[name] = (*cli(name), shutil.copytree(tmp_path, copy))
        return kept[name][:-1]

    return call


# A way to catch each: no gradient, a gradient that misleads, warnings of runs, and a sound network.
QUICK = ("rounding", "huge logits", "a gradient that misleads", "NaN where it is hard", "honest")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPECTED]
)
def test_what_was_built_to_be_caught_is_doubted(diagnosed, name, tmp_path):
    code, _, err = diagnosed(name)
    assert code == 0, err
    (file,) = tmp_path.glob("results/*/*/diagnosis/diagnosis.json")
    found = json.loads(file.read_text())
    doubts = {mark["code"] for mark in found["health"]}
    assert doubts >= EXPECTED[name]
    assert bool(doubts) == (name != "honest")
    if name in CAUGHT and "warnings-of-runs" in EXPECTED[name]:
        (mark,) = [mark for mark in found["health"] if mark["code"] == "warnings-of-runs"]
        assert CAUGHT[name][1] in mark["text"]
    # Where no image is right without an attack there is nothing to draw.
    assert bool(found["picture"]) == (name != "NaN where it is hard")
    if found["picture"]:
        assert (file.parent / found["picture"]).read_bytes().startswith(b"\x89PNG")


def test_a_doubt_is_a_mark_on_the_board_and_takes_the_rank(diagnosed, tmp_path, capsys):
    name = "huge logits"
    assert diagnosed(name)[0] == 0
    said = ["--defense", f'python:tests.engine.caught.build(name="{name}")', "--threat", "Linf:0.02"]
    for attack, threat in (("fgsm", "Linf:0.02"), ("square(queries=2)", "Linf:0.01")):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "run",
                    *said[:-1],
                    threat,
                    "--attack",
                    attack,
                    "--dataset",
                    "npz:own.npz(classes=10)",
                    "--samples",
                    "16",
                ]
            )
        assert end.value.code == 0
    capsys.readouterr()
    found = {record.job.threat: record for record in collect([tmp_path / "results"])}
    assert set(found) == {"Linf:0.02", "Linf:0.01"}, "the runs of the diagnosis are no rows"
    # The diagnosis is of one threat.
    assert "large-radius" in [mark.code for mark in found["Linf:0.02"].health]
    assert "large-radius" not in [mark.code for mark in found["Linf:0.01"].health]
    (section,) = [s for s in sections(collect([tmp_path / "results"])) if s.threat == "Linf:0.02"]
    assert section.groups[0][0].rank == "–"
    with pytest.raises(SystemExit):
        main(["board"])
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"large-radius: robench diagnose: \d+ of 16 images survive at Linf:0.5", said)


def test_a_damaged_diagnosis_is_named_and_spoils_no_board(cli, tmp_path, capsys):
    folder = tmp_path / "results" / "x" / "y" / "diagnosis"
    folder.mkdir(parents=True)
    for content in ("{", "[]", '{"schema": 1}', '{"schema": 2}'):
        (folder / "diagnosis.json").write_text(content)
        found = collect([tmp_path / "results"])
        assert len(found) == 0 and "repeat robench diagnose" in str(found.left_out[0])


@pytest.mark.parametrize(
    ("name", "n", "high", "said"),
    [
        ("honest", 16, 0.205907, "few images prove little: a failure that none of the 16 images shows"),
        ("NaN where it is hard", 0, 1.0, "proves nothing"),
    ],
)
def test_few_images_say_how_little_they_prove(diagnosed, tmp_path, name, n, high, said):
    code, out, err = diagnosed(name)
    assert code == 0, err
    (file,) = tmp_path.glob("results/*/*/diagnosis/diagnosis.json")
    assert json.loads(file.read_text())["unseen"] == {"images": n, "interval": [0.0, high]}
    out = " ".join(out.split())
    assert said in out and ("on up to 20.6 % of all images" in out) == (n == 16)


def test_the_same_again_answers_from_its_runs(diagnosed, cli, tmp_path):
    diagnosed("honest")
    (file,) = tmp_path.glob("results/*/*/diagnosis/diagnosis.json")
    first = json.loads(file.read_text())
    times = {path: path.stat().st_mtime_ns for path in file.parent.rglob("record.json")}
    assert len(times) == 5
    file.unlink()
    _, again, err = cli("honest", "--json")
    assert json.loads(again)["diagnoses"] == [first] == [json.loads(file.read_text())]
    assert err.count("using the saved record in") == 5
    assert times == {path: path.stat().st_mtime_ns for path in file.parent.rglob("record.json")}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--knowledge", "bpda"), 2, "needs a purifier"),
        (("--threat", "fog:0.4"), 2, "fog:0.4 is not one of them"),
        (("--samples", "0"), 2, "expected at least 1"),
        (("--seeds", "0"), 2, "is not in the range"),
        (("--seeds", "2"), 2, "add --mi"),
        (("--defense", "nobody"), 2, 'unknown defense "nobody"'),
        (("--mi", "--samples", "16"), 2, "needs"),
    ],
)
def test_mistakes_end_in_one_line(cli, arguments, code, said):
    found, out, err = cli("honest", *arguments)
    assert found == code and said in err and out == ""


@pytest.mark.slow
def test_killed_it_goes_on_with_the_runs_that_are_not_done(tmp_path):
    command = ["diagnose", "--defense", "pgd-at", "--samples", "8", "--threat", "Linf:0.1"]
    process = Command(*command, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(tmp_path.rglob("record.json"))) >= 2:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait()[0] == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert 2 <= len(done) < 5 and not list(tmp_path.rglob("diagnosis.json"))
    (_, again, said), (_, whole, _) = (
        Command(*command, "--json", *more, cwd=tmp_path).wait() for more in ((), ("--results", "elsewhere"))
    )
    assert said.count("using the saved record in") == len(done)
    assert all(path.stat().st_mtime_ns == moment for path, moment in done.items())
    assert json.loads(again) == json.loads(whole)


def narrow() -> Narrow:
    """A network without memory for more than five images with gradients."""
    return Narrow(5)


def test_a_diagnosis_uses_smaller_batches_while_memory_runs_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "STEPS", (5, 10, 20))
    monkeypatch.setattr(runs, "FAR", 20)
    x = images(8)
    np.savez("own.npz", x=x.numpy(), y=small_net()(x).argmax(1).numpy())
    arguments = [
        "--defense",
        "python:tests.diagnosis.test_diagnose.narrow()",
        "--dataset",
        "npz:own.npz(classes=10)",
    ]
    with pytest.raises(SystemExit) as end:
        main(["diagnose", *arguments, "--samples", "8", "--threat", "Linf:0.02", "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    assert "cpu ran out of memory: continuing with batch size 4" in err
    assert json.loads(out)["diagnoses"][0]["health"] == []
