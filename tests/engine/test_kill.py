"""A run killed (SIGKILL) or stopped (SIGTERM) goes on where it was, and ends in the same bytes as one left alone."""

import json
import signal
import time
from pathlib import Path

import pytest

from robench.records.record import stable
from tests.processes import Command

ARGUMENTS = ["run", "--defense", "pgd-at", "--samples", "16", "--batch-size", "6", "--json"]
# A norm, and a transformation with chances of its own; played by one process, and shared by two.
JOBS = [
    pytest.param(
        "Linf:0.14",
        "apgd(steps=30)+square(queries=60)+fmn(steps=10, minimise=True)",
        "1",
        marks=pytest.mark.slow,
    ),
    ("Linf:0.14", "apgd(steps=12)+square(queries=20)+pgd-mi(steps=6)", "2"),
    pytest.param("snow(grid=4):2", "apgd(steps=20)+pgd(steps=15)", "1", marks=pytest.mark.slow),
]


def start(folder: Path, threat: str, attack: str, workers: str) -> Command:
    given = ("--threat", threat, "--attack", attack, "--workers", workers)
    return Command(*ARGUMENTS, *given, cwd=folder, saves=True)


def finish(process: Command) -> tuple[dict, str]:
    code, out, err = process.wait()
    assert code == 0, err
    return json.loads(out)["records"][0], err


def folder_of(root: Path) -> Path:
    (path,) = root.glob("results/*/*/*/")
    return path


@pytest.mark.parametrize(("threat", "attack", "workers"), JOBS)
def test_killed_and_resumed_it_ends_in_the_same_bytes(tmp_path, threat, attack, workers):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, _ = finish(start(tmp_path / "whole", threat, attack, "1"))
    for number, end in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        process = start(tmp_path / "killed", threat, attack, workers)
        state = None
        before = _saved(tmp_path / "killed")
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            state = _saved(tmp_path / "killed")
            # Some saves after the start (or the last kill) there is work in flight to lose.
            if state is not None and state != before:
                time.sleep(0.07)
                process.send_signal(number)
                break
            time.sleep(0.002)
        assert process.wait()[0] == end
        assert not (folder_of(tmp_path / "killed") / "record.json").exists()
    killed, said = finish(start(tmp_path / "killed", threat, attack, workers))
    assert "resuming from" in said
    assert stable(killed) == stable(whole)
    for name in ("samples.parquet", "adversarials.safetensors"):
        one = folder_of(tmp_path / "whole") / name
        other = folder_of(tmp_path / "killed") / name
        assert one.read_bytes() == other.read_bytes(), name
    assert not list(folder_of(tmp_path / "killed").glob(".partial/*"))


def _saved(root: Path):
    """When each state on disk was written, or None where there is none."""
    files = sorted(root.glob("results/*/*/*/.partial/**/state"))
    try:
        return [file.stat().st_mtime_ns for file in files] or None
    except FileNotFoundError:
        return None
