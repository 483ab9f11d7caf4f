"""A run on a real Ray cluster of two nodes on this machine, and what it survives."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from robench.core.errors import CheckFailed, ResourceError, UsageError
from robench.evaluation import orders, record_jobs
from robench.evaluation.options import Options
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import run_all

SUITE = "pgd(steps=2)+square(queries=20)"
N = 140
COMMAND = ["run", "--defense", "pgd-at-digits", "--attack", SUITE, "--samples", str(N), "--batch-size", "32"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found under /proc"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True, scope="module")
def ray():
    """Imported by these tests alone, which are slow: it takes long, and every process of the tests collects them."""
    return pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module")
def cluster(ray):
    from ray.cluster_utils import Cluster

    # Ray gives a node 30 seconds to start, which a busy machine may exceed: its clock runs at a tenth of the speed.
    slow = SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() / 10})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.node.time", slow)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def play(results, engine="ray", defense="pgd-at-digits", progress=None, **options):
    """The record of a run and the lines that it prints."""
    lines: list[str] = []
    options = {"batch_size": 32, **options}
    settings = Options(results=results, engine=engine, note=lines.append, progress=progress, **options)
    (record,) = run_all([defense], [SUITE], choose_protocol(None, "digits", None, N, [SUITE]), None, settings)
    return record, lines


def files(record):
    """The bytes of a record that no clock decides."""
    return {
        path.name: path.read_bytes() for path in sorted(record.folder.iterdir()) if path.suffix != ".json"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    record, _ = play(tmp_path_factory.mktemp("whole"), engine="local", workers=1)
    return files(record)


def workers():
    """The ids of the workers' processes."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::Worker"):
                found.append(int(folder.name))
    return found


def gone(seconds=60):
    """Whether no worker is left."""
    deadline = time.monotonic() + seconds
    while workers() and time.monotonic() < deadline:
        time.sleep(0.2)
    return not workers()


class Once:
    """A callback of progress that acts when the first share is finished."""

    def __init__(self, act):
        self.act, self.done = act, False

    def __call__(self, standing):
        if standing.rows and not self.done:
            self.done = True
            self.act()


def test_the_record_is_the_local_one(cluster, tmp_path, whole):
    seen = []
    record, _ = play(tmp_path, progress=seen.append)
    assert files(record) == whole and gone()
    assert (seen[-1].attack, seen[-1].rows, seen[-1].of_rows, seen[-1].samples) == ("shares", 3, 3, N)


def test_a_killed_worker_costs_its_share(cluster, tmp_path, whole):
    def kill():
        for process in workers():
            os.kill(process, signal.SIGKILL)

    once = Once(kill)
    record, lines = play(tmp_path, progress=once)
    assert once.done and any("lost its worker" in line for line in lines)
    assert files(record) == whole


def test_a_lost_node_and_a_late_one(cluster, tmp_path, whole):
    other = next(iter(cluster.worker_nodes))
    once = Once(lambda: (cluster.remove_node(other, allow_graceful=False), cluster.add_node(num_cpus=1)))
    record, _ = play(tmp_path, progress=once)
    assert once.done and files(record) == whole
    cluster.wait_for_nodes()


def test_an_interrupted_run_resumes_under_any_engine(cluster, tmp_path, whole):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, progress=Once(interrupt))
    assert gone() and len(list(tmp_path.rglob("share-*-of-3/state"))) == 1
    record, lines = play(tmp_path, engine="local", workers=1)
    assert files(record) == whole and any("resuming from" in line for line in lines)


def test_what_a_local_run_has_finished_is_not_played_again(cluster, tmp_path, whole):
    protocol = choose_protocol(None, "digits", None, N, [SUITE])
    assert not list(
        run_all(
            ["pgd-at-digits"], [SUITE], protocol, None, Options(results=tmp_path, share=(1, 3), batch_size=32)
        )
    )
    seen = []
    record, _ = play(tmp_path, progress=seen.append)
    assert files(record) == whole and seen[0].rows == 1


def test_a_killed_driver_loses_no_finished_share(cluster, tmp_path, whole):
    command = [sys.executable, "-m", "robench", *COMMAND, "--engine", "ray", "--address", cluster.address]
    driver = subprocess.Popen(
        [*command, "--results", str(tmp_path)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("*/*/*/.partial/share-*-of-3/state")) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert list(tmp_path.rglob("share-*-of-3/state")) and gone()
    record, lines = play(tmp_path)
    assert files(record) == whole and any("resuming" in line for line in lines)


NETWORK = """
import os, signal, torch
from robench.data import load_dataset
from robench.defenses import load_defense

FIRST = load_dataset("digits", "test", 1).x[0]


class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = load_defense("pgd-at-digits", "digits")

    def forward(self, x):
        # The ball around the first image, which lies in the first share.
        if x.requires_grad and float((x[0] - FIRST).abs().max()) < 0.131:
            {act}
        return self.network(x)


def network():
    return Odd()
"""


def odd(folder, act, monkeypatch):
    """A defense of the user's that does something odd on the first image."""
    (folder / "odd.py").write_text(NETWORK.format(act=act))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("odd", None)
    return "python:odd.network"


def test_a_share_that_loses_its_worker_twice_is_named_and_the_rest_goes_on(cluster, tmp_path, monkeypatch):
    defense = odd(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", monkeypatch)
    # Images are dealt by their clean margin, so the first image may be in any share.
    with pytest.raises(CheckFailed, match=r"share \d of 3 lost its worker 2 times"):
        play(tmp_path / "results", defense=defense)
    assert len(list(tmp_path.rglob("share-*-of-3/state"))) == 2


def test_a_mistake_of_the_users_is_one_line_and_never_repeated(cluster, tmp_path, monkeypatch):
    defense = odd(tmp_path, "raise ZeroDivisionError('of mine')", monkeypatch)
    with pytest.raises(UsageError, match=r"raised ZeroDivisionError .*of mine"):
        play(tmp_path / "results", defense=defense)
    assert gone()


def test_other_weights_on_a_worker_are_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(
        record_jobs, "order_of", lambda *given: replace(orders.order_of(*given), key="of other weights")
    )
    with pytest.raises(UsageError, match="pgd-at-digits or the images differ between"):
        play(tmp_path)


def test_a_worker_that_runs_out_of_memory_uses_smaller_batches(cluster, tmp_path, monkeypatch, whole):
    act = "exec(\"if len(x) > 16: raise RuntimeError('out of memory')\")"
    record, _ = play(tmp_path / "results", defense=odd(tmp_path, act, monkeypatch))
    assert record.job.batch_size == 16 and record.job.n == N


def test_a_grid_is_one_queue(cluster, tmp_path, whole, monkeypatch):
    suites, names = [SUITE, "apgd(steps=3)"], ["pgd-at-digits", "standard-digits"]
    protocol = choose_protocol(None, "digits", None, N, suites)
    lines, made = [], {}
    broken = odd(tmp_path, "raise ZeroDivisionError('of mine')", monkeypatch)
    for engine, defenses in (("local", names), ("ray", [names[0], broken, names[1]])):
        options = Options(
            results=tmp_path / engine,
            engine=engine,
            batch_size=32,
            note=lines.append,
            progress=lambda p: None,
        )
        records = run_all(defenses, suites, protocol, None, options)
        made[engine] = []
        with suppress(UsageError):
            made[engine].extend(records)
    assert [files(record) for record in made["ray"]] == [files(record) for record in made["local"]]
    assert len(made["ray"]) == 4 and files(made["ray"][0]) == whole
    assert len([line for line in lines if "odd.network" in line and " failed: " in line]) == 2
    assert gone()


def test_no_cluster_is_one_line(tmp_path):
    command = [sys.executable, "-m", "robench", *COMMAND, "--results", str(tmp_path), "--engine", "ray"]
    done = subprocess.run([*command, "--address", "127.0.0.1:1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == ResourceError.exit_code
    assert done.stderr.splitlines()[-1].startswith("robench: no Ray cluster at 127.0.0.1:1")
