"""State that was damaged, exchanged or left by another release is noticed: the run says so and ends as if whole."""

import json
import shutil

import pytest
import torch
from torch import nn

from robench.certification.run import RowwiseRun
from robench.core.io import read_sealed, seal
from robench.engine import checkpoint, corruption_run
from robench.engine.checkpoint import FolderStore, Saved
from robench.engine.run_state import RunState
from robench.engine.setup import Setup
from tests.combinations import each_once
from tests.engine import test_promises
from tests.engine.test_corruption_run import CELLS, CPU, some
from tests.engine.test_workers import same
from tests.models import small_net

MADE_BY = {"robench": "1 (aa)", "torch": "2", "device": "cpu"}


@pytest.fixture(autouse=True)
def saves_after_every_question(monkeypatch):
    monkeypatch.setattr(checkpoint, "_INTERVAL", 0)
    monkeypatch.setattr(checkpoint, "_RATIO", 0)
    monkeypatch.setattr("robench.engine.run._SHOW_EVERY", 0)
    # One attempt, so that the files have names to damage.
    monkeypatch.setattr(checkpoint, "new_attempt", lambda: "0a1b2c3d")


# Short, with images found in the first attack and rows under way in the second.
SHORT = {"specs": "pgd(steps=4)+apgd(steps=8)", "n": 12, "lanes": 4}


def play(**options):
    return test_promises.play(**{**SHORT, **options})


def interrupted(folder, workers=1, seed=0, key="key", **options):
    """A run that was stopped in its second attack, with images found in the first."""

    def stop(standing):
        if standing.index:
            raise KeyboardInterrupt

    kept = FolderStore(folder, key, MADE_BY)
    kept.begin("then")
    with pytest.raises(KeyboardInterrupt):
        play(workers=workers, seed=seed, store=kept, progress=stop, **options)
    assert list(folder.rglob("found-*"))
    return kept


def resumed(folder, workers=1, key="key", made_by=MADE_BY, **options):
    """What the run ends in, and the lines that it says."""
    lines = []
    kept = FolderStore(folder, key, made_by, lines.append)
    kept.begin("now")
    return play(workers=workers, store=kept, note=lines.append, **options), lines


@pytest.fixture(scope="module")
def whole():
    return play()


def flip(place):
    def damage(file):
        data = bytearray(file.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        file.write_bytes(data)

    return damage


DAMAGES = [
    *(flip(i / 20) for i in range(21)),
    lambda file: file.write_bytes(file.read_bytes()[:-1]),
    lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    lambda file: file.write_bytes(b""),
    lambda file: file.unlink(),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["state", "found-0a1b2c3d-0000.safetensors", "found-0a1b2c3d-0001.safetensors", "origin"]
)
def test_every_damage_is_noticed_and_said_in_one_line(tmp_path, damage, name):
    kept = FolderStore(tmp_path, "key", MADE_BY)
    kept.begin("then")
    for attack in range(2):
        kept.save({"x": torch.rand(9)}, {"seconds": 1.5}, attack, {3: torch.rand(3, 4, 4)})
    damage(tmp_path / name)
    lines = []
    again = FolderStore(tmp_path, "key", MADE_BY, lines.append)
    assert again.begin("now") == ("now" if name == "origin" else "then")
    assert again.resumes == (name == "origin") and len(lines) == 1
    assert str(tmp_path) in lines[0] and name in lines[0]
    assert ("the run is resumed" if name == "origin" else "starts again") in lines[0]
    # And once only.
    assert again.resumes == (name == "origin") and len(lines) == 1


@pytest.mark.parametrize(
    ("damage", "name", "workers"),
    each_once([flip(0.5), DAMAGES[-1]], ["state", "found-0a1b2c3d-0000.safetensors"], [1, 2]),
)
def test_a_damaged_part_is_played_again(tmp_path, whole, damage, name, workers):
    interrupted(tmp_path, workers)
    file = sorted(tmp_path.rglob(name))[-1]
    damage(file)
    outcome, lines = resumed(tmp_path, workers)
    assert len(lines) == 1 and name in lines[0] and str(file.parent) in lines[0]
    same(outcome, whole)


def test_nothing_is_said_of_a_state_that_is_whole(tmp_path, whole):
    interrupted(tmp_path)
    outcome, lines = resumed(tmp_path)
    assert not lines
    same(outcome, whole)


@pytest.mark.parametrize("name", ["state", "found-0a1b2c3d-0000.safetensors"])
def test_files_of_another_run_are_not_taken_for_its_own(tmp_path, whole, name):
    mine, other = tmp_path / "mine", tmp_path / "other"
    interrupted(mine)
    interrupted(other, seed=1, key="other")
    shutil.copy(other / name, mine / name)
    outcome, lines = resumed(mine)
    assert len(lines) == 1 and str(mine) in lines[0]
    same(outcome, whole)


@pytest.mark.parametrize("name", ["state", "found-0a1b2c3d-0000.safetensors", ""])
def test_shares_that_were_exchanged_are_played_again(tmp_path, whole, name):
    interrupted(tmp_path, workers=2)
    one, other = tmp_path / "share-0-of-2" / name, tmp_path / "share-1-of-2" / name
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    outcome, lines = resumed(tmp_path, workers=2)
    assert len(lines) == 2 and all("this share starts again" in line for line in lines)
    same(outcome, whole)


def test_a_share_that_is_gone_is_played_again(tmp_path, whole):
    interrupted(tmp_path, workers=2)
    shutil.rmtree(tmp_path / "share-0-of-2")
    outcome, _ = resumed(tmp_path, workers=2)
    same(outcome, whole)


@pytest.mark.parametrize(("began", "now"), [(1, 3), (2, 1), (3, 2)])
def test_a_resumed_run_keeps_its_shares(tmp_path, whole, began, now):
    interrupted(tmp_path, began)
    outcome, lines = resumed(tmp_path, now)
    assert lines == [f"resuming with {began} share{'s' * (began != 1)}, as in the interrupted run"]
    same(outcome, whole)


@pytest.mark.parametrize("name", MADE_BY)
def test_releases_and_devices_are_never_mixed(tmp_path, whole, name):
    interrupted(tmp_path)
    outcome, lines = resumed(tmp_path, made_by=MADE_BY | {name: "other"})
    (line,) = lines
    assert f"interrupted under {name} {MADE_BY[name]} (now other); the run starts again" in line
    same(outcome, whole)


def test_other_settings_start_over(tmp_path, whole):
    interrupted(tmp_path, key="another")
    outcome, (line,) = resumed(tmp_path)
    assert "interrupted under other settings" in line
    same(outcome, whole)


def test_what_a_release_without_checksums_left_is_dropped(tmp_path, whole):
    (tmp_path / "state.safetensors").write_bytes(b"of old")
    outcome, (line,) = resumed(tmp_path)
    assert "nothing that this release can resume" in line
    same(outcome, whole)


def altered(**changes):
    """Replace fields of a state or its facts and seal it, as a program other than robench could."""

    def alter(file):
        content = read_sealed(file)
        end = 8 + int.from_bytes(content[:8], "little")
        state = json.loads(content[8:end])
        for name, value in changes.items():
            (state if name in state else state["facts"])[name] = value
        header = json.dumps(state).encode()
        file.write_bytes(seal(len(header).to_bytes(8, "little") + header + content[end:]))

    return alter


def sealed(content):
    return lambda file: file.write_bytes(seal(content))


@pytest.mark.parametrize(
    "alter",
    [
        altered(facts={}),
        altered(costs=[{}]),
        altered(rows=[]),
        altered(playing=None),
        altered(smallest=0),
        altered(shards=5),
        altered(origin=5),
        sealed((200_000).to_bytes(8, "little") + b"[" * 200_000),
    ],
)
def test_a_state_that_no_run_has_saved_is_one_line_and_starts_again(tmp_path, whole, alter):
    interrupted(tmp_path)
    alter(tmp_path / "state")
    outcome, lines = resumed(tmp_path)
    assert lines == [f"{tmp_path}: it contains nothing that this release can resume; the run starts again"]
    same(outcome, whole)


@pytest.mark.parametrize(
    "alter", [altered(done=-1), altered(done=10**6), altered(done="1"), altered(facts={})]
)
@pytest.mark.parametrize("kind", [corruption_run.CorruptionRun, RowwiseRun])
def test_so_it_is_of_runs_without_attacks(tmp_path, monkeypatch, alter, kind):
    monkeypatch.setattr(corruption_run.CorruptionRun, "_matches", lambda run, saved: True)
    setup, lines = Setup(small_net(4, 32), 3, CPU, 7), []

    def run():
        store = FolderStore(tmp_path, "key", note=lines.append)
        if kind is RowwiseRun:
            return RowwiseRun(setup, 9, lambda rows: {"x": torch.tensor(rows)}, "rows", store=store)
        return corruption_run.CorruptionRun(setup, some(20), CELLS, store=store)

    unfinished = run()
    if kind is RowwiseRun:
        unfinished.state, unfinished.done = {"x": torch.arange(8)}, 8
    unfinished._save()
    run().prepare(1)
    assert not lines
    alter(tmp_path / "state")
    run().prepare(1)
    assert lines == [f"{tmp_path}: it contains nothing that this release can resume; the run starts again"]


def test_memory_that_runs_out_while_a_state_is_read_loses_nothing(tmp_path):
    def exhausted(saved):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    store = FolderStore(tmp_path, "key", note=pytest.fail)
    store.save({"x": torch.arange(8)}, {"done": 8})
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        store.load(exhausted)
    saved = store.load()
    assert saved and saved.facts == {"done": 8}


@pytest.mark.parametrize(
    "change",
    [
        *({"costs": costs} for costs in (5, [None], "x", [{"spec": 1}])),
        *({name: None} for name in ("seconds", "stats", "nonfinite")),
        *({name: -5} for name in ("smallest", "batch_size", "seconds")),
        *({"rows": rows} for rows in ([], ["1", "2"], [-1, 2])),
        {"seconds": float("nan")},
        {"playing": 1},
        {"nonfinite": True},
        {"something": 1},
    ],
)
def test_facts_that_no_run_has_saved_are_refused(change):
    state, margin = RunState.empty(3, 4), torch.zeros(3)
    facts = {**state.facts, "playing": False, "batch_size": 4}
    tensors = {**state.tensors, "run.clean_margin": margin}
    state.check(Saved(tensors, facts, {}), margin)
    with pytest.raises((ValueError, LookupError)):
        state.check(Saved(tensors, facts | change, {}), margin)
    with pytest.raises(KeyError):
        state.check(Saved({}, facts, {}), margin)
    with pytest.raises(ValueError):
        state.check(Saved(tensors, facts, {}), torch.zeros(4))


@pytest.mark.parametrize("origin", [b"5", b"{}", b'{"origin": 5, "started": "then"}', b"[" * 200_000])
def test_a_beginning_that_no_run_has_saved_is_written_again(tmp_path, whole, origin):
    interrupted(tmp_path)
    sealed(origin)(tmp_path / "origin")
    outcome, lines = resumed(tmp_path)
    assert len(lines) == 1 and "the run is resumed" in lines[0]
    same(outcome, whole)


class Moved(nn.Module):
    """The same answers by other arithmetic: margins that differ by a rounding or by more."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.model(x) * self.factor


@pytest.mark.parametrize("workers", [1, 2])
def test_a_defense_that_answers_otherwise_is_not_gone_on_with(tmp_path, monkeypatch, workers):
    interrupted(tmp_path, workers)
    # A finished share may come from a machine that rounds differently; an unfinished run must have the same bits.
    factor = 1.0001 if workers == 1 else 3.0
    monkeypatch.setattr(test_promises, "small_net", lambda: Moved(small_net(), factor))
    outcome, lines = resumed(tmp_path, workers)
    assert len(lines) == workers and all("logits of the defense differ" in line for line in lines)
    same(outcome, play())


@pytest.mark.parametrize("damage", [flip(0.5)])
def test_so_it_is_of_a_run_under_corruptions(tmp_path, damage, monkeypatch):
    monkeypatch.setattr("robench.data.corrupted._CHUNK", 16)

    def played(model, **options):
        return corruption_run.classify(Setup(model, 3, CPU, 7), some(20), CELLS, **options)

    def stop(standing):
        if standing.rows >= 5:
            raise KeyboardInterrupt

    model = small_net(4, 32)
    expected = played(model)
    for spoiled, other in ((True, model), (False, Moved(model, 1.0001))):
        with pytest.raises(KeyboardInterrupt):
            played(model, store=FolderStore(tmp_path, "key"), progress=stop)
        if spoiled:
            damage(tmp_path / "state")
        lines = []
        outcome = played(other, store=FolderStore(tmp_path, "key", note=lines.append))
        assert len(lines) == 1 and ("damaged" if spoiled else "logits of the defense differ") in lines[0]
        for name in ("clean", "predictions", "pixels"):
            assert torch.equal(getattr(outcome, name), getattr(expected, name))
        FolderStore(tmp_path, "key").drop()


def test_a_process_that_is_believed_dead_and_its_successor_write_different_files(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "new_attempt", iter(["aaaaaaaa", "bbbbbbbb"]).__next__)
    dead, successor = (FolderStore(tmp_path, "key") for _ in range(2))
    images = {store: {1: torch.rand(3, 4, 4)} for store in (dead, successor)}
    dead.save({"x": torch.zeros(1)}, {}, 0, images[dead])
    assert successor.load() is not None
    successor.save({"x": torch.ones(1)}, {}, 1, images[successor])
    # It was only slow.
    dead.save({"x": torch.zeros(1)}, {}, 1, {2: torch.rand(3, 4, 4)})
    successor.save({"x": torch.ones(1)}, {}, 1, {3: torch.rand(3, 4, 4)})
    lines = []
    saved = FolderStore(tmp_path, "key", note=lines.append).load()
    assert saved is not None and not lines and saved.tensors["x"] == 1
    assert {attack: sorted(places) for attack, places in saved.found.items()} == {0: [1], 1: [1, 3]}
    assert torch.equal(saved.found[1][1].read(), images[successor][1])


def test_a_state_reads_no_file_outside_its_folder(tmp_path):
    store = FolderStore(tmp_path / "run", "key")
    store.save({"x": torch.zeros(1)}, {}, 0, {1: torch.rand(3, 4, 4)})
    (name, digest) = store.shards[0]
    (tmp_path / "run" / name).rename(tmp_path / name)
    store.shards = [(f"../{name}", digest)]
    store.save({"x": torch.zeros(1)}, {})
    lines = []
    assert FolderStore(tmp_path / "run", "key", note=lines.append).load() is None
    assert len(lines) == 1 and "names a file that it cannot have written" in lines[0]


def test_shares_that_run_separately_have_the_split_of_the_first_process(tmp_path):
    store = FolderStore(tmp_path, "key")
    store.begin("now", shares=2)
    first, second = (0, 1, 0, 1), (0, 0, 1, 1)
    assert store.agree(first) == first
    assert FolderStore(tmp_path, "key").agree(second) == first
    # A split of another run, or of another number of samples, is not taken over.
    assert FolderStore(tmp_path, "other").agree(second) == second
    assert FolderStore(tmp_path, "key").agree((0, 1, 0)) == (0, 1, 0)
