"""The digest of one set of weights is the same by whatever way the weights come, and another for other weights."""

import json
from dataclasses import replace

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from robench.core.errors import UsageError
from robench.defenses import Defense, load
from robench.defenses._state import COUNTERS, state_sha256
from robench.records.record import decode
from robench.verification.verify import findings
from tests.fabricate import make_run

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Normalised(nn.Module):
    """A network that normalizes by itself, its constants kept in one of several ways."""

    def __init__(self, network, how, mean=MEAN, std=STD):
        super().__init__()
        self.network = network
        tensors = [torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std)]
        if how == "buffers":
            self.register_buffer("mean", tensors[0])
            self.register_buffer("std", tensors[1])
        elif how == "temporary":
            self.register_buffer("mu", tensors[0].flatten(), persistent=False)
            self.register_buffer("sigma", tensors[1].flatten(), persistent=False)
        elif how == "parameters":
            self.mu, self.sigma = (nn.Parameter(each, requires_grad=False) for each in tensors)
        else:
            self.mean, self.std = list(mean), list(std)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)).eval()


def defense(net, **arguments):
    return Defense(net, num_classes=10, image_size=8, **arguments)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda net: net,
        nn.DataParallel,
        lambda net: nn.Sequential(nn.Identity(), net),
        lambda net: nn.ModuleDict({"module": nn.ModuleDict({"model": net})}),
        lambda net: net.double(),
        lambda net: defense(nn.Sequential(net)),
    ],
)
def test_wrappers_and_precision_change_no_digest(wrapped):
    assert state_sha256(wrapped(network())) == state_sha256(defense(network()))


@pytest.mark.parametrize("how", ["buffers", "temporary", "parameters", "attributes"])
def test_a_normalisation_counts_wherever_it_is_kept(how):
    outside = state_sha256(defense(network(), mean=MEAN, std=STD))
    assert state_sha256(defense(Normalised(network(), how))) == outside
    assert state_sha256(defense(Normalised(network(), how, std=(0.2, 0.25, 0.31)))) != outside
    assert state_sha256(defense(network())) != outside


def test_one_number_for_every_channel_is_the_same_as_three():
    one = state_sha256(defense(network(), mean=(0.5,), std=(0.25,)))
    assert state_sha256(defense(network(), mean=(0.5,) * 3, std=(0.25,) * 3)) == one
    none = state_sha256(defense(network(), mean=(0.0,), std=(1.0,)))
    assert none == state_sha256(defense(network()))
    of_torchvision = nn.Sequential(torchvision.transforms.Normalize((0.5,) * 3, (0.25,) * 3), network())
    assert state_sha256(of_torchvision) == one


@pytest.mark.parametrize("counter", sorted(COUNTERS))
def test_counters_change_no_digest(counter):
    net = network()
    before = state_sha256(net)
    for module in net.modules():
        module.register_buffer(counter, torch.tensor(7))
    assert state_sha256(net) == before


def test_every_weight_changes_the_digest():
    before = state_sha256(network())
    for name, tensor in network().state_dict().items():
        if tensor.is_floating_point():
            net = network()
            net.state_dict()[name].view(-1)[0] += 1e-3
            assert state_sha256(net) != before, name
    assert state_sha256(network(seed=1)) != before
    assert state_sha256(defense(network(), stochastic=True)) != before


def test_a_tensor_without_data_has_no_digest():
    with pytest.raises(UsageError, match=r"without data, 0\.bias: .* meta"):
        state_sha256(network().to("meta"))


def test_a_card_a_checkpoint_and_ones_own_code_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_door.py").write_text(
        "from robench.defenses import load_defense\n"
        "def build():\n    return load_defense('standard-digits').classifier\n"
        "def whole():\n    return load_defense('standard-digits')\n"
    )
    card = load("standard-digits")
    state = card.defense.classifier.state_dict()
    save_file({k: v.clone() for k, v in state.items()}, "bare.safetensors")
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, "wrapped.pth")
    doors = [load("standard-digits", checkpoint=file) for file in ("bare.safetensors", "wrapped.pth")]
    doors += [load("python:own_door.whole"), load("python:own_door.build(image_size=16)")]
    assert card.defense.mean is None and {door.state_sha256 for door in doors} == {card.state_sha256}
    # The files differ, and so do their digests.
    assert doors[0].checkpoint_sha256 != doors[1].checkpoint_sha256


def test_settings_of_a_purifier_are_part_of_it():
    plain, louder = load("de3-digits"), load("de3-digits(sigma=31)")
    assert plain.state_sha256 != louder.state_sha256
    assert plain.state_sha256 == load("de3-digits").state_sha256
    assert plain.state_sha256 != load(plain.classifier).state_sha256


def test_a_record_holds_the_digest_and_older_records_lack_it(tmp_path):
    run = make_run(tmp_path)
    older = run.write()
    content = json.loads(older.encode())
    assert "state_sha256" not in content["defense"]
    assert decode(older.encode()).job == older.job
    job = replace(older.job, defense=replace(older.job.defense, state_sha256="c" * 64))
    # What decides the outcome is what it was: old records still answer.
    assert job.key == older.job.key
    encoded = replace(older, job=job).encode()
    assert json.loads(encoded)["defense"]["state_sha256"] == "c" * 64
    assert decode(encoded).job == job


@pytest.mark.parametrize("right", [True, False])
def test_verify_holds_the_digest(tmp_path, right):
    run = make_run(tmp_path)
    state = run.loaded.state_sha256 if right else "c" * 64
    job = replace(run.job, defense=replace(run.job.defense, state_sha256=state))
    record = replace(run, job=job).write()
    checked = findings(record.folder, run.judge, run.images, loaded=run.loaded)
    assert [item.held for item in checked if item.field == "defense.state_sha256"] == [right]
