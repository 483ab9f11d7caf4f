"""What the trainer gives every method: steps that help, resume, accumulation, bf16, logs, several processes."""

import copy
import csv
import dataclasses
import importlib.util
import io
import math
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from robench import catalog
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.io import read_sealed
from robench.core.trust import trusting
from robench.data import load_dataset
from robench.defenses import load
from robench.training import Finetuning, Recipe, read_recipe, train, trainer
from robench.training.adversarial import pgd
from robench.training.batches import InMemory
from robench.training.distributed import ProcessGroup
from robench.training.methods import find_method, methods
from robench.training.schedule import parameter_groups
from robench.training.stages import Stage, finetuning_stage
from robench.training.trainer import fingerprint
from tests.combinations import first_only

VIT = "vit(image_size=16, patch_size=8, width=16, depth=1, heads=2, num_classes=10)"
CARD = """
builder = '{builder}'
dataset = "digits"
[recipe]
shift = {shift}
samples = {samples}
evaluation = "Linf:0.1"
measured = 64
[recipe.finetuning]
method = "{method}"
epochs = 3
warmup = 1
batch_size = 128
drop_path = {drop_path}
lr = 3e-3
eps = 0.1
step_size = 0.1
steps = {steps}
ramp = 2
average = 0.9
"""
# Those with an inner maximizer: denoised has none, and tests of its own.
ADVERSARIAL = [name for name in methods if methods.get(name).most_steps]
SHORT = {"generalist": "generalist(every=1, start=0.0)"}


def builder(method):
    return f'dbat(base="{VIT}")' if method == "dbat" else VIT


def network(method="pgd-at", drop_path=0.0):
    torch.manual_seed(0)
    text = builder(method)
    spec = specs.parse(text.replace("depth=1", f"depth=2, drop_path={drop_path}") if drop_path else text)
    return specs.build(spec, registry.defenses.get(spec.name)).classifier


def write_card(folder, method="pgd-at", steps=1, shift=1, drop_path=0.1, samples=384):
    path = folder / "tiny.toml"
    text = CARD.format(
        builder=builder(method),
        method=SHORT.get(method, method),
        steps=steps,
        shift=shift,
        drop_path=drop_path,
        samples=samples,
    )
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def digits():
    found = load_dataset("digits", "train")
    return found.x[:256], found.y[:256]


@pytest.mark.parametrize("method", first_only(2, ADVERSARIAL))
def test_a_few_steps_lower_the_adversarial_loss(method, digits):
    x, y = digits
    config = Finetuning(
        method=SHORT.get(method, method),
        epochs=20,
        warmup=1,
        batch_size=32,
        drop_path=0.0,
        label_smoothing=0.0,
        lr=8e-3,
        layer_decay=1.0,
        eps=0.05,
        step_size=0.05,
        steps=1,
        average=0.9,
    )
    model, average = network(method), network(method)
    stage = finetuning_stage(model, average, config)

    def adversarial_loss():
        torch.manual_seed(1)
        average.eval()
        with torch.no_grad():
            output = average(pgd_images())
        return float(F.cross_entropy(output, y))

    def pgd_images():
        with torch.enable_grad():
            return pgd(average, x, y, 0.05, 0.02, 5)

    before = adversarial_loss()
    list(stage.run(InMemory(x, y), Recipe(finetuning=config)))
    assert adversarial_loss() < 0.9 * before


class Stopped(Exception):
    pass


@pytest.mark.parametrize("method", first_only(2, dict.fromkeys(["pgd-at", "generalist", *ADVERSARIAL])))
def test_stopped_and_resumed_gives_the_same_bits(method, tmp_path, monkeypatch):
    """Stopped after 2 of 3 epochs, from a new process's point of view: all that goes on is in the file."""
    monkeypatch.setattr(
        trainer, "measure", lambda *_, **__: (1, 1)
    )  # the weights are compared, not what they reach
    card = write_card(tmp_path, method)
    whole = train(str(card), output=tmp_path / "whole.safetensors", progress=False)
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save = trainer._Run.save

    def save_and_stop(self, stage):
        save(self, stage)
        if stage.done == 2:
            raise Stopped

    output = tmp_path / "tiny.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(trainer._Run, "save", save_and_stop)
        with pytest.raises(Stopped):
            train(str(card), output=output, progress=False)
    assert train(str(card), output=output, progress=False).sha256 == whole.sha256
    assert load(str(card), checkpoint=output).checkpoint_sha256 == whole.sha256


def test_dbat_refuses_a_network_of_plain_classes(tmp_path):
    card = write_card(tmp_path, "dbat")
    card.write_text(card.read_text().replace(builder("dbat"), VIT))
    with pytest.raises(UsageError, match=r"write the builder as dbat\(base='...'\)"):
        train(str(card), output=tmp_path / "t.safetensors", progress=False)


@pytest.mark.parametrize("method", [name for name in ADVERSARIAL if name != "pgd-at"])
def test_a_baselines_card_says_how_to_make_its_weights(method):
    with pytest.raises(ResourceError, match=f"without trained weights.*robench train {method} writes one"):
        load(method, dataset="digits")


def test_the_benchmark_writes_cards_that_can_be_trained(tmp_path):
    path = Path(__file__).parents[2] / "perf" / "at_baselines.py"
    spec = importlib.util.spec_from_file_location("at_baselines", path)
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules["at_baselines"] = benchmark  # dataclasses look it up
    spec.loader.exec_module(benchmark)
    for name in benchmark.NETWORKS:
        for method in ADVERSARIAL:
            card = catalog.read(catalog.Card, benchmark.write_card(tmp_path, name, method, epochs=10))
            recipe = read_recipe(card.recipe, card.name)
            config = recipe.finetuning
            assert (config.epochs, config.warmup, config.ramp) == (10, pytest.approx(0.3), 5)
            defense = specs.build(
                specs.parse(card.builder), registry.defenses.get(specs.parse(card.builder).name)
            )
            finetuning_stage(defense.classifier, copy.deepcopy(defense.classifier), config)


def test_generalists_average_follows_the_mix_and_is_handed_out():
    """By hand: robust 3, natural 1, global 2, first step of one: share .4 at the end, decay 1 / 10."""
    average = nn.Linear(1, 1)
    method = find_method("generalist(every=1, start=0.0)")
    experts = method.learners(nn.Linear(1, 1))
    values = ((experts.robust, 3.0), (experts.natural, 1.0), (average, 2.0))
    for model, value in values:
        nn.init.constant_(model.weight, value)
    optimizer = torch.optim.AdamW(experts.parameters())
    stage = Stage(
        "mix", experts, optimizer, lambda *_: None, lambda *_: 0.0, 1, 1, (average, 0.999), method=method
    )
    stage._update_average(0, 1)
    expected = 0.1 * 2.0 + 0.9 * (0.4 * 3.0 + 0.6 * 1.0)
    for model, _ in values:
        assert float(model.weight.detach()) == pytest.approx(expected)


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_accumulated_gradients_are_the_whole_batchs(method, digits):
    """With random starts and stochastic depth: a row's random numbers do not depend on the parts."""
    x, y = digits[0][:10], digits[1][:10]
    gradients = []
    for parts in (1, 4):  # 2, 3, 2 and 3 rows
        config = Finetuning(method=SHORT.get(method, method), accumulate=parts, eps=0.1, steps=1, average=0.9)
        model = network(method, drop_path=0.5)
        stage = finetuning_stage(model, network(method, drop_path=0.5), config)
        torch.manual_seed(4)
        loss = stage._backward(x, y, 0.0, stage._parts(len(x), ProcessGroup()))
        gradients.append([loss, *(p.grad for p in stage.model.parameters())])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


class Narrow(nn.Module):
    """A network with batch statistics that runs out of memory on more than `most` images."""

    def __init__(self, most):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, 10))
        self.most = most

    def forward(self, x):
        logits = self.layers(x)
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits


def test_without_memory_training_goes_on_as_if_in_smaller_micro_batches(digits):
    def trained(most, accumulate):
        model = Narrow(most)
        stage = Stage(
            "narrow", model, torch.optim.SGD(parameter_groups(model, 0.0), 0.1),
            lambda x, y, epoch: F.cross_entropy(model(x + 0.1 * torch.randn_like(x)), y),
            lambda step, steps: 0.1, epochs=2, batch_size=32, accumulate=accumulate,
        )  # fmt: skip
        losses = list(stage.run(InMemory(digits[0][:96], digits[1][:96]), Recipe(Finetuning())))
        return losses, stage

    losses, narrow = trained(10, 1)
    expected, whole = trained(32, 4)
    assert losses == expected and narrow.parts == 4
    for a, b in zip(narrow.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_bf16_computes_nearly_the_same_loss_and_leaves_weights_in_fp32(method, digits):
    x, y = digits[0][:32], digits[1][:32]
    losses = []
    for precision in ("fp32", "bf16"):
        config = Finetuning(method=method, precision=precision, eps=0.05, steps=1, average=0.9)
        stage = finetuning_stage(network(method), network(method), config)
        torch.manual_seed(3)
        losses.append(float(stage._backward(x, y, 0.0, stage._parts(len(x), ProcessGroup()))))
        assert {p.dtype for p in stage.model.parameters()} == {torch.float32}
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in stage.model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_what_was_begun_before_there_were_methods_goes_on():
    """The fingerprints of the shipped recipes, as they were when PGD was the only method."""
    known = {
        "pgd-at-digits": "a64d7fe9fbdd7529530321d4f46a177b2c7559e16275ec4912693ee0574d3473",
        "mimir-digits": "6e3ec0716699d995a932a566ec2ee139dba902aafe8ec6a47f25b80bee310bae",
    }
    for name, expected in known.items():
        card = catalog.cards()[name]
        recipe = read_recipe(card.recipe, name)
        assert fingerprint(specs.parse(card.builder), recipe, "data cpu") == expected
        changed = dataclasses.replace(recipe.finetuning, method="trades")
        changed = dataclasses.replace(recipe, finetuning=changed)
        assert fingerprint(specs.parse(card.builder), changed, "data cpu") != expected


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_has_a_line_an_epoch_and_survives_an_interruption(tmp_path, monkeypatch):
    card, log = write_card(tmp_path, samples=1024), tmp_path / "log.csv"
    log.write_text("what was here before\n")
    monkeypatch.setattr(trainer, "measure", lambda *_, **__: (1, 1))
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save, said = trainer._Run.save, trainer.Reporter.epoch

    def stop_unsaved(self, stage):
        if stage.done == 2:
            raise Stopped
        save(self, stage)

    output = tmp_path / "tiny.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(trainer._Run, "save", stop_unsaved)
        with pytest.raises(Stopped):
            train(str(card), output=output, progress=False, csv=log)
    assert [row["epoch"] for row in rows(log)] == ["1", "2"]
    shown = []
    monkeypatch.setattr(
        trainer.Reporter, "epoch", lambda self, done, loss: (shown.append(loss), said(self, done, loss))
    )
    train(str(card), output=output, progress=False, csv=log)
    found = rows(log)
    assert [(row["stage"], row["epoch"]) for row in found] == [("fine-tuning", f"{i}") for i in (1, 2, 3)]
    assert [float(row["loss"]) for row in found[1:]] == pytest.approx(shown, rel=1e-5)
    rates = [float(row["lr"]) for row in found]
    assert rates[0] > rates[1] > rates[2] > 0
    seconds = [float(row["seconds"]) for row in found]
    assert seconds == sorted(seconds)


def test_the_log_of_a_first_stage_survives_an_interruption_in_the_first_epoch_of_the_next(
    tmp_path, monkeypatch
):
    card, log, output = write_card(tmp_path), tmp_path / "log.csv", tmp_path / "tiny.safetensors"
    stage = "[recipe.pretraining]\nepochs = 1\nwarmup = 0\ndecoder_width = 8\ndecoder_heads = 2\n"
    card.write_text(f"{card.read_text()}\n{stage}")
    monkeypatch.setattr(trainer, "measure", lambda *_, **__: (1, 1))
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save = trainer._Run.save

    def save_and_stop(self, stage):
        save(self, stage)
        if stage.name == "fine-tuning" and stage.steps_done == 2:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(trainer._Run, "save", save_and_stop)
        with pytest.raises(Stopped):
            train(str(card), output=output, progress=False, csv=log)
    before = rows(log)
    train(str(card), output=output, progress=False, csv=log)
    assert [row["stage"] for row in rows(log)] == ["pre-training"] + 3 * ["fine-tuning"]
    assert rows(log)[0] == before[0]


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, monkeypatch):
    card, output = write_card(tmp_path), tmp_path / "t.safetensors"
    card.write_text(card.read_text().replace("lr = 3e-3", "lr = 1e30"))
    said = r"the loss became nan in epoch 1 of fine-tuning: lower lr"
    with pytest.raises(UsageError, match=said):
        train(str(card), output=output, progress=False)
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(UsageError, match=said):
        train(str(card), output=output, progress=False)
    partial = output.with_name("t.safetensors.partial")
    state = torch.load(io.BytesIO(read_sealed(partial)), weights_only=True)["progress"]
    assert math.isfinite(state["total"]) and not output.exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_classes=10", "num_classes=3", "has 3 classes, but dataset digits has 10"),
        ("image_size=16", "image_size=32", "takes images of 32 px, but dataset digits has 16 px"),
    ],
)
@pytest.mark.parametrize("stage", ["", "\n[recipe.pretraining]\nepochs = 1\n"])
def test_a_network_that_does_not_suit_the_images(tmp_path, old, new, said, stage):
    card = write_card(tmp_path)
    card.write_text(card.read_text().replace(old, new) + stage)
    with pytest.raises(UsageError, match=f"tiny {said}"):
        train(str(card), output=tmp_path / "t.safetensors", progress=False)


@trusting()  # the card names the dataset by its path
def test_a_missing_test_split_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Stage, "run", lambda *_, **__: pytest.fail("it trains"))
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    table = {"image": [{"bytes": picture.getvalue(), "path": None}] * 10, "label": range(10)}
    pq.write_table(pa.table(table), tmp_path / "train-00000-of-00001.parquet")
    card = write_card(tmp_path, samples=10)
    card.write_text(card.read_text().replace('"digits"', f"'parquet:{tmp_path}'"))
    with pytest.raises(UsageError, match="no part for the split test"):
        train(str(card), output=tmp_path / "t.safetensors", progress=False)


def test_a_warm_up_that_never_ends_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trainer, "measure", lambda *_, **__: (1, 1))
    card = write_card(tmp_path)
    card.write_text(card.read_text().replace("warmup = 1", "").replace("ramp = 2", "ramp = 4"))
    train(str(card), output=tmp_path / "t.safetensors")
    said = capsys.readouterr().err
    assert "warmup = 5 is longer than epochs = 3, so the learning rate only reaches 60% of its full" in said
    assert "ramp = 4 is longer than epochs = 3, so the inner attack only reaches 75%" in said


def test_a_log_that_cannot_be_written(tmp_path):
    card = write_card(tmp_path)
    with pytest.raises(ResourceError, match="cannot write"):
        train(str(card), output=tmp_path / "t.safetensors", progress=False, csv=card / "log.csv")


def test_a_process_group_as_torchrun_describes_it(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert ProcessGroup.from_environment() == ProcessGroup()
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    group = ProcessGroup.from_environment()
    assert group == ProcessGroup(5, 8, 1) and not group.is_main
    assert group.device("cuda") == "cuda:1" and group.device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert group.local_size == 4
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(UsageError, match="RANK=5, WORLD_SIZE=5, LOCAL_RANK=1: expected a rank below"):
        ProcessGroup.from_environment()


def test_a_batch_too_small_to_share(digits):
    x, y = digits
    config = Finetuning(batch_size=2, steps=0)
    stage = finetuning_stage(network(), network(), config)
    with pytest.raises(UsageError, match="cannot split a batch of 2 images over 3 processes"):
        next(stage.run(InMemory(x, y), Recipe(finetuning=config), ProcessGroup(0, 3)))
