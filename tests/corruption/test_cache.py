"""The cache returns exactly what was stored, or nothing, and stays within its limit."""

import os
import signal
import subprocess
import sys
import time

import pytest

from robench.core.errors import UsageError
from robench.corruption.cache import Cache, default_limit


def keys(n):
    return [f"{i:02x}{'0' * 62}" for i in range(n)]


def test_stored_content_is_returned(tmp_path):
    cache = Cache(tmp_path, 10_000)
    a, b = keys(2)
    assert cache.get(a) is None
    assert cache.put(a, b"pixels") and cache.get(a) == b"pixels"
    assert cache.get(b) is None
    assert Cache(tmp_path, 10_000).get(a) == b"pixels"


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: c[:20] + b"?" + c[21:], lambda c: c + b"x", lambda c: b""]
)
def test_a_damaged_file_is_a_miss_and_removed(tmp_path, damage):
    cache = Cache(tmp_path, 10_000)
    (key,) = keys(1)
    cache.put(key, b"pixels" * 10)
    (path,) = tmp_path.glob("*/*.chunk")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(key) is None and not path.exists()
    assert cache.put(key, b"again") and cache.get(key) == b"again"


def test_a_file_of_other_images_is_a_miss(tmp_path):
    cache = Cache(tmp_path, 10_000)
    one, other = keys(2)
    cache.put(one, b"one")
    cache.put(other, b"other")
    cache._path(other).rename(cache._path(one))
    assert cache.get(one) is None and not cache._path(one).exists()


def test_the_oldest_files_are_removed_at_the_limit(tmp_path):
    made = keys(5)
    early = Cache(tmp_path, 1000, since=0)
    for number, key in enumerate(made[:4]):
        assert early.put(key, b"x" * 200)
        os.utime(next(tmp_path.glob(f"{key[:2]}/*.chunk")), (number + 1, number + 1))
    # Reading counts as use: the first file is now the most recent.
    assert early.get(made[0])
    later = Cache(tmp_path, 1000, since=time.time() + 60)
    assert later.put(made[4], b"x" * 200)
    held = [key for key in made if later.get(key)]
    assert held == [made[0], made[2], made[3], made[4]]
    assert later.usage() == (4, 4 * 232)


def test_a_run_does_not_evict_its_own_files(tmp_path):
    cache = Cache(tmp_path, 1000, since=time.time() - 60)
    kept = [cache.put(key, b"x" * 300) for key in keys(5)]
    assert kept == [True, True, True, False, False]
    assert cache.get(keys(5)[0])


def test_a_limit_of_zero_disables_the_cache(tmp_path):
    assert not Cache(tmp_path, 0).put(keys(1)[0], b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_write_error_is_ignored(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache", 1000)
    assert not cache.put(keys(1)[0], b"x") and cache.get(keys(1)[0]) is None
    assert cache.usage() == (0, 0) == cache.clear()


def test_clearing_removes_everything(tmp_path):
    cache = Cache(tmp_path, 1000)
    for key in keys(3):
        cache.put(key, b"x" * 10)
    assert cache.clear() == (3, 3 * 42)
    assert cache.usage() == (0, 0) and cache.put(keys(1)[0], b"x" * 900)


WRITER = """
import sys
from pathlib import Path
from robench.corruption.cache import Cache
cache = Cache(Path(sys.argv[1]), 3_000_000, since=0)
i = 0
while True:
    cache.put(f"{i % 256:02x}{i:062x}", bytes([i % 256]) * 100_000)
    i += 1
    if i == 5: print("going", flush=True)
"""


def test_killed_writers_leave_complete_files_within_the_limit(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == b"going\n"
    time.sleep(0.2)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    cache = Cache(tmp_path, 3_000_000)
    files, held = cache.usage()
    assert files >= 5 and held <= 3_000_000
    for path in tmp_path.glob("*/*.chunk"):
        content = cache.get(path.stem)
        assert content is not None and len(content) == 100_000 and len(set(content)) == 1
    assert cache.put("ff" + "1" * 62, b"x")


@pytest.mark.parametrize(
    ("said", "found"),
    [("0", 0), ("500M", 500 * 2**20), ("1.5G", 3 * 2**29), ("20 GiB", 20 * 2**30), ("7", 7), ("", 2**33)],
)
def test_limits_are_parsed(monkeypatch, said, found):
    monkeypatch.setenv("ROBENCH_CACHE_LIMIT", said)
    assert default_limit() == found


@pytest.mark.parametrize("said", ["much", "-1G", "1X", "1e3"])
def test_malformed_limits_are_refused(monkeypatch, said):
    monkeypatch.setenv("ROBENCH_CACHE_LIMIT", said)
    with pytest.raises(UsageError, match="such as 500M"):
        default_limit()
