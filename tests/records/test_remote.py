"""Results on other file systems: run, resume, read and prune them by URL."""

from pathlib import Path

import fsspec
import pytest

import robench
from robench.cli.main import main
from robench.core.errors import ResourceError
from robench.records import remote
from robench.records.collection import collect
from robench.records.remote import RemoteFolder, local_copy, shown
from tests.certification.cases import write_images

SUITE = "pgd(steps=2)+square(queries=10)"
PLACE = "digits-Linf-0.13-n12/pgd-at-digits/pgd-steps-2-square-queries-10"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    return "memory://bucket/results" if request.param == "memory" else f"file://{tmp_path}/elsewhere"


def another_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path / "another cache"))


def run(url, **options):
    return robench.run(
        "pgd-at-digits", SUITE, dataset="digits", samples=12, results=url, workers=1, **options
    )


def names(url):
    files, root = fsspec.url_to_fs(url)
    return {str(path)[len(root) :].lstrip("/") for path in files.find(root)} if files.exists(root) else set()


def test_a_record_is_written_read_and_reused(url, tmp_path, monkeypatch):
    record = run(url)
    expected = {f"{PLACE}/{name}" for name in ("record.json", "samples.parquet", "adversarials.safetensors")}
    assert names(url) == expected
    assert shown(record.folder) == f"{url}/{PLACE}"
    another_machine(monkeypatch, tmp_path)
    lines = []
    again = run(url, note=lines.append)
    assert again.key == record.key and any(
        f"using the saved record in {url}/{PLACE}" in line for line in lines
    )
    assert [read.key for read in collect([url])] == [record.key]


def test_an_interrupted_run_resumes_on_another_machine(url, tmp_path, monkeypatch):
    monkeypatch.setattr("robench.engine.run._SHOW_EVERY", 0)

    def interrupt(progress):
        if progress.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(url, progress=interrupt)
    assert f"{PLACE}/.partial/state" in names(url) and f"{PLACE}/record.json" not in names(url)
    another_machine(monkeypatch, tmp_path)
    lines = []
    record = run(url, note=lines.append)
    assert any(line == f"resuming from {url}/{PLACE}/.partial" for line in lines)
    assert not [name for name in names(url) if ".partial" in name]
    whole = run(str(tmp_path / "local"))
    for name in ("samples.parquet", "adversarials.safetensors"):
        assert (record.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_the_state_is_sent_while_the_run_goes_on(url, monkeypatch):
    """So that a kill loses little."""
    monkeypatch.setattr("robench.engine.run._SHOW_EVERY", 0)
    monkeypatch.setattr("robench.engine.checkpoint._INTERVAL", 0)
    monkeypatch.setattr("robench.engine.checkpoint._RATIO", 0)
    monkeypatch.setattr(remote, "_INTERVAL", 0)
    seen = []
    run(url, progress=lambda progress: seen.append(f"{PLACE}/.partial/state" in names(url)))
    assert seen[-1]


def test_a_newer_copy_is_not_overwritten_after_a_kill(url):
    folder = RemoteFolder(url)
    place = folder.local / "a"
    place.mkdir(parents=True)
    (place / "state").write_bytes(b"old")
    folder.push(place)
    # The run goes on and is killed before it sends this.
    (place / "state").write_bytes(b"newer")
    RemoteFolder(url).pull(place)
    assert (place / "state").read_bytes() == b"newer"


def test_what_another_machine_has_changed_or_deleted_arrives(url, tmp_path, monkeypatch):
    one = RemoteFolder(url)
    for name in ("x", "y"):
        (one.local / "a").mkdir(parents=True, exist_ok=True)
        (one.local / "a" / name).write_bytes(b"1")
    one.push()
    another_machine(monkeypatch, tmp_path)
    other = RemoteFolder(url)
    other.pull()
    (other.local / "a/x").unlink()
    (other.local / "a/y").write_bytes(b"22")
    other.push()
    one.pull()
    assert not (one.local / "a/x").exists() and (one.local / "a/y").read_bytes() == b"22"


def test_names_that_leave_the_folder_are_refused(monkeypatch):
    folder = RemoteFolder("memory://bucket/results")
    monkeypatch.setattr(folder.files, "find", lambda place: ["/bucket/results/../../evil"], raising=False)
    monkeypatch.setattr(folder.files, "exists", lambda place: True, raising=False)
    with pytest.raises(ResourceError, match=r"\.\./\.\./evil"):
        folder.pull()


def test_commands_take_urls(url, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, *capsys.readouterr()

    command = ["run", "--defense", "pgd-at-digits", "--attack", SUITE, "--samples", "12", "--workers", "1"]
    code, out, err = call(*command, "--results", url)
    assert code == 0 and f"record: {url}/{PLACE}" in out and "cache" not in out + err
    code, out, _ = call("board", url)
    assert code == 0 and "pgd-at-digits" in out
    code, out, _ = call("verify", f"{url}/{PLACE}")
    assert code == 0 and "cache" not in out
    code, out, _ = call("results", "merge", url, "--into", "merged")
    assert code == 0 and (tmp_path / "merged" / PLACE / "record.json").is_file()
    code, _, _ = call("results", "merge", "merged", "--into", f"{url}-2")
    assert code == 0 and f"{PLACE}/record.json" in names(f"{url}-2")


def test_prune_removes_what_an_interrupted_run_has_left(url, capsys, monkeypatch, tmp_path):
    folder = RemoteFolder(url)
    place = folder.local / PLACE / ".partial"
    place.mkdir(parents=True)
    (place / "state").write_bytes(b"x")
    folder.push()
    another_machine(monkeypatch, tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["results", "prune", url])
    assert not ended.value.code and "1 removed" in capsys.readouterr().out and not names(url)


def test_a_missing_package_is_one_line(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(
        ResourceError, match=r"^s3://bucket/results: Install s3fs to access S3: pip install s3fs$"
    ):
        run("s3://bucket/results")


@pytest.mark.parametrize("place", ["nonsense://bucket/results", "http://127.0.0.1:1/results"])
def test_a_place_that_cannot_be_used_is_one_line(place):
    with pytest.raises(ResourceError, match=f"^{place}: ") as raised:
        run(place)
    assert "\n" not in str(raised.value)


def test_ordinary_folders_stay_as_they_are(tmp_path):
    assert local_copy(tmp_path) == tmp_path and local_copy("results") == Path("results")
    assert shown(tmp_path) == str(tmp_path)


def test_a_hidden_file_of_a_stranger_does_not_redirect_results(url, tmp_path):
    """The copy's own files are never brought: a remote `.url` would make later results go to its place."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    files, root = fsspec.url_to_fs(url)
    for name in (".url", ".synced.json", f"{PLACE}/.lock", ".hidden/record.json"):
        files.makedirs(str(Path(f"{root}/{name}").parent), exist_ok=True)
        files.pipe_file(f"{root}/{name}", f"file://{victim}".encode())
    record = run(url)
    assert remote.remote_of(record.folder).url == url
    collect([url])
    assert [path.name for path in victim.rglob("*")] == ["kept"]
    assert (local_copy(url) / ".url").read_text() == url and not (local_copy(url) / ".hidden").exists()


def test_a_certification_is_sent_and_reused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "own.npz")
    settings = {"dataset": "npz:own.npz(classes=2)", "samples": 4, "attack": None, "results": url}
    defense, method = "smoothed+python:tests.certification.cases.linear", "smoothing(draws=20, selection=5)"
    made = robench.certify(defense, method, **settings)
    assert {Path(name).name for name in names(url)} == {"certification.json", "bounds.parquet"}
    another_machine(monkeypatch, tmp_path)
    again = robench.certify(defense, method, **settings)
    assert again.finished == made.finished and len(collect([url]).certifications) == 1


def test_commands_use_the_url_of_the_environment(url, tmp_path, monkeypatch, capsys):
    run(url)
    monkeypatch.setenv("ROBENCH_RESULTS", url)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert command("board", "--format", "html", "--no-pictures") == "1 records: board/index.html\n"
    assert (tmp_path / "board" / "index.html").is_file()
    changed = remote.local_copy(url) / PLACE / "notes.txt"
    changed.write_text("changed by the command")
    assert "0 of 1 records migrated" in command("results", "migrate")
    assert f"{PLACE}/notes.txt" in names(url)
    assert str(tmp_path / "cache" / "remote") in command("doctor", "--quick")
