"""The checks of perf/gpu.py, and the networks and images that they use."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import robench
from robench.attacks._base import Rows
from robench.attacks._losses import objective
from robench.attacks.reference import adversary
from robench.core.errors import ResourceError
from robench.engine.batched_model import Network, frozen
from robench.threats.threat import Threat

_ROOT = Path(__file__).parents[1]
_CLASSES, _SIDE = 10, 32
# Passes of AutoAttack for an image that is never fooled: with gradients, and without.
_GRADIENTS, _FORWARD = 1000 + 900, 900 + 5000


class Block(nn.Module):
    """A block of a Wide ResNet: batch norm, ReLU and convolution, twice."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        changes = inside != outside or stride > 1
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        return self.conv2(self.bn2(self.conv1(active)).relu()) + self.shortcut(active)


def wide_resnet(depth: int, width: int) -> nn.Module:
    """WRN-`depth`-`width` (Zagoruyko and Komodakis, arXiv 1605.07146)."""
    widths, blocks = [16, 16 * width, 32 * width, 64 * width], (depth - 4) // 6
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    for stage in range(3):
        for i in range(blocks):
            inside = widths[stage] if i == 0 else widths[stage + 1]
            layers.append(Block(inside, widths[stage + 1], 2 if stage and i == 0 else 1))
    head = [nn.BatchNorm2d(widths[3]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(widths[3], _CLASSES))


def vit(width: int, depth: int, heads: int) -> nn.Module:
    return VisionTransformer(_SIDE, 4, embed_dim=width, depth=depth, num_heads=heads, num_classes=_CLASSES)


def networks(small: bool) -> dict[str, Callable[[], nn.Module]]:
    """The networks by name."""
    if small:
        return {"ViT, tiny": lambda: vit(16, 1, 2), "WRN, tiny": lambda: wide_resnet(10, 1)}
    return {"ViT-S/4": lambda: vit(384, 12, 6), "WRN-28-10": lambda: wide_resnet(28, 10)}


@dataclass
class Case:
    """A trained network, images that it classifies correctly, and a radius."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    threat: str


@dataclass(frozen=True)
class Bench:
    """What the checks share.

    Attributes:
        n: number of images.
        seconds: time for AutoAttack of robench, and of the reference, on one network.
    """

    device: torch.device
    n: int
    seconds: float

    @property
    def small(self) -> bool:
        return self.device.type == "cpu"

    def time(self, function: Callable[[], object], repeats: int = 1) -> float:
        """Median seconds of a call, with the work of the device."""
        times = []
        for _ in range(repeats):
            self.wait()
            begun = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - begun)
        return sorted(times)[len(times) // 2]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def synthetic(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of ten smooth patterns under noise, (n, 3, 32, 32) in [0, 1], and their labels."""
    patterns = torch.randn(_CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    patterns = F.interpolate(patterns, size=_SIDE, mode="bilinear")
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(_CLASSES, (n,), generator=draw)
    x = 0.5 + 0.1 * patterns[y] + 0.05 * torch.randn(n, 3, _SIDE, _SIDE, generator=draw)
    return x.clamp(0, 1), y


def trained(bench: Bench, name: str, model: nn.Module, steps: int, n: int) -> Case:
    """Train a network for some steps, and choose images and a radius."""
    model = model.to(bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    for step in range(steps):
        x, y = (part.to(bench.device) for part in synthetic(16 if bench.small else 128, 1 + step))
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=not bench.small):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    x, _ = synthetic(n, 0)
    with torch.no_grad():
        y = torch.cat([model(part.to(bench.device)).argmax(1).cpu() for part in x.split(128)])
    low, high = 0.0, 0.1
    for _ in range(3 if bench.small else 8):
        eps, some = (low + high) / 2, slice(0, 8 if bench.small else 128)
        spec = "pgd(steps=3)" if bench.small else "pgd(steps=20)"
        robust = robench.attack(spec, model, x[some], y[some], threat=f"Linf:{eps:.6g}").robust_accuracy
        low, high = (low, eps) if robust < 0.95 else (eps, high)
    return Case(name, model, x, y, f"Linf:{max(low, 1e-4):.4g}")


def affordable(bench: Bench, case: Case, seconds: float) -> int:
    """Number of images that the reference attacks in some seconds."""
    rows = min(len(case.x), 4 if bench.small else 256)
    x = case.x[:rows].to(bench.device)

    def forward() -> None:
        with torch.no_grad():
            case.model(x)

    def gradient() -> None:
        point = x.clone().requires_grad_()
        torch.autograd.grad(case.model(point).sum(), point)

    forward()
    gradient()
    cost = (_GRADIENTS * bench.time(gradient, 3) + _FORWARD * bench.time(forward, 3)) / rows
    return max(2, min(len(case.x), int(seconds / cost)))


# -- the checks: each returns its result in words, and raises an AssertionError if it fails ------------------


def tests(bench: Bench, limit: float) -> str:
    """The tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-v", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider"]
    # A miniature tries only the shortest: the test suite tries all of them.
    command += ["tests/engine/test_gpu.py", "-k", "judge_is"] if bench.small else ["tests"]
    code, out = call(command, limit, ROBENCH_TEST_DEVICE=bench.device.type)
    lines = out.strip().splitlines() or ["no output"]
    passed = sum(" PASSED" in line for line in lines)
    assert code is not None, f"took longer than {limit:.0f} s; {passed} passed before:\n" + "\n".join(
        lines[-15:]
    )
    assert code == 0, "\n".join([lines[-1].strip("= "), *lines[-30:]])
    return lines[-1].strip("= ")


def call(command: list[str], limit: float, **environment: str) -> tuple[int | None, str]:
    """The exit code and the output of a command; None if it is ended after `limit` seconds, with all it has started."""
    with tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = run.wait(max(limit, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
        output.seek(0)
        return code, output.read()


def bf16(bench: Bench, case: Case) -> str:
    """A search in bf16 and one in fp32: the same verdicts, and the time."""
    some = slice(0, min(bench.n, len(case.x)))
    spec = "apgd(steps=3)" if bench.small else "apgd(steps=50)"
    results, seconds = [], []
    for precision in ("fp32", "bf16"):

        def run(precision: str = precision) -> None:
            results.append(_attack(spec, case, some, precision=precision))

        seconds.append(bench.time(run))
    same = float((results[0].robust == results[1].robust).double().mean())
    assert same >= 0.98 or bench.small, f"only {same:.1%} of the verdicts are the same"
    disagreements = results[1].search.get("disagreements", 0)
    return (
        f"{same:.1%} same verdicts, {seconds[1] / seconds[0]:.2f} of the time, {disagreements} disagreements"
    )


def judge(bench: Bench, case: Case) -> str:
    """A call of the judge in fp32 compared with a step of the search in bf16, for batches of one size."""
    size = min(len(case.x), 4 if bench.small else 256)
    x, ids = case.x[:size].to(bench.device), torch.arange(size, device=bench.device)
    judge, search = Network(case.model, size), Network(case.model, size, "bf16")
    rows = Rows(x, case.y[:size].to(x.device), x.new_zeros(size, _CLASSES), ids, ids * 0, ids >= 0)
    with frozen(case.model):

        def step() -> None:
            search.answer(x, objective("ce"), rows, 1, ids * 0)

        def verdict() -> None:
            judge.logits(x, ids)

        step()
        verdict()
        ratio = bench.time(verdict, 5) / bench.time(step, 5)
    return f"{ratio:.2f} of a search step at {size} images"


def deterministic(bench: Bench, case: Case) -> str:
    """Two runs with the same bits, and what determinism costs."""
    some, spec = slice(0, min(bench.n, 64)), "apgd(steps=3)" if bench.small else "apgd(steps=30)"
    options = {"precision": "auto"}
    plain = bench.time(lambda: _attack(spec, case, some, **options))
    results = []
    slower = bench.time(lambda: results.append(_attack(spec, case, some, deterministic=True, **options)), 2)
    assert torch.equal(results[0].x_adv, results[1].x_adv), "two deterministic runs differ"
    return f"the same bits twice, {slower / plain:.2f} of the time"


def compiled(bench: Bench, case: Case) -> str:
    """A compiled search: the same verdicts, and the time after the first run."""
    some, spec = slice(0, min(bench.n, 256)), "apgd(steps=2)" if bench.small else "apgd(steps=50)"
    results = []

    def run(compile: bool) -> Callable[[], None]:
        return lambda: results.append(_attack(spec, case, some, precision="auto", compile=compile))

    first, again, plain = bench.time(run(True)), bench.time(run(True)), bench.time(run(False))
    same = float((results[1].robust == results[2].robust).double().mean())
    assert same >= 0.98 or bench.small, f"only {same:.1%} of the verdicts are the same"
    return f"{again / plain:.2f} of the time, {same:.1%} same verdicts, {first - again:.0f} s to compile"


def memory(bench: Bench, case: Case) -> str:
    """Peak memory of the device for n and 4 n images in batches of one size."""
    if bench.device.type != "cuda":
        return "not measured: needs CUDA"
    peaks = []
    for n in (64, 256):
        torch.cuda.reset_peak_memory_stats(bench.device)
        _attack("apgd(steps=3)", case, slice(0, n), batch_size=32)
        peaks.append(torch.cuda.max_memory_allocated(bench.device) / 1e6)
    assert peaks[1] <= 1.05 * peaks[0], f"{peaks[0]:.0f} MB for 64 images, {peaks[1]:.0f} MB for 256"
    return f"{peaks[0]:.0f} MB for 64 images, {peaks[1]:.0f} MB for 256"


def autoattack(bench: Bench, case: Case) -> str:
    """robench's AutoAttack and the reference's on the same images."""
    suite = "apgd(steps=3)+square(queries=5)" if bench.small else "autoattack"
    n = affordable(bench, case, bench.seconds)
    some = slice(0, min(n, bench.n, 2 if bench.small else n))
    result, robust = [], []
    ours = bench.time(lambda: result.append(_attack(suite, case, some, precision="auto")))
    threat = Threat.parse(case.threat)
    try:
        runner = adversary(case.model, threat, 0, str(bench.device))
    except ResourceError as error:
        return f"{ours:.0f} s for {some.stop} images; not compared: {error}"
    if bench.small:
        runner.attacks_to_run = ["apgd-ce"]
        runner.apgd.n_iter = 3
    x, y = case.x[some].to(bench.device), case.y[some].to(bench.device)

    def theirs() -> None:
        adversarial = runner.run_standard_evaluation(x, y, batch_size=500)
        adversarial = adversarial[0] if isinstance(adversarial, tuple) else adversarial
        with torch.no_grad():
            robust.append(torch.cat([case.model(part).argmax(1) for part in adversarial.split(128)]) == y)

    seconds = bench.time(theirs)
    same = float((robust[0].cpu() == result[0].robust).double().mean())
    ratio, survive = ours / seconds, result[0].robust_accuracy
    assert same >= 0.995 or bench.small, f"only {same:.1%} of the verdicts are the same"
    return (
        f"{ratio:.2f} of the time ({ours:.0f} s, {seconds:.0f} s), {same:.1%} same verdicts, "
        f"{survive:.1%} of {some.stop} images robust"
    )


def devices(bench: Bench, limit: float) -> str:
    """A run on one device and on all of them, in two workers on a CPU."""
    count = 2 if bench.small else torch.cuda.device_count()
    if count < 2:
        return "one GPU here: not tried"
    arguments = [
        "run",
        "--defense",
        "pgd-at",
        "--samples",
        "256",
        "--attack",
        "apgd",
        "--device",
        bench.device.type,
    ]
    if bench.small:
        arguments[4:7] = ["32", "--attack", "pgd(steps=2)"]
    seconds = []
    for options in (["--workers", "1"], ["--workers", str(count)]):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "robench", *arguments, *options, "--results", folder, "--json"]
            begun = time.perf_counter()
            code, out = call(command, limit - sum(seconds))
            seconds.append(time.perf_counter() - begun)
        assert code is not None, f"took longer than {limit:.0f} s"
        assert code == 0, out[-300:]
    return f"{count} devices: {seconds[1] / seconds[0]:.2f} of the time of one, start included"


def _attack(spec: str, case: Case, some: slice, **options: object) -> "robench.Result":
    x, y = case.x[some], case.y[some]
    return robench.attack(spec, case.model, x, y, threat=case.threat, **options)  # type: ignore[arg-type]


CHECKS = (bf16, judge, deterministic, compiled, memory, autoattack)
