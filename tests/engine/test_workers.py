"""Processes that share a run: they find what one finds, and leave nothing behind."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import robench
from robench.core.errors import ResourceError, UsageError
from robench.engine import spawned
from robench.engine import workers as team
from robench.engine.checkpoint import FolderStore
from robench.engine.progress import Progress
from robench.engine.workers import choose_workers
from tests.engine import test_groups, test_promises
from tests.engine.test_randomised import defended
from tests.models import images, small_net

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="processes are forked, without a GPU"
)


@pytest.fixture
def interruptible():
    """An interrupt as a terminal's: whoever starts the tests in the background has Python ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def nobody_stays():
    yield
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def whole():
    return test_promises.play()


def same(one, other):
    test_promises.assert_same(one, other)
    assert one.fooled_by == other.fooled_by and one.health == other.health
    assert torch.equal(one.clean_margin, other.clean_margin)
    for mine, theirs in zip(one.attacks, other.attacks, strict=True):
        assert (mine.spec, mine.attacked, mine.survivors) == (theirs.spec, theirs.attacked, theirs.survivors)
        assert (mine.forward, mine.backward) == (theirs.forward, theirs.backward)


@pytest.mark.parametrize("workers", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_what_they_find_is_what_one_finds(workers):
    specs = test_promises.SPECS + "+fab(steps=3, targets=2)+square(queries=20)"
    same(test_promises.play(specs=specs), test_promises.play(specs=specs, workers=workers))


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_rows_that_are_coupled_stay_together(workers):
    specs = test_groups.MI + "+apgd-mi(steps=4, group=6, targets=2)"
    same(test_groups.play(specs=specs), test_groups.play(specs=specs, workers=workers))


def test_so_it_is_for_a_randomised_defense():
    x = images(12)
    y = small_net()(x).argmax(1)
    found = [
        robench.attack(
            "apgd(steps=4, eot=2)", defended(), x, y, threat="Linf:0.03", batch_size=8, workers=workers
        )
        for workers in (1, 2)
    ]
    same(*found)
    assert torch.equal(found[0].draws, found[1].draws)


def test_progress_is_of_all_together():
    seen: list[Progress] = []
    test_promises.play(workers=2, progress=seen.append, specs="pgd(steps=60)+square(queries=60)")
    assert seen and all(each.samples == 24 and 0 <= each.share <= 1 for each in seen)
    assert all(each.survivors <= 22 for each in seen)
    assert [each.index for each in seen] == sorted(each.index for each in seen)


def test_progress_counts_queries_and_not_their_draws(monkeypatch):
    monkeypatch.setattr("robench.engine.run._SHOW_EVERY", 0)
    seen: list[Progress] = []
    test_promises.play(specs="apgd(steps=9, eot=5)", n=8, threat="Linf:1e-6", progress=seen.append)
    shares = [each.share for each in seen]
    assert shares[:9] == pytest.approx([i / 10 for i in range(1, 10)]) and shares[-1] == 1


def test_where_they_stand_is_the_attack_that_some_still_play():
    one = Progress("pgd", 0, 2, rows=3, of_rows=5, survivors=4, samples=5, passes=100, share=0.5)
    other = Progress("square", 1, 2, rows=1, of_rows=2, survivors=2, samples=5, passes=300, share=0.25)
    assert Progress.together([one, other]) == Progress("pgd", 0, 2, 3, 5, 6, 10, 400, 0.75)
    assert Progress.together([other, other]) == Progress("square", 1, 2, 2, 4, 4, 10, 600, 0.25)


class Failing(nn.Module):
    """Right until it is asked for a gradient."""

    def __init__(self, fail):
        super().__init__()
        self.net, self.fail = small_net(), fail

    def forward(self, x):
        if x.requires_grad:
            self.fail()
        return self.net(x)


class Odd(Exception):
    """Cannot be pickled: it does not take what it holds."""

    def __init__(self, one, two):
        super().__init__(one + two)


def _raise(error):
    raise error


def attack(model, **options):
    x = images(8)
    return robench.attack("pgd(steps=3)", model, x, small_net()(x).argmax(1), threat="Linf:0.01", **options)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UsageError("one clear line"), UsageError, "^one clear line$"),
        (ZeroDivisionError("of mine"), UsageError, "raised ZeroDivisionError .*: of mine$"),
        (Odd("not ", "picklable"), UsageError, "raised Odd .*: not picklable$"),
    ],
)
def test_what_one_raises_is_raised(error, kind, text):
    with pytest.raises(kind, match=text) as raised:
        attack(Failing(lambda: _raise(error)), workers=2)
    notes = getattr(raised.value, "__notes__", [])
    # Where it happened is said of mistakes in the model, and not of a user's.
    assert any("in forward" in note for note in notes) == (not isinstance(error, UsageError))


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"exit code -9.*fewer --workers"),
        (lambda: os._exit(1), r"exit code 1\): what it printed may say why"),
    ],
)
def test_one_that_ends_is_one_clear_line(end, says):
    with pytest.raises(ResourceError, match=says):
        attack(Failing(end), workers=2)


def test_memory_that_runs_out_in_a_process_makes_its_batches_smaller():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            if x.requires_grad and len(x) > 4:
                raise RuntimeError("can't allocate memory")
            return self.net(x)

    outcome = attack(Small(), workers=2, batch_size=8)
    assert outcome.batch_size == 4
    assert torch.equal(outcome.robust, attack(small_net(), batch_size=4).robust)


def test_an_interrupt_saves_what_each_has_and_another_number_goes_on_with_it(tmp_path, interruptible):
    store = FolderStore(tmp_path, "key")
    specs = "pgd(steps=20)+pgd(steps=60, loss='dlr')"
    whole = test_promises.play(specs=specs)
    main = threading.main_thread().ident
    assert main is not None

    sent: list[Progress] = []

    def interrupt(standing: Progress):
        # All have begun, whatever the machine does beside. A second one would not wait for them to save.
        if not sent:
            sent.append(standing)
            signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        test_promises.play(specs=specs, workers=3, store=store, progress=interrupt)
    assert store.shares() == 3 and store.resumes
    saved = [FolderStore(tmp_path, "key").share(share, 3).load() for share in range(3)]
    # One may be ahead of the others, or even done.
    begun = [len(each.facts["costs"]) for each in saved if each]
    assert len(begun) == 3 and set(begun) <= {0, 1, 2}
    same(whole, test_promises.play(specs=specs, workers=1, store=FolderStore(tmp_path, "key")))


def test_they_end_when_the_one_that_forked_them_is_killed(tmp_path):
    def run():
        def tell():
            (tmp_path / str(os.getpid())).touch()
            time.sleep(60)

        attack(Failing(tell), workers=2)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    process.close()
    found = [int(path.name) for path in tmp_path.iterdir()]
    assert len(found) == 2
    while any(_alive(each) for each in found) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_alive(each) for each in found)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_so_many_as_there_are_threads_and_samples_enough(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [choose_workers(None, CPU, n) for n in (1, 31, 32, 50, 1000)] == [1, 1, 2, 3, 4]
    assert choose_workers(9, CPU, 1000) == 9 and choose_workers(9, CPU, 3) == 3
    assert choose_workers(9, torch.device("cuda"), 1000) == 1


def test_a_run_in_shares_resumes_where_nothing_can_be_forked(tmp_path, monkeypatch, whole):
    def interrupt(standing: Progress):
        if list(tmp_path.glob("share-*-of-2/state")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        test_promises.play(workers=2, store=FolderStore(tmp_path, "key"), progress=interrupt)
    monkeypatch.setattr(team, "start_method", lambda device, model: "")
    monkeypatch.setattr(team, "ForkedPool", lambda *args: pytest.fail("forked"))
    seen: list[Progress] = []
    resumed = test_promises.play(store=FolderStore(tmp_path, "key"), progress=seen.append)
    same(whole, resumed)
    assert {each.attack for each in seen} == {"shares"} and seen[-1].share == 1.0
    assert [each.share for each in seen] == sorted(each.share for each in seen)


@pytest.mark.parametrize("workers", [1, 2])
def test_there_may_be_more_shares_than_processes(tmp_path, workers, whole):
    seen: list[Progress] = []
    store = FolderStore(tmp_path, "key")
    found = test_promises.play(workers=workers, shares=5, store=store, progress=seen.append)
    same(whole, found)
    assert store.shares() == 5
    assert [(each.index, each.samples) for each in seen] == sorted((each.index, 24) for each in seen)
    assert (seen[-1].attacks, seen[-1].rows, seen[-1].share) == (5, 5, 1.0)


def test_one_share_is_played_by_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("robench.engine.checkpoint._PATIENCE", 0.1)
    store = FolderStore(tmp_path, "key")
    with (
        store.share(1, 2).claimed(),
        pytest.raises(ResourceError, match=r"another run is writing .*share-1-of-2"),
    ):
        test_promises.play(workers=2, store=store)


def test_spawned_ones_find_the_same_and_tell_and_save(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "fork")
    assert team.start_method(CPU, small_net()) == "spawn"
    seen, saved = [], []

    def progress(standing: Progress):
        seen.append(standing)
        saved.extend(tmp_path.glob("share-*-of-2"))

    specs = test_promises.SPECS + "+square(queries=60)"
    store = FolderStore(tmp_path, "key", note=lambda text: None)
    shared = test_promises.play(specs=specs, workers=2, progress=progress, store=store)
    same(test_promises.play(specs=specs), shared)
    assert seen and saved


@pytest.mark.slow
def test_what_a_spawned_one_raises_is_raised(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(UsageError, match="raised ZeroDivisionError"):
        attack(Dividing(), workers=2)


class Dividing(nn.Module):
    """Can be pickled, and fails when it is asked for a gradient."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x) if not x.requires_grad else 1 // 0


def test_one_runs_it_alone_where_none_can_be_forked_or_pickled(monkeypatch):
    monkeypatch.delattr(os, "fork")
    notes: list[str] = []
    unpicklable = Failing(lambda: None)
    assert choose_workers(4, CPU, 100, unpicklable, notes.append) == 1
    assert len(notes) == 1 and "cannot be pickled" in notes[0]
    assert choose_workers(4, CPU, 100, small_net(), notes.append) == 4 and len(notes) == 1
    assert torch.equal(attack(unpicklable, workers=2).robust, attack(small_net()).robust)


def test_none_are_forked_inside_a_pool(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert choose_workers(4, CPU, 1000) == 1


def test_a_spawned_process_does_not_run_its_callers_script_again(monkeypatch):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    # Set while a spawned process imports the main module.
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    for call in (
        lambda: attack(small_net()),
        lambda: robench.run("pgd-at", "fgsm", dataset="digits", samples=2),
    ):
        with pytest.raises(SystemExit, match=str(spawned._UNGUARDED)):
            call()


class Unguarded(nn.Module):
    """Can be pickled, and ends its process as one ends that imports a script without a guard."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x) if not x.requires_grad else os._exit(spawned._UNGUARDED)


def test_a_script_without_a_guard_is_one_line(monkeypatch):
    # Forked: a new Python takes seconds to import torch, only to end.
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    monkeypatch.setattr(team, "start_method", lambda device, model: "spawn")
    with pytest.raises(UsageError, match="call robench under if __name__"):
        attack(Unguarded(), workers=2)
