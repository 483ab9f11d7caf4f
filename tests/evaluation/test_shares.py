"""Shares of a run, played one by one in any order, and the record that completes them."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import robench
from robench.cli.main import main
from robench.core.errors import ResourceError, UsageError
from robench.core.io import claim, seal
from robench.engine.shares import Deal
from robench.evaluation.options import Options
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import run_all
from robench.records.archive import merge
from robench.records.prune import waste

SUITE = "pgd(steps=2)+square(queries=10)"
FOLDER = Path("digits-Linf-0.13-n12/pgd-at-digits/pgd-steps-2-square-queries-10")


def play(results, share=None, attack=SUITE, **options):
    """The records of a run, and the lines that it prints."""
    lines: list[str] = []
    protocol = choose_protocol(None, "digits", None, 12, [attack])
    settings = Options(results=results, share=share, note=lines.append, **options)
    return list(run_all(["pgd-at-digits"], [attack], protocol, None, settings)), lines


def files(results):
    """The bytes of a record that no clock decides."""
    return {
        path.name: path.read_bytes()
        for path in sorted((results / FOLDER).iterdir())
        if path.suffix != ".json"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    results = tmp_path_factory.mktemp("whole")
    ((record,), _) = play(results, workers=1)
    return record, files(results)


def test_shares_in_any_order_end_in_the_bytes_of_a_whole_run(tmp_path, whole):
    for done, number in enumerate((2, 0, 1), 1):
        records, (line,) = play(tmp_path, (number, 3))
        assert (
            not records and f"share {number + 1}/3 of pgd-at-digits" in line and f"{done} of 3 so far" in line
        )
        assert ("without --share" in line) == (done == 3)
    ((record,), lines) = play(tmp_path)
    assert files(tmp_path) == whole[1] and record.job == whole[0].job
    assert [cost.spec for cost in record.attacks] == [cost.spec for cost in whole[0].attacks]
    assert record.passes == whole[0].passes and any("with 3 shares" in line for line in lines)
    assert not (tmp_path / FOLDER / ".partial").exists()
    # A share of a finished run is answered by its record.
    assert [r.key for r in play(tmp_path, (0, 3))[0]] == [record.key]


def test_shares_that_are_missing_are_played_by_the_run_that_completes_them(tmp_path, whole):
    play(tmp_path, (1, 3))
    ((record,), _) = play(tmp_path, workers=1)
    assert files(tmp_path) == whole[1] and record.passes == whole[0].passes


def test_shares_from_other_disks_may_be_put_together(tmp_path, whole):
    for number in range(2):
        play(tmp_path / str(number), (number, 2))
        shutil.copytree(tmp_path / str(number), tmp_path / "all", dirs_exist_ok=True)
    play(tmp_path / "all", workers=1)
    assert files(tmp_path / "all") == whole[1]


def test_shares_are_merged_from_folders(tmp_path, whole):
    folders = [tmp_path / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        play(folder, (number, 2))
    with claim(folders[1] / FOLDER / ".partial/share-1-of-2"):
        assert [merged.what for merged in merge(folders, tmp_path / "all")] == ["share", "damaged"]
    assert [merged.what for merged in merge(folders, tmp_path / "all")] == ["same", "share"]
    assert [merged.what for merged in merge([tmp_path / "all"], tmp_path / "all")] == []
    # Nothing is left to attack.
    seen = []
    _, lines = play(tmp_path / "all", workers=1, progress=seen.append)
    assert files(tmp_path / "all") == whole[1] and any("with 2 shares" in line for line in lines)
    assert {standing.share for standing in seen} == {1.0}
    assert [merged.what for merged in merge(folders, tmp_path / "all")] == ["same", "same"]


def test_shares_that_are_further_stay_and_foreign_ones_are_named(tmp_path, monkeypatch):
    # However fast the machine, the second attack is shown.
    monkeypatch.setattr("robench.engine.run._SHOW_EVERY", 0.0)

    def interrupt(standing):
        if standing.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "begun", (0, 2), progress=interrupt)
    play(tmp_path / "done", (0, 2))
    play(tmp_path / "three", (1, 3))
    play(tmp_path / "other", (1, 2), batch_size=5)
    into = tmp_path / "all"
    state = into / FOLDER / ".partial/share-0-of-2/state"
    for order in (["begun", "done"], ["done", "begun"]):
        found = [merged.what for merged in merge([tmp_path / name for name in order], into)]
        assert found == (["share", "share"] if order[0] == "begun" else ["same", "same"])
        assert state.read_bytes() == (tmp_path / "done" / state.relative_to(into)).read_bytes()
    for name in ("three", "other"):
        (merged,) = merge([tmp_path / name], into)
        assert (
            merged.what == "damaged" and "is of another run, or of another number of shares" in merged.detail
        )
    damaged = tmp_path / "done" / state.relative_to(into)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (merged,) = merge([tmp_path / "done"], tmp_path / "new")
    assert merged.what == "damaged" and "sha256" in merged.detail


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("origin", b"[]", "origin is not the beginning of a run"),
        ("origin", b'{"origin": "a", "shares": "x"}', "origin is not the beginning of a run"),
        ("origin", b'{"origin": "a", "shares": 2, "deal": [2]}', "origin is not the beginning of a run"),
        ("origin", b'{"origin": "a", "shares": Infinity}', "origin is not the beginning of a run"),
        ("origin", b'{"origin": "a", "shares": 2, "deal": 5}', "origin is not the beginning of a run"),
        ("origin", b"[" * 200_000, "origin is not the beginning of a run"),
        ("share-0-of-2/state", (200_000).to_bytes(8, "little") + b"[" * 200_000, "state is not the state"),
        ("share-0-of-2/state", b"\x16" + bytes(7) + b'{"facts":{"costs":{}}}', "state is not the state"),
        ("share-0-of-2/state", b"\x02" + bytes(7) + b"{}", "state is not the state of a share"),
        ("share-0-of-2/state", b"\xff" * 8, "state is not the state of a share"),
        ("share-0-of-2/state", None, "state is a symbolic link"),
        ("origin", None, "origin is a symbolic link"),
    ],
)
def test_shares_made_up_elsewhere_are_named(tmp_path, name, content, reason):
    play(tmp_path / "from", (0, 2))
    file = tmp_path / "from" / FOLDER / ".partial" / name
    if content is None:
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.write_bytes(seal(content))
    (merged,) = merge([tmp_path / "from"], tmp_path / "all")
    assert merged.what == "damaged" and reason in merged.detail
    assert not list((tmp_path / "all").rglob("state"))


@pytest.fixture
def other_processor(monkeypatch):
    """Switches to a processor whose clean margins deal the images in another way, and back."""
    usual = Deal.of

    def switch(is_other):
        flipped = classmethod(lambda cls, ids, attacks, count, cost: usual(ids, attacks, count, cost.flip(0)))
        monkeypatch.setattr(Deal, "of", flipped if is_other else usual)

    return switch


def test_shares_on_other_processors_have_the_images_that_the_first_one_left_them(
    tmp_path, whole, other_processor
):
    play(tmp_path, (0, 3))
    other_processor(True)
    for number in (1, 2):
        play(tmp_path, (number, 3))
    seen = []
    _, lines = play(tmp_path, progress=seen.append)
    assert files(tmp_path) == whole[1] and {standing.share for standing in seen} == {1.0}
    assert not any("dealt" in line for line in lines)


def test_shares_that_were_dealt_differently_are_refused_or_start_again(tmp_path, whole, other_processor):
    folders = [tmp_path / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        other_processor(number == 1)
        play(folder, (number, 2))
        shutil.copytree(folder, tmp_path / "copied", dirs_exist_ok=True)
    other_processor(False)
    found = list(merge(folders, tmp_path / "merged"))
    assert [merged.what for merged in found] == ["share", "damaged"]
    assert "deals the images differently" in found[1].detail
    for name, count in (("merged", 0), ("copied", 1)):
        ((record,), lines) = play(tmp_path / name, workers=1)
        assert (
            sum("dealt differently" in line and "this share starts again" in line for line in lines) == count
        )
        assert files(tmp_path / name) == whole[1] and record.passes == whole[0].passes


def test_another_split_is_refused_and_loses_nothing(tmp_path):
    play(tmp_path, (0, 3))
    before = sorted((tmp_path / FOLDER).rglob("*"))
    with pytest.raises(ResourceError, match="was started as 3 shares"):
        play(tmp_path, (0, 2))
    # Finished shares are not dropped by a run of other settings, as a machine with another device would be.
    with pytest.raises(
        ResourceError, match="contains shares of a run: it was interrupted under other settings"
    ):
        play(tmp_path, batch_size=5)
    assert sorted((tmp_path / FOLDER).rglob("*")) == before


@pytest.mark.parametrize(
    ("share", "options", "text"),
    [
        ((0, 13), {}, "13 shares of 12 images: expected at most 12$"),
        (
            (0, 3),
            {"attack": "pgd-mi(group=8, steps=2)"},
            "3 shares of 12 images: expected at most 2, because",
        ),
        ((0, 2), {"fresh": True}, "robench results prune"),
        ((0, 2), {"attack": "foolbox:FGSM"}, "of other libraries|foolbox"),
        ((0, 2), {"attack": "corruption(severity=1)"}, "cannot run in shares|corruption"),
    ],
)
def test_what_cannot_be_shared_is_one_line(tmp_path, share, options, text):
    with pytest.raises((UsageError, ResourceError), match=text):
        play(tmp_path, share, **options)
    with pytest.raises(UsageError, match="returns a record"):
        robench.run("pgd-at-digits", SUITE, share=(0, 2), results=tmp_path)


def test_noise_of_torch_gives_one_record_for_any_number_of_workers(tmp_path, monkeypatch):
    """Such noise depends on the batch, so the images are not split: --share is refused, --workers says so."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy.py").write_text(
        "import torch\nfrom robench.defenses import load\n"
        "class Noisy(torch.nn.Module):\n"
        "    stochastic = True\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = load('pgd-at-digits').defense\n"
        "    def forward(self, x):\n        return self.net(x + 0.1 * torch.randn_like(x))\n"
        "build = Noisy\n"
    )
    protocol, notes, rows = choose_protocol(None, None, None, 8), [], []

    def records(**options):
        options = Options(results=tmp_path / "results", fresh=True, note=notes.append, **options)
        return list(run_all(["python:noisy.build"], ["apgd(steps=2)"], protocol, None, options))

    for workers in (1, 2):
        (record,) = records(workers=workers)
        rows.append((record.folder / "samples.parquet").read_bytes())
    assert rows[0] == rows[1]
    assert [note for note in notes if "depends on the batch" in note] == [
        "running in one process: a model whose noise depends on the batch cannot be split"
    ]
    shutil.rmtree(tmp_path / "results")
    with pytest.raises(
        UsageError, match="whose noise depends on the batch cannot run in shares: remove --share"
    ):
        list(
            run_all(
                ["python:noisy.build"],
                ["apgd(steps=2)"],
                protocol,
                None,
                Options(results=tmp_path / "results", share=(0, 2)),
            )
        )


def test_a_share_under_way_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("robench.engine.checkpoint._PATIENCE", 0.1)
    play(tmp_path, (0, 2))
    share = tmp_path / FOLDER / ".partial/share-1-of-2"
    with claim(share):
        with pytest.raises(ResourceError, match="share-1-of-2 is running"):
            play(tmp_path, fresh=True)
        with pytest.raises(ResourceError, match=r"another run is writing .*share-1-of-2"):
            play(tmp_path, (1, 2))
        assert not list(waste(tmp_path))
    assert [each.kind for each in waste(tmp_path)] == ["partial"]


def test_nothing_is_deleted_through_a_link(tmp_path):
    play(tmp_path, (0, 2))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "state").write_bytes(b"mine")
    (tmp_path / FOLDER / ".partial/share-1-of-2").symlink_to(elsewhere)
    for share in (None, (1, 2)):
        with pytest.raises(ResourceError, match="share-1-of-2 is a symbolic link"):
            play(tmp_path, share, workers=1)
    assert [(path.name, path.read_bytes()) for path in elsewhere.iterdir()] == [("state", b"mine")]


def test_a_damaged_share_is_not_counted_and_starts_again(tmp_path, whole):
    play(tmp_path, (0, 2))
    state = tmp_path / FOLDER / ".partial/share-0-of-2/state"
    state.write_bytes(state.read_bytes()[:-1])
    _, (line,) = play(tmp_path, (1, 2))
    assert "1 of 2 so far" in line
    _, lines = play(tmp_path, workers=1)
    assert any("this share starts again" in line for line in lines)
    assert files(tmp_path) == whole[1]


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["run", "--defense", "pgd-at-digits", "--attack", SUITE, "--samples", "12", *arguments])
        return ended.value.code, *capsys.readouterr()

    for share in ("0/3", "4/3", "x", "1"):
        code, _, err = call("--share", share)
        assert code == 2 and f'--share "{share}": expected I/K' in err
    for number in (1, 2):
        code, out, err = call("--share", f"{number}/2")
        assert (code, out) == (0, "") and f"share {number}/2" in err
    code, out, _ = call("--json")
    assert code == 0 and json.loads(out)


@pytest.mark.slow
def test_a_job_array(tmp_path, whole):
    submitit = pytest.importorskip("submitit", reason="submitit is not installed")
    executor = submitit.AutoExecutor(folder=tmp_path / "logs", cluster="local")
    executor.update_parameters(timeout_min=10)
    command = [sys.executable, "-m", "robench", "run", "--defense", "pgd-at-digits", "--attack", SUITE]
    share = submitit.helpers.CommandFunction(
        [*command, "--samples", "12", "--results", str(tmp_path), "--share"]
    )
    for job in executor.map_array(share, ["1/3", "2/3", "3/3"]):
        job.result()
    ((record,), _) = play(tmp_path, workers=1)
    assert files(tmp_path) == whole[1] and record.passes == whole[0].passes
