"""Spawned processes: their devices, what is sent to them, and what they do not repeat."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch

from robench.core.errors import UsageError
from robench.engine import run as engine
from robench.engine.run_queue import Share
from robench.engine.spawned import Builder, SpawnedPool, Task
from robench.engine.workers import worker_devices
from robench.evaluation import run as evaluation
from robench.evaluation.jobs import job_of, run_of
from robench.evaluation.options import Options
from robench.evaluation.orders import order_of
from robench.evaluation.planning import plan
from robench.evaluation.protocol import choose_protocol

SUITE = "pgd(steps=2)"
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "workers", "count", "expected"),
    [
        ("cuda", None, 4, ["cuda"]),
        ("cuda", 1, 4, ["cuda"]),
        ("cuda", 2, 4, ["cuda:0", "cuda:1"]),
        ("cuda", 9, 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:2", None, 4, ["cuda:2"]),
        ("cuda:2", 8, 4, ["cuda:2"]),
        ("cuda:3,0", None, 4, ["cuda:3", "cuda:0"]),
        ("cuda:0, 1,2", 2, 4, ["cuda:0", "cuda:1"]),
        ("xpu:0,1", None, 2, ["xpu:0", "xpu:1"]),
    ],
)
def test_each_process_has_a_device(device, workers, count, expected):
    assert worker_devices(device, workers, count) == expected


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0,4", r'no device "cuda:4" here \(4 CUDA devices found\)'),
        ("cuda:0,0", "different indices, such as cuda:0,1"),
        ("cuda:0,x", "different indices"),
        ("cuda:0,-1", "different indices"),
    ],
)
def test_impossible_devices_are_one_line(device, message):
    with pytest.raises(UsageError, match=message):
        worker_devices(device, None, 4)


def test_the_first_device_is_that_of_the_main_process(monkeypatch):
    """With a pretended count of devices."""

    class Backend:
        def device_count(self):
            return 4

    monkeypatch.setattr(evaluation, "choose_device", torch.device)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: Backend())
    options, devices = evaluation._devices(Options(device="cuda:2,3"))
    assert options.device == "cuda:2" and devices == ("cuda:2", "cuda:3")
    assert evaluation._devices(Options(device="cuda", workers=3))[1] == ("cuda:0", "cuda:1", "cuda:2")
    assert evaluation._devices(Options(device="cuda"))[1] == ()
    # Ray distributes GPUs itself.
    assert evaluation._devices(Options(device="cuda", workers=3, engine="ray"))[1] == ()


def test_several_cpus_are_no_devices():
    with pytest.raises(UsageError, match="--workers sets the number of processes"):
        evaluation._devices(Options(device="cpu:0,1"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run that is prepared, and its order."""
    protocol = choose_protocol(None, "digits", None, 12, [SUITE])
    options = Options(results=tmp_path_factory.mktemp("results"), device="cpu")
    (planned,) = plan(["pgd-at-digits"], [SUITE], protocol, None, options)
    job = job_of(planned, options, CPU)
    run = run_of(planned, job, CPU, options)
    run.prepare(2)
    return run, order_of(planned, job, CPU, options)


def names(content):
    """The classes and functions that a pickle refers to."""
    found = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(f"{module}.{name}")
            return super().find_class(module, name)

    Recorder(io.BytesIO(content)).load()
    return found


# Builders of tensors, paths, fractions and ordinary containers.
PLAIN = (
    "torch._utils.",
    "torch.storage.",
    "torch.serialization.",
    "collections.",
    "pathlib",
    "fractions.",
    "torch.Size",
)


def test_only_plain_data_is_sent(prepared):
    run, order = prepared
    result = Builder().share(Task(order.key, order, 0, 2), run.clean).attack()
    for content in (Task(order.key, order, 0, 2), run.clean, result, run.current_progress()):
        for name in names(pickle.dumps(content, protocol=5)):
            assert name.startswith((*PLAIN, "robench.")) or name in ("_codecs.encode", "torch.device"), name
            assert not name.startswith(("robench.defenses", "robench.attacks")), name


def test_a_worker_repeats_neither_the_clean_pass_nor_the_set_up(prepared, monkeypatch):
    run, order = prepared
    builds = []
    build = type(order).build
    monkeypatch.setattr(type(order), "build", lambda *given: builds.append(1) or build(*given))
    monkeypatch.setattr(engine, "clean_pass", lambda *given: pytest.fail("the clean pass was repeated"))
    builder = Builder()
    results = [builder.share(Task(order.key, order, number, 2), run.clean).attack() for number in range(2)]
    assert len(builds) == 1
    assert (results[0].selected | results[1].selected).all()
    assert not (results[0].selected & results[1].selected).any()


def test_forked_processes_do_not_repeat_the_clean_pass(tmp_path, monkeypatch):
    clean_pass = engine.clean_pass

    def counted(*given):
        with (tmp_path / "calls").open("a") as file:
            file.write("x")
        return clean_pass(*given)

    monkeypatch.setattr(engine, "clean_pass", counted)
    protocol = choose_protocol(None, "digits", None, 12, [SUITE])
    options = Options(results=tmp_path, workers=3)
    assert list(evaluation.run_all(["pgd-at-digits"], [SUITE], protocol, None, options))
    assert (tmp_path / "calls").read_text() == "x"


def test_another_checkpoint_in_a_worker_is_refused(prepared):
    run, order = prepared
    other = type(order)(**{**vars(order), "key": "of other weights"})
    with pytest.raises(UsageError, match=r"pgd-at-digits or the images differ between .* and the machine"):
        Builder().share(Task(other.key, other, 0, 2), run.clean)


def test_each_run_of_a_job_is_sent_with_its_own_recipe(prepared):
    """An estimate runs a screen and the suite to estimate."""
    run, order = prepared
    sent = []

    class Pipe:
        def send_bytes(self, content):
            sent.append(pickle.loads(content))

    pipe = Pipe()
    pool = SpawnedPool(None, 1)
    pool._spawn = lambda: (pipe, None)
    entry = SimpleNamespace(run=None, count=2)
    for key in ("screen", "screen", "suite"):
        if entry.run is None or key == "suite":
            entry.run = copy.copy(run)
        recipe = type(order)(**{**vars(order), "key": key})
        pool.begin(Share(entry, 0, SimpleNamespace(recipe=recipe, store=None, clean=run.clean)))
        pool.release(pipe, None)
    assert [task.key for task, _ in sent] == ["screen", "screen", "suite"]
    # A process that has built the run gets neither the recipe nor the clean pass again.
    assert [(task.recipe is None, clean is None) for task, clean in sent] == [
        (False, False),
        (True, True),
        (False, False),
    ]
