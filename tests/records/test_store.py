"""Where records lie; what a kill, a full disk and a second writer do to them (nothing)."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robench.core import io
from robench.core.errors import ResourceError
from robench.core.io import claim, write_whole
from robench.records.record import read_record
from robench.records.store import record_folder, slug, supersede
from tests.fabricate import make_run

HOLD = """
import sys, time
from pathlib import Path
from robench.core.io import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("digits-linf", "mimir-digits", "autoattack"), "digits-linf/mimir-digits/autoattack"),
        (("p", "d", "s", "transfer:maep"), "p/d/s@transfer-maep"),
        (("p", "d", "s", "oblivious", 3), "p/d/s@oblivious+seed3"),
        (("p", "../..", 'pgd(steps=2, loss="ce")'), "p/unnamed/pgd-steps-2-loss-ce"),
        (("/etc", "a b", "é"), "etc/a-b/unnamed-4a99557e"),
    ],
)
def test_a_record_has_its_place(arguments, expected):
    assert record_folder("results", *arguments) == Path("results") / expected


@given(st.text())
def test_a_slug_is_one_safe_part_of_a_path(name):
    part = slug(name)
    assert part and len(part) <= 100
    assert set(part) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert Path(part).name == part
    assert slug(part) == part


def test_long_names_with_one_beginning_stay_apart():
    assert slug("a" * 200 + "b") != slug("a" * 200 + "c")


def test_another_record_in_the_same_place_is_kept_aside(runs):
    old, new = runs(draw=1), runs(draw=2)
    first = old.write()
    before = {path.name: path.read_bytes() for path in old.folder.iterdir()}
    second = new.write()
    aside = new.folder / "superseded" / first.key[:8]
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert read_record(new.folder) == second
    old.write()
    new.write()
    assert sorted(path.name for path in aside.parent.iterdir()) == sorted(
        [first.key[:8], first.key[:8] + "-2", second.key[:8]]
    )


def test_the_same_finding_again_replaces_its_record(run):
    run.write()
    assert run.write(seconds=1.0).seconds == read_record(run.folder).seconds == 1.0
    assert not (run.folder / "superseded").exists()


def test_an_unreadable_record_is_kept_aside_too(run):
    run.write()
    (run.folder / "record.json").write_text("{")
    run.write()
    assert (run.folder / "superseded" / "unreadable" / "record.json").read_text() == "{"


def test_nothing_is_superseded_where_there_is_nothing(tmp_path):
    assert supersede(tmp_path) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_record(runs, monkeypatch, number):
    old, new = runs(draw=1), runs(draw=2)
    old.write()
    before = {path.name: path.read_bytes() for path in old.folder.iterdir()}

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(io.os, "fsync", full)
    with pytest.raises(ResourceError, match=r"no space left on the disk .*--results"):
        new.write()
    assert {path.name: path.read_bytes() for path in old.folder.iterdir()} == before


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "results").write_text("a file")
    run = make_run(tmp_path / "results")
    with pytest.raises(ResourceError, match=r"cannot write .*Not a directory.*--results"):
        run.write()
    with pytest.raises(ResourceError, match="cannot write"), claim(run.folder):
        pass


@pytest.mark.parametrize("after", range(10))
def test_an_interruption_at_any_step_loses_neither_record(runs, monkeypatch, after):
    """Whatever rename or removal is the last one, the old record is whole in its place or aside."""
    old, new = runs(draw=1), runs(draw=2)
    first = old.write()
    steps = iter(range(after))

    class Killed(BaseException):
        pass

    def counted(name):
        real = getattr(Path, name)

        def step(self, *arguments, **options):
            cleaning = name == "unlink" and self.name.endswith(".tmp")
            if not cleaning and next(steps, None) is None:
                raise Killed
            return real(self, *arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for name in ("replace", "rename", "unlink"):
            patch.setattr(Path, name, counted(name))
        try:
            new.write()
        except Killed:
            assert after < 7
        else:
            assert after >= 7
    aside = new.folder / "superseded" / first.key[:8]
    present = [read_record(place) for place in (new.folder, aside) if (place / "record.json").exists()]
    assert first in present
    for found in present:
        digests = {name: _sha256(found.folder / name) for name in found.files}
        assert digests == found.files
    assert new.write() == read_record(new.folder)


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_appear_in_order_and_without_leftovers(tmp_path):
    write_whole(tmp_path / "new", {"a": b"1", "b": b"2"})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a", "b"]
    assert (tmp_path / "new" / "a").stat().st_mode & 0o777 == 0o644


def test_a_second_writer_in_this_process_is_refused(tmp_path):
    refused = pytest.raises(ResourceError, match=rf"another run is writing .*pid {os.getpid()}")
    with claim(tmp_path), refused, claim(tmp_path):
        pass
    with claim(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused_until_the_first_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                ResourceError, match=rf"pid {holder.pid}\): wait for it, or choose another with --results"
            ),
            claim(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    deadline = time.monotonic() + 5
    while True:  # the system frees the lock a moment after the process is gone
        try:
            with claim(tmp_path):
                return
        except ResourceError:
            assert time.monotonic() < deadline
