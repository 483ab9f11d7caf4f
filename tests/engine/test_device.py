"""Devices, batch sizes and precisions: what `auto` means, and what is refused in one line."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robench.core.errors import UsageError
from robench.core.torch_state import standard_state
from robench.engine.device import LARGEST_BATCH, choose_batch_size, choose_device, choose_precision
from robench.records import json_files

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["meta", "nowhere", "cuda:x", "hpu", ""])
def test_unknown_devices_are_one_line(name):
    with pytest.raises(UsageError, match=f'unknown device "{name}": expected auto, cpu'):
        choose_device(name)


def test_apples_gpu_lacks_what_distances_need():
    with pytest.raises(UsageError, match=r"mps does not support float64"):
        choose_device("mps")


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_device_that_is_not_here_is_named_with_how_many_are(monkeypatch, kind):
    backend = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    monkeypatch.setattr("torch.get_device_module", lambda device: backend)
    assert choose_device(f"{kind}:1") == torch.device(kind, 1)
    with pytest.raises(UsageError, match=rf"no device \"{kind}:2\" here \(2 {kind.upper()} devices found\)"):
        choose_device(f"{kind}:2")
    monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(UsageError, match=rf"no device \"{kind}\" here \(0 "):
        choose_device(kind)


@pytest.mark.parametrize(
    ("device", "side", "samples", "size"),
    [
        (CPU, 32, 1000, 64), (CPU, 32, 20, 24), (CPU, 128, 1000, 32), (CPU, 224, 1000, 16),
        (CUDA, 32, 10_000, 1024), (CUDA, 32, 1000, 256), (CUDA, 32, 8, 8), (CUDA, 224, 5000, 128),
        (torch.device("xpu"), 32, 1000, 256),
    ],
)  # fmt: skip
def test_automatic_batch_sizes(device, side, samples, size):
    assert choose_batch_size("auto", device, side, samples) == size


def test_a_run_takes_no_batch_that_its_record_could_not_have():
    for kind in ("record", "certification"):
        assert json_files.schema(kind)["properties"]["batch_size"]["maximum"] == LARGEST_BATCH
    assert choose_batch_size(str(LARGEST_BATCH), CPU, 32, 8) == LARGEST_BATCH
    for size in (0, LARGEST_BATCH + 1):
        with pytest.raises(UsageError, match=f'batch size "{size}": expected auto or .* from 1 to 65,536'):
            choose_batch_size(size, CPU, 32, 8)


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_bf16_is_chosen_where_the_chosen_gpu_computes_in_it(monkeypatch, capability, precision):
    monkeypatch.setattr("torch.cuda.get_device_capability", {CUDA: capability}.__getitem__)
    assert choose_precision("auto", CUDA) == precision
    assert choose_precision("auto", CPU) == "fp32"


CUDNN: Any = torch.backends.cudnn


@pytest.fixture
def cudnn():
    yield CUDNN
    CUDNN.conv.fp32_precision = CUDNN.rnn.fp32_precision = "tf32"
    CUDNN.allow_tf32 = True


def test_convolutions_are_not_computed_in_tf32_and_the_callers_setting_returns(cudnn):
    assert cudnn.allow_tf32
    with standard_state(), standard_state():
        assert not cudnn.allow_tf32
    assert cudnn.allow_tf32
    cudnn.allow_tf32 = False
    with standard_state():
        assert not cudnn.allow_tf32
    assert not cudnn.allow_tf32


def test_so_it_is_for_callers_of_the_newer_setting(cudnn):
    cudnn.conv.fp32_precision = "ieee"
    with standard_state():
        assert cudnn.conv.fp32_precision == cudnn.rnn.fp32_precision == "ieee"
    assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "tf32")
