"""Training in two processes started by torchrun: the same losses as in one, resume, and a slow rank 0."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from robench.core.errors import UsageError
from robench.training import train
from robench.training.distributed import ProcessGroup
from robench.training.draws import cut, positions, same_draws

# Random starts, masks, crops and stochastic depth; the penalty couples 64 rows, half a batch.
CARD = """
builder = "vit(image_size=16, patch_size=8, width=8, depth=2, heads=2, num_classes=10)"
dataset = "digits"
[recipe]
samples = 512
shift = 1
flip = true
evaluation = "Linf:0.1"
threads = 1
[recipe.pretraining]
epochs = 2
warmup = 1
batch_size = 128
accumulate = {parts}
mi_weight = 1e-3
mi_group = 64
decoder_width = 8
decoder_depth = 1
decoder_heads = 2
[recipe.finetuning]
method = "generalist(every=1, start=0.0)"
epochs = 2
warmup = 1
batch_size = 128
accumulate = {parts}
drop_path = 0.3
lr = 3e-3
eps = 0.1
step_size = 0.1
steps = 1
average = 0.9
"""
# Rank 0 is killed after its third save, and takes longer to save and to write the result than collectives may take.
SCRIPT = """
import datetime, os, signal, sys, time
import torch
from robench.training import distributed, trainer
torch.set_num_threads(1)
distributed.LIMIT = datetime.timedelta(seconds=6)
trainer.SAVE_EVERY_SECONDS = 0.0
trainer.ASK_EVERY_STEPS = 3
saves, save, write = [], trainer._Run.save, trainer.write_file
def slow_save(self, stage):
    save(self, stage)
    saves.append(stage)
    if len(saves) == 2 and not RESUMED:
        time.sleep(9)
    if len(saves) == 3 and not RESUMED:
        os.kill(os.getpid(), signal.SIGKILL)
def slow_write(*arguments):
    time.sleep(9)
    write(*arguments)
trainer._Run.save, trainer.write_file = slow_save, slow_write
RESUMED = os.path.exists("both.safetensors.partial")
result = trainer.train("two.toml", output="both.safetensors", csv="both.csv", progress=False)
print(result.clean, result.robust)
"""


def torchrun(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=400
    )


def losses(path: Path) -> list[float]:
    with path.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """To the bit with the same micro-batches; with whole batches, matrix products of other sizes round differently."""
    (tmp_path / "script.py").write_text(SCRIPT)
    for parts, name in ((1, "two"), (2, "halves")):
        (tmp_path / f"{name}.toml").write_text(CARD.format(parts=parts))
    killed = torchrun(tmp_path)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr
    assert (tmp_path / "both.safetensors.partial").exists()
    resumed = torchrun(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert not (tmp_path / "both.safetensors.partial").exists()

    card, log = str(tmp_path / "halves.toml"), tmp_path / "halves.csv"
    halves = train(card, output=tmp_path / "halves.safetensors", csv=log, progress=False)
    assert (tmp_path / "both.safetensors").read_bytes() == halves.path.read_bytes()
    assert losses(tmp_path / "both.csv") == losses(log)
    assert resumed.stdout.split("\n")[0] == f"{halves.clean} {halves.robust}"  # the evaluation is shared too

    card, log = str(tmp_path / "two.toml"), tmp_path / "whole.csv"
    train(card, output=tmp_path / "whole.safetensors", csv=log, progress=False)
    assert losses(tmp_path / "both.csv") == pytest.approx(losses(log), rel=1e-3)


def test_parts_cover_a_batch_and_keep_groups_whole():
    for size, parts, unit in ((10, 3, 1), (128, 8, 64), (130, 2, 64), (2, 3, 1)):
        pieces = cut(size, parts, unit)
        assert [row for part in pieces for row in range(size)[part.rows]] == list(range(size))
        assert len(pieces) == parts
        assert all(part.start % unit == 0 for part in pieces if part.count)


def numbers(n: int, x: torch.Tensor) -> list[torch.Tensor]:
    """Every way in which training draws random numbers."""
    gamma = torch.distributions.Gamma(torch.tensor(25.0), torch.tensor(1 / 3))
    return [
        torch.rand(n, 3),
        torch.rand((n, 2), device=x.device),
        torch.randn_like(x),
        torch.rand_like(x),
        torch.empty_like(x).uniform_(-1, 1),
        x.new_empty(n, 1).bernoulli_(0.5),
        torch.cat([x, x]).normal_().view(2, n, -1).transpose(0, 1),  # clean and adversarial images
        torch.randint(9, (n,)),
        torch.randint(1, 9, size=(n, 2)),
        torch.randint(2**62, ()).expand(n),  # one number for all rows
        gamma.sample(torch.Size((n,))),
        positions(n, x.device),
    ]


def test_a_part_draws_the_numbers_of_its_rows():
    x = torch.rand(10, 4)
    torch.manual_seed(1)
    whole, end = numbers(10, x), torch.get_rng_state()
    torch.manual_seed(1)
    parts, drawn = cut(10, 3), []
    with same_draws(parts, x.device) as rewind:
        for part in parts:
            rewind()
            with part.draws():
                drawn.append(numbers(part.count, x[part.rows]))
    assert torch.equal(torch.get_rng_state(), end)
    for k, expected in enumerate(whole):
        assert torch.equal(torch.cat([values[k] for values in drawn]), expected)


def test_a_process_that_resumes_from_another_state_is_refused(monkeypatch):
    """Such as one on a machine that does not see rank 0's partial file, or an old version of it."""
    monkeypatch.setattr(ProcessGroup, "broadcast", lambda self, value: ("fingerprint", "fine-tuning", 3, 0))
    ProcessGroup(1, 2).check_same(("fingerprint", "fine-tuning", 3, 0))
    with pytest.raises(
        UsageError, match="rank 1 and rank 0 have different settings, training images or partial"
    ):
        ProcessGroup(1, 2).check_same(("fingerprint",))


def test_statistics_of_batch_normalisation_are_averaged(monkeypatch):
    """Another process's statistics are ours plus 2."""
    norm = nn.BatchNorm1d(3)

    def all_reduce(self, values):
        for value in values:
            value.add_(value + 2)

    monkeypatch.setattr(ProcessGroup, "all_reduce", all_reduce)
    ProcessGroup(0, 2).average_statistics(nn.Sequential(norm))
    assert norm.running_mean.tolist() == [1, 1, 1]
    assert norm.running_var.tolist() == [2, 2, 2]
    ProcessGroup().average_statistics(nn.Sequential(norm))
    assert norm.running_mean.tolist() == [1, 1, 1]
