"""Processes and the cache do not change pixels."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robench import corruption
from robench.core.errors import ResourceError, UsageError
from robench.corruption.cache import Cache
from robench.corruption.make import corrupt, decode_jpeg, library, maker, to_jpeg
from robench.corruption.tasks import Task, digest_of, in_order
from robench.corruption.workers import Workers
from tests.corruption.scenes import scene

PIXELS = np.stack([scene(i) for i in range(3)])
IDS = (4, 9, 2)
TASKS = [
    Task(PIXELS, IDS, name, severity, 1, jpeg)
    for name in ("impulse_noise", "glass_blur", "frost")
    for severity in (2, 5)
    for jpeg in (False, True)
]


def test_two_processes_give_the_same_images_as_one():
    alone = [made.pixels for made in in_order(TASKS)]
    shared = [made.pixels for made in in_order(TASKS, workers=2)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert np.array_equal(alone[0][1], corrupt(PIXELS[1], "impulse_noise", 2, 9, 1))
    assert np.array_equal(alone[1][1], corrupt(PIXELS[1], "impulse_noise", 2, 9, 1, jpeg=True))


def test_files_match_the_jpeg_round_trip():
    (files,) = in_order([TASKS[1]], files=True)
    assert files[2] == to_jpeg(corrupt(PIXELS[2], "impulse_noise", 2, 2, 1))
    assert np.array_equal(decode_jpeg(files[2]), TASKS[1].run().pixels[2])


@pytest.mark.parametrize("jpeg", [False, True])
def test_the_cache_gives_the_same_pixels_without_recomputing(tmp_path, monkeypatch, jpeg):
    cache = Cache(tmp_path, 10**7)
    task = replace(TASKS[0], jpeg=jpeg, cache=cache, digest=digest_of(PIXELS, IDS))
    first = task.run()
    assert np.array_equal(first.pixels, replace(task, cache=None).run().pixels)
    monkeypatch.setattr("robench.corruption.tasks.corrupt", lambda *a: pytest.fail("made again"))
    again = task.run()
    assert np.array_equal(first.pixels, again.pixels) and first.digest == again.digest
    for other in (
        replace(task, severity=3),
        replace(task, corruption="fog"),
        replace(task, seed=2),
        replace(task, jpeg=not jpeg),
        replace(task, digest=digest_of(PIXELS, (4, 9, 3))),
        replace(task, digest=digest_of(PIXELS ^ 1, IDS)),
    ):
        with pytest.raises(pytest.fail.Exception, match="made again"):
            other.run()


def test_the_key_depends_on_the_code(tmp_path, monkeypatch):
    task = replace(TASKS[0], cache=Cache(tmp_path, 10**7), digest=digest_of(PIXELS, IDS))
    task.run()
    monkeypatch.setattr("robench.corruption.tasks._maker", lambda: "another")
    monkeypatch.setattr("robench.corruption.tasks.corrupt", lambda *a: pytest.fail("made again"))
    with pytest.raises(pytest.fail.Exception, match="made again"):
        task.run()


def test_the_maker_covers_this_code_the_library_and_its_dependencies(tmp_path, monkeypatch):
    said = maker()
    assert library() in said and f"numpy {np.__version__}" in said and "scipy" in said
    for name in ("make.py", "quick.py"):
        shutil.copy(Path(corruption.__file__).parent / name, tmp_path)
    before = maker(tmp_path)
    assert maker(tmp_path) == before != said
    (tmp_path / "quick.py").write_text("# something else")
    assert maker(tmp_path) != before
    monkeypatch.setattr("robench.corruption.make.version", lambda name: "99")
    assert maker(tmp_path).count(" 99") > 3


def test_exceptions_are_raised_in_the_parent_process():
    with pytest.raises(UsageError, match="did you mean fog"):
        list(in_order([replace(TASKS[0], corruption="fogg")], workers=2))


class Ender:
    """A task that ends its process, or cannot import a package."""

    def out_of_memory(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def exit(self):
        os._exit(1)

    def broken(self):
        raise ImportError("libGL.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("out_of_memory", r"exit code -9.*fewer --workers"),
        ("exit", r"exit code 1\): what it printed may say why"),
        ("broken", r"cannot be imported \(libGL.so.1: .* file\): robench doctor says how to mend it"),
    ],
)
def test_a_process_that_dies_or_lacks_a_package_is_reported_in_one_line(how, says):
    with Workers(1) as crew, pytest.raises(ResourceError, match=says):
        crew.submit(Ender(), how).result()


SCRIPT = """
import os, signal, sys
from tests.corruption.test_tasks import TASKS
from robench.corruption.tasks import in_order
found = in_order(TASKS * 50, workers=2)
next(found)
children = [open(f"/proc/self/task/{each}/children").read() for each in os.listdir("/proc/self/task")]
print(*children, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")  # noqa: PTH110
def test_processes_end_with_their_parent_and_need_no_main_guard():
    # The script has no main guard, and does not come from a file.
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    children = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and children, done.stderr
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(_lives(child) for child in children):
        time.sleep(0.05)
    assert not any(_lives(child) for child in children)


def _lives(number):
    try:
        with open(f"/proc/{number}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
