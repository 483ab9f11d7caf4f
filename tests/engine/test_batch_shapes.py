"""Calls with few rows take smaller batches, but only where a network gives the same bits."""

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import robench
from robench.core.errors import UsageError
from robench.core.rng import normal_like
from robench.defenses import Defense
from robench.engine.batch_shapes import BatchShapes
from robench.evaluation.attack import attack
from robench.records.record import VOLATILE, read_record
from tests.models import images, small_net


class Counted(nn.Module):
    """A network that keeps the sizes of its batches; with `sizes`, it refuses all others."""

    def __init__(self, sizes=None, depends=False):
        super().__init__()
        self.net, self.sizes, self.depends = small_net().eval(), sizes, depends
        self.seen: list[int] = []

    def forward(self, x):
        if self.sizes and len(x) not in self.sizes:
            raise ValueError("exported for another batch size")
        self.seen.append(len(x))
        return self.net(x) * (1 + 1e-6 * len(x) if self.depends else 1)


def row_sums(size):
    return [torch.arange(1.0, size + 1)]


def test_sizes_are_few_and_end_with_the_full_one():
    assert BatchShapes(64).sizes == list(range(4, 65, 4))
    assert BatchShapes(24).sizes == [4, 8, 12, 16, 20, 24]
    assert BatchShapes(6).sizes == [4, 6]
    assert BatchShapes(3).sizes == [3]
    assert BatchShapes(1024).sizes == [4, 8, 16, 32, *range(64, 1025, 64)]


def test_a_size_is_tried_when_as_many_rows_were_void():
    shapes, called = BatchShapes(16), []

    def call(size):
        called.append(size)
        return row_sums(size)

    for _ in range(6):
        assert len(shapes.call("logits", 10, call)[0]) == 10
    # Six void rows a call: the second call tries 12, as 12 have been void.
    assert called == [16, 16, 12, 12, 12, 12, 12]
    assert shapes.same == {("logits", 12): True} and not shapes.rigid


def test_a_size_with_other_bits_is_not_used():
    shapes = BatchShapes(8)
    results = [shapes.call("logits", 3, lambda size: [torch.ones(size) / size])[0] for _ in range(5)]
    assert all(torch.equal(result, torch.ones(3) / 8) for result in results)
    assert shapes.same == {("logits", 4): False} and shapes.rigid


def test_zeros_prove_nothing():
    shapes = BatchShapes(8)
    shapes.call("gradient", 3, lambda size: [torch.ones(size), torch.zeros(size)])
    assert shapes.rigid


SPECS = [
    ('apgd(steps=6)+apgd(loss="dlr", targets=3, steps=6)', "Linf:0.02"),
    ("apgd-l1(steps=6, restarts=2)", "L1:1"),
    ("fab(steps=4)+fab(steps=4, targets=3)", "L2:0.2"),
    ("square(queries=40)", "Linf:0.02"),
    ("cw(steps=4, rounds=2, minimise=True)", "L2:0.2"),
]


@pytest.mark.parametrize(("spec", "threat"), SPECS)
def test_results_are_those_of_whole_batches(spec, threat):
    x, y = images(20), small_net().eval()(images(20)).argmax(1)
    free, fixed = Counted(), Counted(sizes={16})
    ours, whole = (attack(spec, model, x, y, threat=threat, batch_size=16) for model in (free, fixed))
    assert ours.fooled_by == whole.fooled_by and torch.equal(ours.x_adv, whole.x_adv)
    assert torch.equal(ours.steps, whole.steps) and ours.passes == whole.passes
    assert set(fixed.seen) == {16}
    assert min(free.seen) < 16 and ours.rows["forward"] < whole.rows["forward"]


def test_a_network_whose_bits_depend_on_the_size_is_called_on_whole_batches():
    x, y = images(20), small_net().eval()(images(20)).argmax(1)
    model = Counted(depends=True)
    ours = attack("apgd(steps=30)", model, x, y, threat="Linf:0.004", batch_size=16)
    whole = attack(
        "apgd(steps=30)", Counted(sizes={16}, depends=True), x, y, threat="Linf:0.004", batch_size=16
    )
    assert torch.equal(ours.x_adv, whole.x_adv) and ours.passes == whole.passes
    # One trial of each size and kind of call.
    small = [size for size in model.seen if size < 16]
    assert small and len(small) <= 2 * 3


class Noise(nn.Module):
    def forward(self, x):
        return (x + 0.05 * normal_like(x)).clamp(0, 1)


def test_draws_share_batches():
    x, y = images(24), small_net()(images(24)).argmax(1)
    defense = Defense(small_net(), num_classes=10, image_size=8, purifier=Noise(), stochastic=True).eval()
    outcome = attack("apgd(steps=8, eot=5)", defense, x, y, threat="Linf:1e-4", batch_size=24)
    # Padding, trials and the verdicts of ten draws come on top of the counted passes.
    assert outcome.passes["backward"] <= outcome.rows["backward"] <= 1.05 * outcome.passes["backward"]


def test_queries_ahead_take_the_place_of_padding():
    x, y = images(7), small_net().eval()(images(7)).argmax(1)
    outcome = attack("square(queries=200)", small_net().eval(), x, y, threat="Linf:1e-6", batch_size=16)
    assert outcome.robust.all() and outcome.rows["forward"] <= 1.1 * outcome.passes["forward"]


def test_a_record_has_the_rows_sent(tmp_path):
    record = robench.run(
        defense="standard", attack="apgd(steps=5)", dataset="digits", samples=8, results=tmp_path
    )
    content = json.loads((record.folder / "record.json").read_text())
    assert content["rows"]["forward"] >= content["passes"]["forward"]
    assert content["rows"]["backward"] >= content["passes"]["backward"] and "rows" in VOLATILE
    del content["rows"]
    (record.folder / "record.json").write_text(json.dumps(content))
    assert read_record(record.folder).passes == record.passes


def test_a_model_for_one_batch_size_is_attacked():
    x, y = images(10), small_net().eval()(images(10)).argmax(1)
    with pytest.raises(UsageError, match="exported for another"):
        attack("apgd(steps=3)", Counted(sizes={8}), x, y, threat="Linf:0.02", batch_size=4)
    assert attack("apgd(steps=3)", Counted(sizes={8}), x, y, threat="Linf:0.02", batch_size=8).passes[
        "forward"
    ]


class Operations(TorchDispatchMode):
    """Counts the operations of torch."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


# Operations of torch in a step of seven rows that nothing fools, with those of the network. Each costs a small network
# more than its arithmetic. Those of NumPy are not counted. A table that may only fall.
OPERATIONS = {
    ("apgd(steps={})", "Linf:1e-6"): 64,
    ('apgd(steps={}, loss="dlr", targets=1)', "L2:1e-6"): 123,
    ("fab(steps={}, targets=1)", "Linf:1e-6"): 310,
    ("square(queries={})", "Linf:1e-6"): 71,
    ("ddn(steps={})", "L2:1e-6"): 118,
}


@pytest.mark.parametrize(("spec", "threat"), OPERATIONS)
def test_a_step_takes_no_more_operations_than_before(spec, threat):
    x, y = images(7), small_net().eval()(images(7)).argmax(1)
    counts = []
    for steps in (20, 45):
        with Operations() as operations:
            attack(spec.format(steps), small_net().eval(), x, y, threat=threat, batch_size=16)
        counts.append(operations.count)
    assert (counts[1] - counts[0]) / 25 <= OPERATIONS[spec, threat]
