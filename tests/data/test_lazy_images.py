"""Lazy images: indexing, equal results in a whole run, and memory."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.attacks.build import build_attacks
from robench.core.errors import ResourceError
from robench.data._base import Images
from robench.data._lazy_images import LazyImages, PixelFile, Replaced
from robench.engine.checkpoint import FolderStore
from robench.evaluation.attack import attack
from robench.records import certificates, samples
from robench.threats.threat import Threat
from tests.engine.runs import run_of
from tests.models import small_net

N = 9
RAW = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)


def held():
    """The same images as a tensor and as a file of pixels."""
    x = PixelFile((N, 3, 8, 8))
    for row in reversed(range(N)):
        x.write(row, RAW[row])
    return torch.from_numpy(RAW).permute(0, 3, 1, 2).to(torch.float32).div_(255).contiguous(), x


INDICES = st.one_of(
    st.integers(-N, N - 1),
    st.slices(N),
    st.lists(st.integers(-N, N - 1), min_size=1, max_size=12),
    st.lists(st.integers(0, N - 1), min_size=1).map(torch.tensor),
    st.lists(st.booleans(), min_size=N, max_size=N).map(torch.tensor),
    st.tuples(st.integers(0, N - 1), st.integers(0, 2)),
    st.tuples(st.slices(N), st.just(slice(None)), st.integers(0, 7)),
)


@settings(max_examples=150, deadline=None)
@given(INDICES)
def test_indexing_matches_a_tensor(index):
    tensor, x = held()
    assert x.shape == tensor.shape and len(x) == N
    if isinstance(index, slice) and (index.step or 1) < 0:
        return  # not supported by torch
    if isinstance(index, tuple) and isinstance(index[0], slice) and (index[0].step or 1) < 0:
        return
    assert torch.equal(x[index], tensor[index])


class Endless(LazyImages):
    """More images than rows could be listed; the value of an image is its row."""

    def _read(self, rows):
        return torch.tensor(rows, dtype=torch.float32).view(-1, 1, 1, 1)


def test_reading_one_image_does_not_list_all_rows():
    n = 10**15
    x = Endless((n, 1, 1, 1))
    assert x[7].item() == 7 and x[-1].item() == torch.tensor(n - 1.0).item()
    assert x[[2, 5]].flatten().tolist() == x[torch.tensor([2, 5]), 0].flatten().tolist() == [2, 5]
    assert x[3:9:4].flatten().tolist() == [3, 7]
    for index in (n, -n - 1, [0, n], torch.tensor([n])):
        with pytest.raises(IndexError):
            x[index]


@pytest.mark.parametrize("size", [1, 4, 9, 20])
def test_splitting_matches_a_tensor(size):
    tensor, x = held()
    assert [part.tolist() for part in x.split(size)] == [part.tolist() for part in tensor.split(size)]
    assert torch.equal(x.first(4)[:], tensor[:4])
    with pytest.raises(IndexError):
        x[N]


def test_some_images_are_replaced():
    tensor, x = held()
    changed = Replaced(
        x, [2, 5], lambda rows: torch.tensor(rows).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).float()
    )
    assert torch.equal(
        changed[[5, 0, 2]], torch.stack([torch.full((3, 8, 8), 5.0), tensor[0], 0 * tensor[0] + 2])
    )


def test_the_digest_is_that_of_the_tensor():
    tensor, x = held()
    y, ids = torch.arange(N), torch.arange(N)
    lazy, plain = (Images("a", "test", each, y, ids, ()) for each in (x, tensor))
    assert lazy.digest == plain.digest
    assert lazy.first(3).digest == plain.first(3).digest
    assert samples.input_digests(x) == samples.input_digests(tensor)


def test_a_full_disk_is_reported_before_decoding(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ResourceError, match=r"no space left in .* 7\.5 GB .* TMPDIR"):
        PixelFile((50_000, 3, 224, 224))


def play(x, y, store=None, specs=("fgsm", "pgd(steps=3)"), threat="L2:0.4"):
    chosen = Threat.parse(threat)
    return run_of(
        small_net(),
        build_attacks(list(specs), chosen),
        x,
        y,
        torch.arange(N),
        chosen,
        0,
        batch_size=4,
        store=store,
    ).outcome()


@pytest.mark.parametrize("threat", ["Linf:0.02", "L2:0.4"])
def test_results_do_not_depend_on_where_images_are_stored(tmp_path, threat):
    tensor, x = held()
    y = small_net()(tensor).argmax(1)
    plain, lazy = play(tensor, y, threat=threat), play(x, y, FolderStore(tmp_path, "key"), threat=threat)
    assert not plain.robust.all() and isinstance(lazy.x_adv, Replaced)
    assert torch.equal(plain.x_adv, lazy.x_adv[:])
    for name in ("robust", "prediction", "distance", "steps", "forward", "clean_margin"):
        assert torch.equal(getattr(plain, name), getattr(lazy, name)), name
    images = Images("a", "test", tensor, y, torch.arange(N), ())
    stored = dataclasses.replace(images, x=x)
    chosen = Threat.parse(threat)
    assert b"".join(certificates.encode(plain, images, chosen)) == b"".join(
        certificates.encode(lazy, stored, chosen)
    )
    assert samples.encode(plain, images) == samples.encode(lazy, stored)


def test_saved_images_are_released(tmp_path):
    _, x = held()
    y = small_net()(x[:]).argmax(1)
    run, seen = None, []

    class Watching(FolderStore):
        def due(self, held=0):
            return True

        def save(self, tensors, facts, attack, found):
            seen.append((attack, sorted(found)))
            return super().save(tensors, facts, attack, found)

    chosen = Threat.parse("Linf:0.03")
    store = Watching(tmp_path, "key")
    run = run_of(
        small_net(),
        build_attacks(["pgd(steps=2)"], chosen),
        x,
        y,
        torch.arange(N),
        chosen,
        0,
        batch_size=4,
        store=store,
    )
    outcome = run.outcome()
    saved = [sample for _, own in seen for sample in own]
    # Each image is written once and read back from the file.
    assert sorted(saved) == sorted({*saved}) == [i for i, name in enumerate(outcome.fooled_by) if name]
    assert all(found.nbytes == 0 for found in run.state.examples)
    store.drop()
    with pytest.raises(ResourceError, match="missing or damaged"):
        outcome.x_adv[saved[:1]]


def test_external_attacks_accept_lazy_images():
    tensor, x = held()
    y = small_net()(tensor).argmax(1)
    ours = attack("fgsm", small_net(), x, y, threat="Linf:0.02")
    assert torch.equal(ours.x_adv, attack("fgsm", small_net(), tensor, y, threat="Linf:0.02").x_adv)


SCRIPT = """
import resource, sys, torch, numpy as np
from pathlib import Path
from robench.data._lazy_images import PixelFile
from robench.data._base import Images
from robench.engine.checkpoint import FolderStore
from robench.attacks.build import build_attacks
from robench.engine.attack_context import Samples
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.records import certificates, samples
from robench.threats.threat import Threat

torch.set_num_threads(1)
n = int(sys.argv[1])
x = PixelFile((n, 3, 224, 224))
raw = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
for i in range(n):
    x.write(i, np.roll(raw, i, 0))
net = torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten(), torch.nn.Linear(48, 10))
y = torch.cat([net(part).argmax(1) for part in x.split(8)])
images = Images("a", "test", x, y, torch.arange(n), ())
threat = Threat.parse("Linf:0.3")
setup = Setup(net, 0, torch.device("cpu"), 8)
outcome = Run(setup, build_attacks(["fgsm"], threat), Samples(x, y, images.ids), threat,
              store=FolderStore(Path(sys.argv[2]), "key")).outcome()
size = sum(map(len, certificates.encode(outcome, images, threat))) + len(samples.encode(outcome, images))
print(images.digest, outcome.robust_accuracy, size, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, int((~outcome.robust).sum()))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for n in (30, 130):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(n), str(tmp_path / str(n))], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peak, fooled = map(int, done.stdout.split())
        assert fooled > n / 2
        peaks.append(peak)
    # In memory, 100 more images would take 60 MB, and their adversarial examples the same again.
    assert peaks[1] - peaks[0] < 30, peaks
