"""Planted links, pipes and devices are not written through, waited for or followed."""

import errno
import json
import os
import stat
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robench.cli.main import main
from robench.core.errors import ResourceError
from robench.core.io import (
    claim,
    is_claimed,
    read_ordinary,
    refuse_link,
    write_file,
    write_quickly,
    write_whole,
)
from robench.corruption.cache import Cache
from robench.engine.checkpoint import FolderStore
from robench.records.archive import export, merge
from robench.records.prune import prune, waste
from robench.records.store import PARTIAL, supersede
from robench.training.partial import check_writable
from tests.fabricate import make_run

SECRET = "what the owner keeps here"


@pytest.fixture
def victim(tmp_path):
    """A file of the user, which must not change."""
    file = tmp_path / "elsewhere" / "victim"
    file.parent.mkdir()
    file.write_text(SECRET)
    yield file
    assert file.read_text() == SECRET and [each.name for each in file.parent.iterdir()] == ["victim"]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    made.mkdir()
    return made


def plant(kind, path, victim):
    """Something at `path` that is not a file of robench."""
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(victim.parent / "new")
    elif kind == "hard":
        os.link(victim, path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/full")
    elif kind == "file":
        path.write_text(SECRET)
    else:
        path.mkdir()


KINDS = ("link", "dangling", "hard", "pipe", "device", "file", "folder")


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_lock_is_refused(kind, folder, victim):
    plant(kind, folder / ".lock", victim)
    before = (folder / ".lock").lstat()
    assert not is_claimed(folder)
    with pytest.raises(ResourceError, match=r"cannot write|is no lock"), claim(folder):
        pass
    assert (folder / ".lock").lstat().st_ino == before.st_ino and (
        folder / ".lock"
    ).lstat().st_size == before.st_size


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_lock_in_a_folder_that_is_pruned(kind, tmp_path, folder, victim, capsys):
    run = make_run(folder)
    run.write()
    (run.folder / ".record.json.x.tmp").write_text("left behind")
    plant(kind, run.folder / ".lock", victim)
    before = tree(folder)
    for extra in (["--dry-run"], []):
        with pytest.raises(SystemExit) as end:
            main(["results", "prune", str(folder), *extra])
        assert end.value.code == 0 and "1 " in capsys.readouterr().out
        if extra:
            assert tree(folder) == before
    assert not (run.folder / ".record.json.x.tmp").exists()


def tree(folder):
    """Every path below the folder, with the properties that a write would change."""
    return {
        path: (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        for facts in [path.lstat()]
    }


def test_a_dry_run_changes_nothing_and_detects_a_running_run(folder):
    run = make_run(folder)
    run.write()
    (run.folder / PARTIAL).mkdir()
    before = tree(folder)
    assert [each.kind for each in waste(folder)] == ["partial"] and tree(folder) == before
    with claim(run.folder):
        assert is_claimed(run.folder) and not list(waste(folder))
    assert not is_claimed(run.folder) and not (run.folder / ".lock").exists()


def test_the_lock_of_a_killed_run_is_reused(folder):
    for left in ("", "12345", "9" * 19):
        (folder / ".lock").write_text(left)
        with claim(folder):
            assert (folder / ".lock").read_text() == str(os.getpid())


@given(st.binary(max_size=40))
def test_other_files_are_not_used_as_locks(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("lock")
    (folder / ".lock").write_bytes(content)
    if len(content) <= 20 and (not content or content.isdigit()):
        with claim(folder):
            return
    with pytest.raises(ResourceError, match="not a lock file of robench"), claim(folder):
        pass
    assert (folder / ".lock").read_bytes() == content


@pytest.mark.parametrize("kind", ["link", "dangling", "hard", "pipe", "device"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path.parent, {path.name: b"new"}),
        lambda path: write_quickly(path, b"new"),
        lambda path: write_file(path, b"new"),
    ],
)
def test_writing_replaces_a_link(kind, write, folder, victim):
    path = folder / "file"
    plant(kind, path, victim)
    # Names that an attacker could guess.
    for name in (".file.tmp", f".file.{os.getpid()}.tmp", f".file.{os.getpid()}.probe"):
        plant("link", folder / name, victim)
    write(path)
    check_writable(path)
    facts = path.lstat()
    assert (
        stat.S_ISREG(facts.st_mode) and path.read_bytes() == b"new" and stat.S_IMODE(facts.st_mode) == 0o644
    )


def test_the_cache_does_not_write_through_a_link(folder, victim):
    plant("link", folder / ".size", victim)
    plant("link", folder / ".lock", victim)
    assert not Cache(folder).put("a" * 64, b"content")  # the cache is optional
    (folder / ".lock").unlink()
    assert Cache(folder).put("a" * 64, b"content") and Cache(folder).get("a" * 64) == b"content"


def test_links_to_folders_are_refused(folder, victim, tmp_path):
    run = make_run(folder)
    run.write()
    (run.folder / "superseded").symlink_to(victim.parent)
    with pytest.raises(ResourceError, match="symbolic link"):
        supersede(run.folder)
    (run.folder / PARTIAL).symlink_to(victim.parent)
    with pytest.raises(ResourceError, match="symbolic link"):
        FolderStore(run.folder / PARTIAL, "key").begin("now")
    (folder / "linked").symlink_to(victim.parent)
    with pytest.raises(ResourceError, match="symbolic link"), claim(folder / "linked"):
        pass
    refuse_link(victim.parent)
    list(waste(folder))
    prune(waste(folder))


def test_pages_are_not_written_or_cleared_through_a_link(folder, victim, tmp_path, capsys):
    make_run(folder).write()
    page = tmp_path / "page"

    def build():
        with pytest.raises(SystemExit) as end:
            main(["board", str(folder), "--format", "html", "--output", str(page)])
        return end.value.code, capsys.readouterr().err

    assert build()[0] == 0
    for name in ("defense", "pictures"):
        (page / name).rename(tmp_path / f"{name}-before")
        (page / name).symlink_to(victim.parent)
        code, err = build()
        assert code == 3 and "symbolic link" in err
        (page / name).unlink()
    (page / "index.html").rename(tmp_path / "index.html")
    (page / "index.html").symlink_to(tmp_path / "index.html")
    before = (tmp_path / "index.html").read_text()
    make_run(folder, draw=1, defense="pgd-at-digits").write()
    assert build()[0] == 0 and (tmp_path / "index.html").read_text() == before


@pytest.mark.parametrize("name", ["record.json", "samples.parquet", "adversarials.safetensors"])
def test_pipes_and_devices_in_place_of_a_record_do_not_block(name, folder, victim, capsys):
    run = make_run(folder)
    run.write()
    for kind in ("pipe", "device", "folder"):
        (run.folder / name).rename(folder.parent / "kept")
        plant(kind, run.folder / name, victim)
        for command in (
            ["verify", str(run.folder)],
            ["results", "merge", str(folder), "--into", str(folder / "i")],
        ):
            with pytest.raises(SystemExit) as end:
                main(command)
            assert end.value.code in (1, 2, 3) and "Traceback" not in capsys.readouterr().err
        (run.folder / name).rmdir() if kind == "folder" else (run.folder / name).unlink()
        (folder.parent / "kept").rename(run.folder / name)
    with pytest.raises(OSError, match="not a regular file") as caught:
        os.mkfifo(folder / "pipe")
        read_ordinary(folder / "pipe")
    assert caught.value.errno == errno.EINVAL


def test_an_archive_only_writes_to_the_folders_of_its_records(folder, tmp_path):
    run = make_run(folder)
    run.write()
    export([folder], tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "good.zip") as good:
        contents = {name.rpartition("/")[2]: good.read(name) for name in good.namelist() if "/" in name}
    record = json.loads(contents["record.json"])
    names = ["../../up", "/absolute", "a/../../../up", "..", ".", "", "C:\\up", "\\\\up", "~"]
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as bad:
        for number, name in enumerate(names):
            # The path in the archive, the fields of the record, and the names of its files.
            for prefix in (f"{name}/", f"ok{number}/"):
                for field in ("protocol", "suite", "defense", "files"):
                    changed = json.loads(json.dumps(record))
                    if field == "files":
                        changed["files"][f"{name}/evil"] = "0" * 64
                    elif field == "protocol":
                        changed[field] = name
                    else:
                        changed[field]["name"] = name
                    inside = f"{prefix}{field}/"
                    bad.writestr(f"{inside}record.json", json.dumps(changed))
                    for file in ("samples.parquet", "adversarials.safetensors"):
                        bad.writestr(f"{inside}{file}", contents[file])
        link = zipfile.ZipInfo("link/record.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        bad.writestr(link, "/etc/passwd")
    into = tmp_path / "deep" / "into"
    before = tree(tmp_path)
    done = list(merge([archive], into))
    assert any(each.what == "damaged" for each in done)
    new = [path for path in tree(tmp_path) if path not in before]
    assert all(path == into.parent or path == into or into in path.parents for path in new)
    assert not any(path.is_symlink() for path in into.rglob("*"))
    assert {path.name for path in into.rglob("*") if path.is_file()} <= {
        "record.json", "samples.parquet", "adversarials.safetensors",
    }  # fmt: skip
