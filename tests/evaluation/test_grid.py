"""Grids: the records of several defenses and attacks from one queue are those of single runs."""

import json
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
from torch import nn

from robench.cli.main import main
from robench.core.errors import ResourceError, UsageError
from robench.core.io import claim
from robench.defenses import load_defense
from robench.engine import spawned, workers
from robench.evaluation import planning
from robench.evaluation import run as evaluation
from robench.evaluation.options import Options
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Request, run_all, run_grid
from tests.combinations import first_only
from tests.processes import Command

SUITES = ["pgd(steps=2)+square(queries=10)", "apgd(steps=3)"]
DEFENSES = ["pgd-at-digits", "standard-digits"]
N = 12
COMMAND = ["--defense", ",".join(DEFENSES), "--attack", ",".join(SUITES), "--samples", str(N)]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="processes are forked, without a GPU"
)


def run(results, defenses=DEFENSES, suites=SUITES, lines=None, **options):
    """The records of a grid."""
    protocol = choose_protocol(None, "digits", None, N, suites)
    note = (lambda text: None) if lines is None else lines.append
    return list(run_all(defenses, suites, protocol, None, Options(results=results, note=note, **options)))


def files(results):
    """The bytes of all records that no clock determines."""
    return {
        path.relative_to(results): path.read_bytes()
        for path in sorted(results.rglob("*"))
        if path.suffix in (".parquet", ".safetensors") and ".partial" not in path.parts
    }


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The files of the records made one after another."""
    results = tmp_path_factory.mktemp("single")
    for defense in DEFENSES:
        for suite in SUITES:
            run(results, [defense], [suite], workers=1)
    return files(results)


@pytest.mark.parametrize("workers", first_only(1, [2, 1, 3]))
def test_a_grid_makes_the_records_of_single_runs(tmp_path, single, workers):
    seen = []
    records = run(tmp_path, workers=workers, progress=seen.append)
    names = [(record.job.defense.name, record.job.suite.name) for record in records]
    assert [name for name, _ in names] == [
        "pgd-at-digits",
        "pgd-at-digits",
        "standard-digits",
        "standard-digits",
    ]
    assert files(tmp_path) == single
    assert [p.index for p in seen] == sorted(p.index for p in seen) and {p.attacks for p in seen} == {4}
    assert all(0 <= progress.share <= 1 for progress in seen)
    assert seen[0].attack.startswith("pgd-at-digits under pgd(steps=2)+square(queries=10), Linf:0.13: pgd")
    assert not list(tmp_path.rglob(".partial")) and not list(tmp_path.rglob(".lock"))


@pytest.mark.slow
def test_spawned_processes_live_for_the_whole_grid(tmp_path, single, monkeypatch):
    # As on a machine with two GPUs.
    monkeypatch.setattr(evaluation, "_devices", lambda options: (options, ("cpu", "cpu")))
    monkeypatch.setattr("robench.engine.workers.share_count", lambda samples, batch_size: 3)
    started = []
    start = spawned.SpawnedPool._spawn
    monkeypatch.setattr(spawned.SpawnedPool, "_spawn", lambda pool: started.append(1) or start(pool))
    run(tmp_path, workers=2)
    assert files(tmp_path) == single and len(started) == 2


def test_the_next_run_starts_before_the_last_share_of_a_record_ends(tmp_path, monkeypatch):
    events = []
    finish, begin = workers.RunQueue.finish, workers.ForkedPool.begin

    def finished(queue, share, result):
        events.append(("end", share.entry.index, share.number))
        finish(queue, share, result)

    def begun(pool, share):
        events.append(("begin", share.entry.index, share.number))
        begin(pool, share)

    monkeypatch.setattr(workers.RunQueue, "finish", finished)
    monkeypatch.setattr(workers.ForkedPool, "begin", begun)
    run(tmp_path, workers=2)
    # Not for each record: the last two shares of one may end at the same moment.
    last = [max(i for i, event in enumerate(events) if event[:2] == ("end", record)) for record in range(3)]
    assert any(("begin", record + 1, 0) in events[: last[record]] for record in range(3))


class Broken(nn.Module):
    """Fails when it is asked for a gradient."""

    def __init__(self, act):
        super().__init__()
        self.network, self.act = load_defense("pgd-at-digits", "digits"), act

    def forward(self, x):
        if x.requires_grad:
            self.act()
        return self.network(x)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """The name of a defense that fails with a mistake of the user's."""
    (tmp_path / "broken_network.py").write_text(
        "from tests.evaluation.test_grid import Broken\ndef network():\n    return Broken(lambda: 1 // 0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "python:broken_network.network"


@pytest.mark.parametrize("workers", first_only(1, [2, 1]))
def test_a_record_that_fails_is_named_and_the_others_are_made(tmp_path, single, broken, workers):
    lines, results = [], tmp_path / "results"
    made = []
    protocol = choose_protocol(None, "digits", None, N, SUITES)
    options = Options(results=results, note=lines.append, workers=workers)
    with pytest.raises(UsageError, match=r"^2 of 6 records failed: .*broken_network") as raised:
        made.extend(run_all([DEFENSES[0], broken, DEFENSES[1]], SUITES, protocol, None, options))
    assert len(made) == 4 and "standard" not in str(raised.value)
    assert {path: content for path, content in files(results).items() if path in single} == single
    failed = [line for line in lines if " failed: " in line]
    assert len(failed) == 2 and all("ZeroDivisionError" in line for line in failed)


def test_the_command_shows_the_records_that_are_made_and_ends_with_the_worst_code(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    locked = tmp_path / f"results/digits-Linf-0.13-n{N}/standard-digits/apgd-steps-3"
    with claim(locked), pytest.raises(SystemExit) as ended:
        main(["run", *COMMAND, "--workers", "2", "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == ResourceError.exit_code
    assert len(json.loads(out)["records"]) == 3
    last = err.splitlines()[-1]
    assert last == "robench: 1 of 4 records failed: standard-digits under apgd(steps=3), Linf:0.13"
    assert err.count("another run is writing") == 1 and "Traceback" not in err


def test_one_record_fails_as_before(tmp_path, broken):
    with pytest.raises(UsageError, match=r"raised ZeroDivisionError"):
        run(tmp_path / "results", [broken], SUITES[:1], workers=2)


def test_the_same_record_twice_is_made_once(tmp_path):
    lines = []
    first, second = run(tmp_path, ["pgd-at-digits", "pgd-at-digits"], SUITES[:1], lines, workers=2)
    assert first.key == second.key and any("using the saved record" in line for line in lines)


def test_an_interrupt_leaves_a_state_that_resumes(tmp_path, single):
    def interrupt(progress):
        if progress.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, workers=2, progress=interrupt)
    assert 0 < len(list(tmp_path.rglob("record.json"))) < 4
    assert not list(tmp_path.glob("*/*/*/.lock"))
    lines = []
    run(tmp_path, lines=lines, workers=1)
    assert files(tmp_path) == single and any("using the saved record" in line for line in lines)


def test_a_killed_grid_resumes_with_another_number_of_workers(tmp_path, single):
    process = Command("run", *COMMAND, "--workers", "2", "--results", str(tmp_path), cwd=tmp_path)
    deadline = time.monotonic() + 240
    # Not rglob: it fails on folders that vanish meanwhile.
    while not list(tmp_path.glob("*/*/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = len(list(tmp_path.rglob("record.json")))
    assert made
    run(tmp_path, workers=3)
    assert files(tmp_path) == single


def test_a_killed_worker_costs_its_share_only(tmp_path, single):
    killed = []

    def kill(progress):
        # Not any child: multiprocessing has a process of its own, which later tests need.
        children = multiprocessing.active_children()
        if not killed and children and children[0].pid:
            killed.append(children[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    lines = []
    run(tmp_path, lines=lines, workers=2, progress=kill)
    assert files(tmp_path) == single and sum("lost its worker" in line for line in lines) <= 1 == len(killed)


def test_a_request_that_cannot_be_planned_does_not_stop_the_others(tmp_path):
    protocol = choose_protocol(None, "digits", None, N, SUITES)
    requests = [
        Request([name], SUITES[:1], protocol) for name in ("pgd-at-digits", "unheard-of", "standard-digits")
    ]
    lines, made = [], []
    with pytest.raises(UsageError, match="1 of 3 records failed: unheard-of under pgd"):
        made.extend(run_grid(requests, Options(results=tmp_path, note=lines.append, workers=2)))
    assert [index for index, _ in made] == [0, 2]
    assert any('unknown defense "unheard-of"' in line for line in lines)
    with pytest.raises(UsageError, match="unheard-of"):
        list(run_grid(requests[1:], Options(results=tmp_path)))


@pytest.mark.parametrize("method", first_only(1, ["fork", "spawn"]))
@pytest.mark.slow
def test_corruptions_are_shared_as_well(tmp_path, method, monkeypatch):
    suites = ['corruption(name="contrast", severities=[1,3])', "pgd(steps=2)"]
    protocol = choose_protocol(None, "digits", None, 150, suites)
    for name in ("single", "grid"):
        if name == "grid" and method == "spawn":
            monkeypatch.delattr(os, "fork")
        options = Options(results=tmp_path / name, workers=1 if name == "single" else 2)
        list(run_all(["standard-digits"], suites, protocol, None, options))
    assert files(tmp_path / "single") == files(tmp_path / "grid")
    assert len(files(tmp_path / "grid")) == 3


def test_a_defense_is_loaded_once_for_several_requests(tmp_path, monkeypatch):
    loads = []
    original = planning.load
    monkeypatch.setattr(
        planning, "load", lambda *args, **kwargs: loads.append(1) or original(*args, **kwargs)
    )
    protocol = choose_protocol(None, "digits", None, N, SUITES)
    requests = [Request(["pgd-at-digits"], [suite], protocol) for suite in SUITES]
    assert len(list(run_grid(requests, Options(results=tmp_path, workers=1)))) == 2
    assert len(loads) == 1
