import itertools
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robench.catalog import cards
from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.defenses import load
from robench.training import train, trainer
from robench.training.partial import write_partial
from robench.training.trainer import measure
from tests.processes import Process

CARD = """
builder = "vit(image_size=16, patch_size=8, width=8, depth=1, heads=2, num_classes=10)"
dataset = "digits"

[recipe]
shift = 1
samples = 512
evaluation = "Linf:0.1"
measured = 64

[recipe.pretraining]
epochs = 3
warmup = 1
batch_size = 128
decoder_width = 8
decoder_depth = 1
decoder_heads = 2

[recipe.finetuning]
epochs = 3
warmup = 1
batch_size = 128
lr = 3e-3
eps = 0.1
step_size = 0.1
steps = 1
ramp = 2
average = 0.9
"""


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(CARD)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(CARD)
    return train(str(folder / "tiny.toml"), output=folder / "tiny.safetensors", progress=False)


def train_and_die(card: Path, output: Path, saves: int) -> None:
    """Train in a process that kills itself, with no warning, right after some saves."""
    trainer.SAVE_EVERY_SECONDS = 0.0
    count, save = itertools.count(1), trainer._Run.save

    def save_and_die(self, stage):
        save(self, stage)
        if next(count) == saves:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer._Run.save = save_and_die
    train(str(card), output=output, progress=False)


def die_after(card: Path, output: Path, saves: int) -> int:
    return Process(train_and_die, card, output, saves, cwd=card.parent).wait()[0]


@pytest.mark.parametrize(
    "saves", [pytest.param(8, marks=pytest.mark.slow), 10, pytest.param(14, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_gives_the_same_bits(card, whole, saves):
    """Killed after an epoch of pre-training, and in the middle of one of each stage: 4 steps an epoch, 3 epochs."""
    output = card.with_suffix(".safetensors")
    assert die_after(card, output, saves) == -signal.SIGKILL
    assert not output.exists()
    assert output.with_name("tiny.safetensors.partial").exists()
    result = train(str(card), output=output, progress=False)
    assert result.sha256 == whole.sha256
    assert (result.clean, result.robust) == (whole.clean, whole.robust)
    assert sorted(p.name for p in card.parent.iterdir()) == ["tiny.safetensors", "tiny.toml"]


def test_the_checkpoint_is_what_the_loader_wants(card, whole):
    loaded = load(str(card), checkpoint=whole.path)
    assert loaded.checkpoint_sha256 == whole.sha256
    assert whole.n == 64
    assert 0 <= whole.robust <= whole.clean <= 64
    assert whole.clean_accuracy == whole.clean / 64


def test_another_seed_gives_other_weights(card, whole):
    other = train(str(card), output=card.with_name("o.safetensors"), seed=1, progress=False)
    assert other.seed == 1
    a, b = load_file(whole.path), load_file(other.path)
    assert all(not torch.equal(a[key], b[key]) for key in a)


def test_the_callers_random_numbers_are_left_alone(card):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(str(card), output=card.with_suffix(".safetensors"), progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_the_threads_are_the_recipes_and_then_the_callers_again(card, monkeypatch):
    # One step of each stage: two threads spend more on waiting for each other than on the work.
    short = CARD.replace("samples = 512", "threads = 2\nsamples = 64").replace("epochs = 3", "epochs = 1")
    card.write_text(short.replace("warmup = 1", "warmup = 0"))
    seen = []
    monkeypatch.setattr(trainer, "measure", lambda *_, **__: seen.append(torch.get_num_threads()) or (1, 1))
    before = torch.get_num_threads()
    train(str(card), output=card.with_suffix(".safetensors"), progress=False)
    assert before == torch.get_num_threads() != seen[0] == 2


def test_a_partial_file_of_something_else(card):
    output = card.with_suffix(".safetensors")
    partial = output.with_name(output.name + ".partial")
    write_partial(partial, {"seconds": 0.0}, "another")
    with pytest.raises(
        ResourceError, match=r"another recipe, network, data or seed: delete .* or start over"
    ):
        train(str(card), output=output, progress=False)
    # As releases wrote it that kept no checksum.
    torch.save({"fingerprint": "another"}, partial)
    with pytest.raises(ResourceError, match="by another release of robench: delete"):
        train(str(card), output=output, progress=False)
    train(str(card), output=output, progress=False, fresh=True)
    assert not partial.exists()


def interrupted(card, monkeypatch):
    """The partial file of a training that was stopped after its first save."""
    output = card.with_suffix(".safetensors")
    save = trainer._Run.save

    def once(self, stage):
        save(self, stage)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "SAVE_EVERY_SECONDS", 0)
        patch.setattr(trainer._Run, "save", once)
        with pytest.raises(KeyboardInterrupt):
            train(str(card), output=output, progress=False)
    return output.with_name(output.name + ".partial")


@pytest.mark.parametrize("place", ["cut", 0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_damaged_partial_file_is_said_and_the_training_starts_again(
    card, whole, monkeypatch, capsys, place
):
    partial = interrupted(card, monkeypatch)
    data = bytearray(partial.read_bytes())
    if place == "cut":
        data = data[: len(data) // 2]
    else:
        data[int(place * len(data)) if isinstance(place, float) else place] ^= 4
    partial.write_bytes(data)
    again = train(str(card), output=card.with_suffix(".safetensors"), progress=True)
    assert f"{partial.name} is damaged" in capsys.readouterr().err
    assert again.sha256 == whole.sha256


@pytest.mark.parametrize("changed", ["robench", "torch"])
def test_a_training_is_not_gone_on_with_by_another_release(card, monkeypatch, changed):
    partial = interrupted(card, monkeypatch)
    if changed == "robench":
        monkeypatch.setattr("robench.training.partial.release", lambda: "9.9 (0123abcd)")
    else:
        monkeypatch.setattr(torch, "__version__", "9.9")
    before = partial.read_bytes()
    with pytest.raises(ResourceError, match=rf"by {changed} .*this is {changed} 9\.9.*--fresh"):
        train(str(card), output=card.with_suffix(".safetensors"), progress=False)
    assert partial.read_bytes() == before


def test_what_cannot_be_trained(card, tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        train(str(card), output=tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="unknown device"):
        train(str(card), output=tmp_path / "w.safetensors", device="abacus")
    card.write_text(CARD.split("[recipe]")[0])
    with pytest.raises(UsageError, match="no recipe: give a card"):
        train(str(card))
    card.write_text(CARD.replace("decoder_heads = 2", "decoder_heads = 3"))
    with pytest.raises(UsageError, match="the masked autoencoder cannot be built"):
        train(str(card), output=tmp_path / "w.safetensors", progress=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place_by_permissions(card, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError, match="cannot write"):
        train(str(card), output=tmp_path / "w.safetensors", progress=False)


def test_an_unwritable_place_is_found_before_training(card, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*--output"):
        train(str(card), output=tmp_path / "file" / "w.safetensors", progress=False)


def test_progress_goes_to_stderr(card, capsys):
    result = train(str(card), output=card.with_suffix(".safetensors"))
    assert f"PGD-20 at Linf:0.1 {result.robust / 64:.1%} of 64 test images" in str(result)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pre-training: epoch 3/3, loss" in captured.err


@pytest.mark.slow
def test_another_network_than_a_vit_is_pretrained_and_tuned(card):
    builder = "convnext(image_size=16, patch_size=1, width=4, depths=(1, 1, 1, 1), num_classes=10)"
    card.write_text("\n".join([f'builder = "{builder}"', *CARD.splitlines()[2:]]))
    result = train(str(card), output=card.with_suffix(".safetensors"), progress=False)
    assert load(str(card), checkpoint=result.path).checkpoint_sha256 == result.sha256


@pytest.mark.gpu
def test_it_trains_on_a_gpu(card):
    result = train(str(card), output=card.with_suffix(".safetensors"), device="cuda", progress=False)
    assert load(str(card), checkpoint=result.path).checkpoint_sha256 == result.sha256


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_shipped_recipe_gives_the_shipped_accuracy(tmp_path, seed):
    """Clean within a point of the shipped checkpoint; PGD-20 within three, its noise on 539 images."""
    result = train("mimir-digits", output=tmp_path / "m.safetensors", seed=seed, progress=False)
    test = load_dataset("digits")
    clean, robust = measure(load("mimir-digits").defense, test.x, test.y, 0.1)
    assert cards()["mimir-digits"].threat == result.threat
    assert abs(result.clean - clean) / 539 <= 0.01
    assert abs(result.robust - robust) / 539 <= 0.03
