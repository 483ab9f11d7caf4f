"""The distribution of shares to actors, with a stand-in for Ray that runs calls when their results are requested."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from robench import catalog
from robench.catalog import Suite
from robench.core.errors import CheckFailed, ResourceError
from robench.evaluation import cluster
from robench.evaluation.options import Options
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import run_all

SUITES = ["pgd(steps=2)", "fgsm"]


class Died(Exception):
    pass


class Call:
    def __init__(self, actor, action):
        self.actor, self.action = actor, action


class StandIn:
    """Two CPUs; the actors that run the calls with numbers in `deaths` die, and those in `unborn` never start."""

    exceptions = SimpleNamespace(RayError=Died)

    def __init__(self, deaths=(), unborn=()):
        self.deaths, self.started, self.runs, self.killed = set(deaths), 0, 0, 0
        self.unborn, self.resources = unborn, {"CPU": 2.0}

    def remote(self, **resources):
        ray = self

        class Actor:
            def __init__(self, kind):
                ray.started += 1
                worker, number = kind(), ray.started

                def ready():
                    if number in ray.unborn:
                        raise Died("no module named robench")
                    return worker.ready()

                def run(*given):
                    ray.runs += 1
                    if ray.runs in ray.deaths:
                        raise Died
                    return worker.run(*given)

                self.ready = SimpleNamespace(remote=lambda: Call(self, ready))
                self.run = SimpleNamespace(remote=lambda *given: Call(self, lambda: run(*given)))

        return lambda kind: SimpleNamespace(remote=lambda: Actor(kind))

    def put(self, value):
        return value

    def wait(self, references, num_returns, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        return reference.action()

    def kill(self, actor):
        self.killed += 1

    def cluster_resources(self):
        return self.resources


@pytest.fixture
def ray(monkeypatch):
    ray = StandIn()

    @contextmanager
    def connected(address):
        yield ray

    monkeypatch.setattr(cluster, "_connected", connected)
    monkeypatch.setattr(cluster, "share_count", lambda samples, batch_size: 3)
    return ray


def run(results, lines=None, suites=SUITES, **options):
    protocol = choose_protocol(None, "digits", None, 12, suites)
    note = (lambda text: None) if lines is None else lines.append
    options = Options(results=results, note=note, **options)
    return [
        {path.name: path.read_bytes() for path in sorted(record.folder.iterdir()) if path.suffix != ".json"}
        for record in run_all(["pgd-at-digits"], suites, protocol, None, options)
    ]


def test_a_grid_gives_the_local_records_and_actors_live_for_all_of_it(ray, tmp_path):
    assert run(tmp_path / "ray", engine="ray") == run(tmp_path / "local", workers=1)
    assert ray.started == ray.killed == 2 and ray.runs == 6


def test_a_dead_actor_costs_its_share(ray, tmp_path):
    ray.deaths, lines = {2}, []
    assert run(tmp_path / "ray", lines, engine="ray") == run(tmp_path / "local", workers=1)
    assert sum("lost its worker (Died): it starts again" in line for line in lines) == 1 and ray.runs == 7


def test_a_share_that_dies_twice_fails_its_record(ray, tmp_path):
    ray.deaths, lines = {1, 2, 3, 4, 5, 6}, []
    with pytest.raises(CheckFailed, match=r"^[12] of 2 records failed"):
        run(tmp_path, lines, engine="ray")
    assert any("lost its worker 2 times (Died); the others are saved" in line for line in lines)


def test_workers_that_never_start_are_one_line(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", 0.05)
    ray.unborn, lines = range(100), []
    with pytest.raises(
        ResourceError, match=r"^no worker starts on the cluster: .*\(no module named robench\)$"
    ):
        run(tmp_path, lines, engine="ray")
    assert ray.started == 2 * 3 and sum("a worker does not start" in line for line in lines) == 1


def test_a_worker_that_does_not_start_costs_nothing(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", 0.05)
    ray.unborn, lines = {1}, []
    assert run(tmp_path / "ray", lines, engine="ray") == run(tmp_path / "local", workers=1)
    assert sum("a worker does not start (no module named robench)" in line for line in lines) == 1


def test_a_cluster_without_the_gpus_of_a_worker_is_said_once(ray, tmp_path, monkeypatch):
    """Machines with GPUs may join later."""
    monkeypatch.setattr(cluster, "_PATIENCE", 0.05)
    monkeypatch.setattr(cluster, "_POLL", 0.02)
    lines, polls = [], []

    def resources():
        polls.append(1)
        return {"CPU": 2.0} if len(polls) < 20 else {"CPU": 2.0, "GPU": 2.0}

    ray.cluster_resources = resources
    assert len(run(tmp_path, lines, engine="ray", gpus_per_worker=1)) == 2
    (line,) = [line for line in lines if line.startswith("waiting")]
    assert "needs 1 CPU and 1 GPUs: the cluster has 2 CPUs and 0 GPUs" in line


def test_an_estimate_is_that_of_one_process(ray, tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.suites(), "quick", Suite("quick", ["fgsm"]))
    monkeypatch.setattr("robench.evaluation.estimate._SMALLEST", 2)
    # The third call is one of the sample.
    ray.deaths = {5}
    made = run(tmp_path / "ray", suites=SUITES[:1], engine="ray", estimate=5)
    assert made == run(tmp_path / "local", suites=SUITES[:1], workers=1, estimate=5)
    assert ray.runs > 5
