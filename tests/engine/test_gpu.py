"""What only a GPU can show: run with `pytest -m gpu`. ROBENCH_TEST_DEVICE=cpu tries these tests without one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from robench.evaluation.attack import attack
from robench.records.record import stable
from tests.engine.test_backing_off import Narrow
from tests.models import images, small_net

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("ROBENCH_TEST_DEVICE", "cuda")
ON_CPU = DEVICE == "cpu"
# Saves after every query, so that there is something to resume on any machine.
COMMAND = """
import sys
from robench.engine import checkpoint
checkpoint._INTERVAL, checkpoint._RATIO = 0.0, 0.0
from robench.cli import main
main(sys.argv[1:])
"""


class Attentive(nn.Module):
    """A convolution, attention and a linear layer, the kernels whose gradients may differ from run to run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.qkv, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64, 192), nn.Linear(64, 10)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, -1)
        return 20 * self.head(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0].mean(1))


@pytest.fixture(scope="module")
def problem():
    model, x = Attentive().eval().to(DEVICE), images(*(8, 8) if ON_CPU else (64, 16))
    with torch.no_grad():
        return model, x, model(x.to(DEVICE)).argmax(1).cpu()


def run(problem, suite="apgd(steps=10)+square(queries=20)", **options):
    model, x, y = problem
    return attack(suite, model, x, y, threat="Linf:0.002", **options)


def test_two_deterministic_runs_give_the_same_bits(problem):
    first, second = (run(problem, precision="auto", deterministic=True) for _ in range(2))
    assert torch.equal(first.x_adv, second.x_adv) and first.passes == second.passes
    assert not first.search or first.search["repeats"] == "bits"


def test_every_attack_of_autoattack_and_the_others_is_deterministic_or_one_line(problem):
    for suite, threat in (
        ("fab(steps=4)", "Linf:0.01"),
        ("apgd-l1(steps=6)", "L1:0.5"),
        ("fmn(steps=6)", "L2:0.1"),
    ):
        model, x, y = problem
        pair = [attack(suite, model, x, y, threat=threat, deterministic=True) for _ in range(2)]
        assert torch.equal(pair[0].x_adv, pair[1].x_adv)


def test_a_search_in_bf16_gives_the_verdicts_of_fp32(problem):
    plain, fast = run(problem), run(problem, precision="bf16")
    assert fast.precision == "bf16" and plain.precision == "fp32"
    assert int((plain.robust != fast.robust).sum()) <= 2


def test_the_judge_is_the_network_in_fp32(problem):
    model, _, y = problem
    result = run(problem, precision="bf16")
    with torch.no_grad():
        reference = model.double()(result.x_adv.to(DEVICE).double())
    model.float()
    margin = reference.topk(2).values
    clear = ((margin[:, 0] - margin[:, 1]) > 1e-4).cpu()
    assert torch.equal((reference.argmax(1).cpu() == y)[clear], result.robust[clear])


def test_it_gives_the_verdicts_of_the_cpu(problem):
    model, x, y = problem
    here = run((model, x, y))
    there = run((Attentive().eval(), x, y))
    assert int((here.robust != there.robust).sum()) <= 2


def test_provoked_out_of_memory_gives_the_same_verdicts():
    x = images(64, side=32)
    if ON_CPU:
        model = Narrow(20, network=small_net(10, 32))
    else:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 512, 5, padding=2),
            nn.GELU(),
            nn.Conv2d(512, 8, 5),
            nn.Flatten(),
            nn.Linear(6272, 10),
        ).eval()
    model = model.to(DEVICE)
    with torch.no_grad():
        y = torch.cat([model(part.to(DEVICE)).argmax(1).cpu() for part in x.split(4)])
    spec, options = "pgd(steps=3)", {"threat": "Linf:0.004", "batch_size": 64}
    whole = attack(spec, model.model if ON_CPU else model, x, y, **options)
    if not ON_CPU:
        torch.cuda.empty_cache()
        limit = torch.cuda.memory_allocated() + (160 << 20)
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        reduced = attack(spec, model, x, y, **options)
    finally:
        if not ON_CPU:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert reduced.batch_size < whole.batch_size == 64
    assert int((reduced.robust != whole.robust).sum()) <= 1


def test_a_killed_run_resumes(tmp_path):
    arguments = [
        "run", "--defense", "pgd-at", "--samples", "24", "--batch-size", "8", "--device", DEVICE, "--threat",
        "Linf:0.14", "--attack", "apgd(steps=30)", "--workers", "1", "--precision", "fp32", "--deterministic", "--json",
    ]  # fmt: skip

    def start(folder):
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return process

    def finish(process):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out)["records"][0], err

    whole, _ = finish(start(tmp_path / "whole"))
    process, deadline = start(tmp_path / "killed"), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if list((tmp_path / "killed").glob("results/*/*/*/.partial/**/state")):
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed, err = finish(start(tmp_path / "killed"))
    assert "resuming from" in err
    assert stable(killed) == stable(whole)
