"""Records on the move: any order of merging leaves the same ones standing, and no kill loses one."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from robench.cli.main import main
from robench.core.errors import ResourceError, UsageError
from robench.core.io import claim
from robench.records.archive import bundles, export, merge
from robench.records.collection import collect
from robench.records.prune import KINDS, prune, waste
from robench.records.record import read_record
from robench.verification.verify import findings
from tests.fabricate import make_run

pytestmark = pytest.mark.usefixtures("short_autoattack")
START = datetime(2026, 1, 2, tzinfo=UTC)


def write(root, minute=0, **changes):
    """A record that was finished in that minute."""
    run = make_run(root, **changes)
    run.write(finished=START + timedelta(minutes=minute))
    return run


def merged(sources, into):
    return [each.what for each in merge(sources, into)]


def standing(root):
    """Place -> bytes of record.json, superseded ones included under their key alone."""
    found = {}
    for path in sorted(root.rglob("record.json")):
        parts = path.relative_to(root).parts[:3]  # protocol, defense, suite
        place = "/".join(parts)
        found.setdefault(place, set()).add(path.read_bytes())
    return found


def current(root):
    return {str(r.folder.relative_to(root)): r.to_dict() for r in collect([root])}


def test_a_record_goes_where_its_content_says_and_a_second_time_nothing_changes(tmp_path):
    run = write(tmp_path / "a")
    shutil.copytree(run.folder, tmp_path / "sent" / "some where")
    assert merged([tmp_path / "sent"], tmp_path / "all") == ["new"]
    assert merged([tmp_path / "sent", tmp_path / "a"], tmp_path / "all") == ["same", "same"]
    place = tmp_path / "all" / "digits-linf" / "mimir-digits" / "autoattack"
    assert read_record(place).to_dict() == read_record(run.folder).to_dict()
    assert all(item.held for item in findings(place, run.judge, run.images))


def test_any_order_of_merging_leaves_the_same_records(tmp_path):
    """Three machines: the same job found otherwise, another checkpoint, and one that both agree on."""
    for i, draw in enumerate((1, 2, 3)):
        write(tmp_path / str(i), minute=i % 2, draw=draw)
        write(tmp_path / str(i), defense="agreed")
    outcomes = []
    for order in itertools.permutations("012"):
        into = tmp_path / ("all" + "".join(order))
        merged([tmp_path / name for name in order], into)
        outcomes.append((current(into), {k: len(v) for k, v in standing(into).items()}))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert outcomes[0][1] == {"digits-linf/mimir-digits/autoattack": 3, "digits-linf/agreed/autoattack": 1}
    latest = outcomes[0][0]["digits-linf/mimir-digits/autoattack"]
    assert latest["finished"] == "2026-01-02T00:01:00Z"


def test_a_conflict_is_named_and_both_records_are_kept(tmp_path):
    write(tmp_path / "old", minute=0, draw=1)
    write(tmp_path / "new", minute=5, draw=2)
    (found,) = merge([tmp_path / "new"], tmp_path / "old")
    assert found.what == "newer" and "another dataset" in found.detail
    assert [each.what for each in merge([tmp_path / "new"], tmp_path / "old")] == ["same"]
    write(tmp_path / "older", minute=-5, draw=3)
    (found,) = merge([tmp_path / "older"], tmp_path / "old")
    assert found.what == "older"
    # Nothing piles up: what is kept aside already is known.
    assert [each.what for each in merge([tmp_path / "older"], tmp_path / "old")] == ["same"]
    assert len(list((tmp_path / "old").rglob("superseded/*/record.json"))) == 2


def test_the_runs_of_a_diagnosis_stay_with_it(tmp_path):
    run = write(tmp_path / "a")
    for threat in ("one", "other"):
        own = tmp_path / "a" / "digits-linf" / "mimir-digits" / "diagnosis" / "runs" / threat
        shutil.copytree(run.folder, own)
    assert merged([tmp_path / "a"], tmp_path / "all") == ["new"]
    assert len(list(bundles(tmp_path / "a"))) == 1


def damage(run, file="samples.parquet"):
    with (run.folder / file).open("ab") as opened:
        opened.write(b"x")


def test_a_damaged_record_is_named_and_left_out_and_the_others_come(tmp_path):
    damage(write(tmp_path / "a", defense="bad"))
    write(tmp_path / "a", defense="good")
    (write(tmp_path / "a", defense="lacking").folder / "adversarials.safetensors").unlink()
    found = {each.source.split("/")[-2]: each for each in merge([tmp_path / "a"], tmp_path / "all")}
    assert {name: each.what for name, each in found.items()} == {
        "bad": "damaged",
        "good": "new",
        "lacking": "damaged",
    }
    assert found["bad"].detail.startswith("files.samples.parquet: the record says ")
    assert "adversarials.safetensors" in found["lacking"].detail
    assert len(collect([tmp_path / "all"])) == 1


def test_an_unreadable_record_gives_way(tmp_path):
    run = write(tmp_path / "a")
    place = tmp_path / "all" / run.folder.relative_to(tmp_path / "a")
    place.mkdir(parents=True)
    (place / "record.json").write_text("{")
    assert merged([tmp_path / "a"], tmp_path / "all") == ["newer"]
    assert (place / "superseded" / "unreadable" / "record.json").read_text() == "{"


def test_an_archive_is_the_same_again_and_merges_elsewhere(tmp_path):
    run = write(tmp_path / "a")
    write(tmp_path / "a", defense="other")
    places, left_out = export([tmp_path / "a"], tmp_path / "one.zip")
    assert not left_out
    export([tmp_path / "a"], tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert places == ["digits-linf/mimir-digits/autoattack", "digits-linf/other/autoattack"]
    assert merged([tmp_path / "one.zip"], tmp_path / "b") == ["new", "new"]
    assert all(item.held for item in findings(tmp_path / "b" / places[0], run.judge, run.images))
    export([tmp_path / "a"], tmp_path / "folder")
    assert merged([tmp_path / "folder"], tmp_path / "b") == ["same", "same"]
    assert "robench verify" in (tmp_path / "folder" / "README.txt").read_text()


def test_an_archive_says_neither_where_files_go_nor_what_they_are_called(tmp_path):
    run = write(tmp_path / "a")
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        for path in run.folder.iterdir():
            archive.write(path, f"../../outside/{path.name}")
        archive.writestr("../../outside/extra.sh", "echo")
    merged([evil], tmp_path / "in" / "all")
    content = json.loads((run.folder / "record.json").read_text())
    content["files"]["../escaped"] = "0" * 64
    (run.folder / "record.json").write_text(json.dumps(content))
    (found,) = merge([tmp_path / "a"], tmp_path / "in" / "all")
    assert found.what == "damaged" and "files.../escaped is not a file of a record" in found.detail
    assert not (tmp_path / "outside").exists() and not list(tmp_path.rglob("extra.sh"))
    (found,) = merge([run.folder / "samples.parquet"], tmp_path / "in")
    assert found.what == "damaged" and "not an archive of records" in found.detail


@pytest.mark.parametrize(
    "name", ["certification.json", "bounds.parquet", "diagnosis.json", "superseded", "record.json", ".lock"]
)
def test_a_record_brings_no_file_of_another_kind(tmp_path, name):
    """Its digest is right, but boards or later merges would take the file for something else."""
    run = write(tmp_path / "a")
    (run.folder / name).write_bytes(b"{}" if name != "record.json" else (run.folder / name).read_bytes())
    content = json.loads((run.folder / "record.json").read_text())
    content["files"][name] = hashlib.sha256(b"{}").hexdigest()
    (run.folder / "record.json").write_text(json.dumps(content))
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for path in run.folder.iterdir():
            archive.write(path, f"p/d/s/{path.name}")
    for source in (tmp_path / "evil.zip", tmp_path / "a"):
        (found,) = merge([source], tmp_path / "all")
        assert found.what == "damaged" and f"files.{name} is not a file of a record" in found.detail
    found = collect([tmp_path / "a"])
    assert not found.records and f"files.{name} is not a file of a record" in found.left_out[0].reason
    assert not (tmp_path / "all").exists()


def test_an_export_to_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    write(tmp_path / "a")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="no space left"):
            export([tmp_path / "a"], tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_export_refuses_what_others_could_not_check(tmp_path):
    run = write(tmp_path / "a")
    write(tmp_path / "b", draw=4)
    with pytest.raises(UsageError, match="two records belong in digits-linf/mimir-digits/autoattack"):
        export([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    damage(run)
    with pytest.raises(ResourceError, match=r"files\.samples\.parquet"):
        export([tmp_path / "a"], tmp_path / "c")
    with pytest.raises(ResourceError, match="already exists"):
        export([tmp_path / "b"], tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResourceError, match="no records in"):
        export([tmp_path / "empty"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


KILLED = """
import shutil
import sys
from pathlib import Path
from robench.records.archive import merge
first, second, into, gone = map(Path, sys.argv[1:])
print("begun", flush=True)
while True:
    for each in merge([first, second], into):
        pass
    # Out of sight at once: a kill inside rmtree would leave a record with half of its files, and no merge made it.
    into.rename(gone)
    shutil.rmtree(gone)
"""


def test_a_killed_merge_leaves_whole_records_and_goes_on(tmp_path):
    for name, draw in (("a", 1), ("b", 2)):
        for defense in ("one", "two"):
            write(tmp_path / name, minute=draw, draw=draw, defense=defense)
    into = tmp_path / "all"
    merged([tmp_path / "a", tmp_path / "b"], tmp_path / "expected")
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED, *(str(tmp_path / name) for name in ("a", "b", "all", "gone"))],
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None and worker.stdout.readline() == b"begun\n"
    time.sleep(0.05 + (os.getpid() % 10) / 40)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    if into.exists():
        assert not [found for _, found in bundles(into) if isinstance(found, str)]
    merged([tmp_path / "a", tmp_path / "b"], into)
    assert current(into) == current(tmp_path / "expected")


@pytest.mark.parametrize("after", range(9))
def test_an_interruption_at_any_step_loses_neither_record(tmp_path, monkeypatch, after):
    old, new = write(tmp_path / "all", minute=0, draw=1), write(tmp_path / "b", minute=1, draw=2)
    first = (old.folder / "record.json").read_bytes()
    steps = iter(range(after))

    class Killed(BaseException):
        pass

    def counted(name):
        real = getattr(Path, name)

        def step(self, *arguments, **options):
            cleaning = name == "unlink" and self.name.endswith((".tmp", ".lock"))
            if not cleaning and next(steps, None) is None:
                raise Killed
            return real(self, *arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for name in ("replace", "rename", "unlink"):
            patch.setattr(Path, name, counted(name))
        try:
            merged([tmp_path / "b"], tmp_path / "all")
        except Killed:
            assert after < 7
        else:
            assert after >= 7
    assert first in {path.read_bytes() for path in old.folder.rglob("record.json")}
    merged([tmp_path / "b"], tmp_path / "all")
    assert read_record(old.folder).to_dict() == read_record(new.folder).to_dict()
    assert first in {path.read_bytes() for path in (old.folder / "superseded").rglob("record.json")}


def leftovers(root):
    """A folder with one of everything: an interrupted run, a superseded record, what kills left behind."""
    write(root, draw=1)
    run = write(root, draw=2)
    (run.folder / ".partial").mkdir()
    (run.folder / ".partial" / "state.safetensors").write_bytes(b"x" * 1000)
    (run.folder / ".record.json.abc.tmp").write_bytes(b"y" * 10)
    (run.folder / "superseded" / ".xyz.partial").mkdir()
    (run.folder / "superseded" / "half").mkdir()
    (run.folder / "superseded" / "half" / "samples.parquet").write_bytes(b"z" * 5)
    return run


def test_prune_takes_what_is_no_record_and_nothing_else(tmp_path):
    run = leftovers(tmp_path)
    before = {
        path.name: path.read_bytes()
        for path in run.folder.iterdir()
        if path.is_file() and path.name[0] != "."
    }
    found = {(each.kind, each.path.name): each.size for each in waste(tmp_path)}
    assert found[("partial", ".partial")] == 1000 and found[("temporary", ".record.json.abc.tmp")] == 10
    assert {kind for kind, _ in found} == set(KINDS) and len(found) == 5
    assert [each.kind for each in waste(tmp_path, ["superseded"])] == ["superseded"]
    prune(waste(tmp_path))
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    assert not list(waste(tmp_path))


@pytest.mark.parametrize("root", ["superseded", "results/superseded", "results", "results/p"])
def test_prune_leaves_a_folder_of_records_that_is_called_superseded(tmp_path, root):
    """Only in the folder of a record does the name say that a result was replaced."""
    write(tmp_path / root, draw=1)
    write(tmp_path / root, defense="superseded")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for place in (tmp_path, tmp_path / root, tmp_path / root / "digits-linf" / "superseded"):
        assert not list(waste(place))
    leftovers(tmp_path / root)
    prune(waste(tmp_path))
    assert set(before) <= set(tmp_path.rglob("*")) and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("beside", ["certification.json", ".partial/state"])
def test_prune_takes_what_a_certification_or_an_unfinished_run_superseded(tmp_path, beside):
    (tmp_path / "p" / beside).parent.mkdir(parents=True)
    (tmp_path / "p" / beside).write_bytes(b"{}")
    old = tmp_path / "p" / "superseded" / "0123abcd" / "certification.json"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"{}")
    assert ("superseded", old.parent) in {(each.kind, each.path) for each in waste(tmp_path)}


def test_what_a_run_is_writing_stays(tmp_path):
    run = leftovers(tmp_path)
    with claim(run.folder):
        assert not list(waste(tmp_path))
    assert list(waste(tmp_path))


def test_links_are_not_followed(tmp_path):
    leftovers(tmp_path / "elsewhere")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "results" / ".partial").symlink_to(tmp_path / "elsewhere")
    assert not list(waste(tmp_path / "results"))


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["results", *map(str, arguments)])
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def test_the_commands_say_what_they_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = leftovers(tmp_path / "results")
    code, out, _ = command(capsys, "prune", "--dry-run")
    assert (
        code == 0
        and out.splitlines()[-1].startswith("5 would be removed")
        and (run.folder / ".partial").exists()
    )
    assert "partial     0.977 KiB  results/digits-linf/mimir-digits/autoattack/.partial" in out.splitlines()
    code, out, _ = command(capsys, "prune", "--only", "partial,temporary")
    assert out.splitlines()[-1].startswith("4 removed") and (run.folder / "superseded").exists()
    code, out, _ = command(capsys, "export", "results", "--output", "mine.zip")
    assert code == 0 and out.splitlines() == ["digits-linf/mimir-digits/autoattack", "1 records: mine.zip"]
    code, out, _ = command(capsys, "merge", "mine.zip", "--into", "other")
    assert (code, out.splitlines()) == (0, ["new      other/digits-linf/mimir-digits/autoattack", "1 new"])
    damage(run)
    code, out, err = command(capsys, "merge", "results", "--into", "other")
    assert code == 1 and "damaged  results/digits-linf" in out and "1 of 1 records are damaged" in err
    for arguments, said in (
        (("merge", "nowhere"), "nowhere: No such file"),
        (("prune", "--only", "all"), 'unknown kind "all": expected one of partial, superseded, temporary'),
        (("prune", "nowhere"), "nowhere: no such folder"),
    ):
        code, _, err = command(capsys, *arguments)
        assert code in (2, 3) and said in err and "Traceback" not in err
