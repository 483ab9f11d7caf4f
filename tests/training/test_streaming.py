# ruff: noqa: NPY002 - timm draws from NumPy's global generator
"""Training images that are read from disk while the network trains: folders, parquet files, workers, resume."""

import io
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from timm.data.mixup import Mixup, mixup_target
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor

from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.data._names import synsets
from robench.data._streamed_pictures import WINDOW, Pictures
from robench.training import Recipe, train
from robench.training.batches import InMemory, Streamed, batches_of
from robench.training.draws import seed_for, seeded
from robench.training.picture_augment import Augmentation, randaugment

CPU = torch.device("cpu")
RECIPE = Recipe(resized_crop=0.2, flip=True)
CARD = """
builder = "vit(image_size=224, patch_size=56, width=8, depth=1, heads=2, num_classes=1000)"
dataset = "imagenet"
[recipe]
resized_crop = 0.2
flip = true
evaluation = "Linf:4/255"
threads = 1
[recipe.pretraining]
epochs = 1
warmup = 0.5
batch_size = 5
decoder_width = 8
decoder_depth = 1
decoder_heads = 2
[recipe.finetuning]
epochs = 2
warmup = 0.5
batch_size = 4
lr = 3e-3
eps = "4/255"
step_size = "5/255"
steps = 1
randaugment = "rand-m9-mstd0.5-inc1"
erasing = 0.25
mixup = 0.8
cutmix = 1.0
resized_crop = 0.08
"""
KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from robench.training import trainer
trainer.SAVE_EVERY_SECONDS = 0.0
count, save = int(sys.argv[2]), trainer._Run.save
def save_and_die(self, stage):
    global count
    save(self, stage)
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
trainer._Run.save = save_and_die
trainer.train("card.toml", data_dir=".", output=sys.argv[1], progress=False, workers=2)
"""


def picture(k: int) -> Image.Image:
    """Random pixels, coarse enough to survive JPEG."""
    rng = np.random.default_rng(k)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((240 + 10 * k, 300), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten training pictures of three classes, and four for the test."""
    folder = tmp_path_factory.mktemp("data")
    for k in range(10):
        place = folder / "imagenet/train" / synsets()[10 * (k % 3)]
        place.mkdir(parents=True, exist_ok=True)
        picture(k).save(place / f"picture_{k}.JPEG")
    for k in range(4):
        place = folder / "imagenet/val" / synsets()[k]
        place.mkdir(parents=True)
        picture(k).save(place / f"ILSVRC2012_val_{k + 1:08d}.JPEG")
    return folder


@pytest.fixture
def images(root):
    return load_dataset("imagenet", "train", data_dir=str(root))


def parquet(folder: Path, rows: int, group: int) -> Path:
    place = folder / "imagenet-1k" / "data"
    place.mkdir(parents=True)
    contents = []
    for k in range(rows):
        buffer = io.BytesIO()
        picture(k % 7).save(buffer, "JPEG")
        contents.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": contents, "label": [k % 5 for k in range(rows)]})
    pq.write_table(table, place / "train-00000-of-00001.parquet", row_group_size=group)
    return folder


def test_training_pictures_are_decoded_when_they_are_used(images, root):
    assert isinstance(images.x, Pictures)
    assert images.x.shape == (10, 3, 224, 224)
    assert images.y.tolist() == [0, 10, 20] * 3 + [0]  # alternating between the classes
    assert images.digest != load_dataset("imagenet", "train", 9, str(root)).digest
    whole = images.x.picture(3)
    assert whole.size == (270, 300) and whole.mode == "RGB"
    # The test split has the same preprocessing, decoded at once.
    test = load_dataset("imagenet", "test", data_dir=str(root))
    assert torch.equal(images.x[0], test.x[0])


def test_folders_that_are_not_imagenets(root, tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    picture(0).save(tmp_path / "train/cat/0.JPEG")
    with pytest.raises(ResourceError, match=r"1 of 1 folders .* are not among ImageNet's 1,000 synsets"):
        load_dataset("imagenet", "train", data_dir=str(tmp_path))
    (tmp_path / "train/cat/notes.txt").write_text("")
    with pytest.raises(ResourceError, match=r"1 of the files and folders .* are not images"):
        load_dataset("imagenet", "train", data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="ids are those of validation images"):
        load_dataset('imagenet(ids="robustbench")', "train", data_dir=str(root))


def test_a_crop_is_torchvisions_from_the_whole_picture(images):
    stream = Streamed(images.x, images.y, CPU, 0)
    ((x, y),) = stream.read(
        [torch.tensor([4])], slice(0, 1), Recipe(resized_crop=0.2), Augmentation(), ("t",)
    )
    with seeded(seed_for("t", 4)):
        crop = RandomResizedCrop(224, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC)
        expected = pil_to_tensor(crop(Image.open(images.x.source[4]).convert("RGB")))
    assert torch.equal(x[0], expected / 255)
    assert y.tolist() == [10]


def test_batches_do_not_depend_on_workers_and_processes(images):
    order = [torch.tensor([3, 1, 4, 0]), torch.tensor([9, 2, 6, 5])]
    torch.manual_seed(0)
    state = torch.get_rng_state()

    def read(workers, rows):
        extra = Augmentation(randaugment="rand-m9-mstd0.5-inc1", erasing=0.5)
        stream = Streamed(images.x, images.y, CPU, workers)
        return [x for x, _ in stream.read(order, rows, RECIPE, extra, (0, "stage", 1))]

    alone, two = read(0, slice(0, 4)), read(2, slice(0, 4))
    shares = [read(1, slice(0, 2)), read(0, slice(2, 4))]
    for k in (0, 1):
        assert torch.equal(alone[k], two[k])
        assert torch.equal(alone[k], torch.cat([share[k] for share in shares]))
    assert torch.equal(torch.get_rng_state(), state)


def test_randaugment_and_erasing_are_timms(images):
    extra = Augmentation(randaugment="rand-m9-mstd0.5-inc1")
    with seeded(7):
        ours = extra.change(images.x.changed(2), 224, 0.0)
    with seeded(7):
        expected = randaugment("rand-m9-mstd0.5-inc1", 224)(images.x.changed(2))
    assert torch.equal(ours, pil_to_tensor(expected) / 255)
    # At the largest magnitude, timm keeps no bits, which recent releases of Pillow refuse.
    (posterize,) = [op for op in randaugment("rand-m10-inc1", 224).ops if op.name.startswith("Posterize")]
    posterize.prob = 1.0
    assert posterize(images.x.changed(2)).getextrema() == ((0, 0),) * 3
    with seeded(7):
        erased = Augmentation(erasing=1 - 1e-9).change(images.x.changed(2), 224, 0.0)
    changed = (erased != images.x[2]).any(0)
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    assert 0.02 * 224**2 < int(area) < 0.34 * 224**2  # timm's rectangle has 2 % to a third of the area
    assert float(changed.sum()) > 0.99 * int(area)
    with pytest.raises(UsageError, match='randaugment = "strong"'):
        randaugment("strong", 32)


def test_mixup_is_timms_and_leaves_numpys_generator_alone():
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6)
    torch.manual_seed(3)
    np.random.seed(1)
    ours, labels = Augmentation(mixup=0.8, cutmix=1.0, classes=6).mix(x.clone(), y)
    after = np.random.rand()
    torch.manual_seed(3)
    with seeded(int(torch.randint(2**62, ()))):
        expected, targets = Mixup(0.8, 1.0, label_smoothing=0.0, num_classes=6)(x.clone(), y)
    assert torch.equal(ours, expected) and torch.equal(labels, targets)
    np.random.seed(1)
    assert after == np.random.rand()
    # Smoothing in the loss is timm's smoothing of the targets.
    logits = torch.rand(6, 6)
    smooth = mixup_target(y, 6, 0.3, 0.1)
    plain = mixup_target(y, 6, 0.3, 0.0)
    torch.testing.assert_close(
        F.cross_entropy(logits, plain, label_smoothing=0.1), F.cross_entropy(logits, smooth)
    )
    with pytest.raises(UsageError, match="even number of images: got 5"):
        Augmentation(mixup=0.8, classes=6).mix(x[:5], y[:5])


def test_rows_of_parquet_files_stay_together_while_they_are_shuffled(tmp_path):
    images = load_dataset("imagenet", "train", data_dir=str(parquet(tmp_path, 90, 4)))
    assert isinstance(images.x, Pictures)
    assert images.y[:7].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert images.x.picture(16).size == picture(2).size
    torch.manual_seed(0)
    orders = [images.x.order() for _ in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(90))
        assert len({row // 4 for row in order[: 4 * WINDOW].tolist()}) <= WINDOW + 2
    assert not torch.equal(*orders)
    assert sorted(load_dataset("imagenet", "train", 50, str(tmp_path)).x.order().tolist()) == list(range(50))


def test_large_sets_are_streamed_and_small_ones_are_not(monkeypatch):
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    assert isinstance(batches_of(x, y, Augmentation(), CPU, 0), InMemory)
    assert isinstance(batches_of(x, y, Augmentation(randaugment="rand-m9"), CPU, 0), Streamed)
    monkeypatch.setattr("robench.training.batches.LARGEST_IN_MEMORY", 3000)
    stream = batches_of(x, y, Augmentation(), CPU, 0)
    assert isinstance(stream, Streamed)
    ((read, labels),) = stream.read([torch.tensor([2, 0])], slice(0, 2), Recipe(), Augmentation(), ())
    torch.testing.assert_close(read, x[[2, 0]], atol=0.5 / 255 + 1e-6, rtol=0)
    assert labels.tolist() == [2, 0]


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_resumed(root):
    """Killed by SIGKILL after 1 of 2 steps of pre-training, and after 1 of 2 steps of the second epoch."""
    card = root / "card.toml"
    card.write_text(CARD)
    whole = train(str(card), str(root), root / "whole.safetensors", progress=False, workers=0)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, "killed.safetensors"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for saves in ("1", "4"):
        done = subprocess.run([*command, saves], check=False, cwd=root, timeout=300, env=environment)
        assert done.returncode == -signal.SIGKILL
    resumed = train(str(card), str(root), root / "killed.safetensors", progress=False, workers=1)
    assert resumed.sha256 == whole.sha256


def test_a_worker_that_is_killed_ends_the_training_in_one_line(images, monkeypatch):
    def killed(picture, *_):
        os.kill(os.getpid(), signal.SIGKILL)

    stream = Streamed(images.x, images.y, CPU, 1)
    monkeypatch.setattr(Pictures, "picture", killed)
    with pytest.raises(ResourceError, match=r"a process that reads images ended .* with fewer --workers"):
        list(stream.read([torch.tensor([1])], slice(0, 1), RECIPE, Augmentation(), ()))


def test_a_damaged_picture_ends_the_training_in_one_line(root, tmp_path):
    card = root / "card.toml"
    card.write_text(CARD)
    damaged = root / "imagenet/train" / synsets()[20] / "picture_2.JPEG"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:1000])
    try:
        with pytest.raises(
            ResourceError, match=r"picture_2.JPEG, an image of imagenet\(.*damaged.*restore it$"
        ):
            train(str(card), str(root), tmp_path / "x.safetensors", progress=False, workers=2)
    finally:
        damaged.write_bytes(content)


def test_python_and_numpy_generators_are_restored():
    random.seed(2)
    expected = random.random()
    random.seed(2)
    with seeded(1):
        random.random()
        np.random.rand()
    assert random.random() == expected
