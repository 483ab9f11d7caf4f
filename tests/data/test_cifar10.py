import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.datasets import CIFAR10

from robench.core.errors import ResourceError, UsageError
from robench.data import cifar10, load_dataset
from tests.data.real import REAL, needs

needs_images = needs(cifar10.FOLDER)


@needs_images
def test_real_images_in_the_files_order():
    images = load_dataset("cifar10", samples=500, data_dir=str(REAL))
    assert images.x.shape == (500, 3, 32, 32)
    assert images.x.dtype == torch.float32
    assert images.classes[images.y[0]] == "cat"
    with (REAL / cifar10.FOLDER / "test_batch").open("rb") as file:
        raw = pickle.load(file, encoding="bytes")
    assert images.y.tolist() == raw[b"labels"][:500]
    assert torch.equal((images.x[499] * 255).round().flatten(), torch.from_numpy(raw[b"data"][499]).float())


@needs_images
def test_more_images_than_available_are_refused():
    with pytest.raises(UsageError, match="has 10000"):
        load_dataset("cifar10", samples=10_001, data_dir=str(REAL))


def test_the_split_is_checked_before_the_files():
    with pytest.raises(UsageError, match="expected train or test"):
        load_dataset("cifar10", split="valid", data_dir="nowhere")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_or_damaged_without_a_network(tmp_path, monkeypatch, damage):
    if damage == "truncated":
        (tmp_path / cifar10.FOLDER).mkdir()
        (tmp_path / cifar10.FOLDER / "test_batch").write_bytes(b"\x80\x04 not a batch")

    def unreachable(self):
        raise URLError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", unreachable)
    with pytest.raises(ResourceError, match=r"no route to host.*--data-dir") as caught:
        load_dataset("cifar10", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_empty_folder_is_left_by_a_failed_download(tmp_path, monkeypatch):
    def half_way(self):
        Path(self.root).mkdir(parents=True)
        raise URLError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", half_way)
    with pytest.raises(ResourceError, match="no route to host"):
        load_dataset("cifar10", data_dir=str(tmp_path / "mistyped" / "folder"))
    assert not list(tmp_path.iterdir())


def test_the_folder_can_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBENCH_DATA", str(tmp_path))
    assert cifar10.default_root() == tmp_path
    monkeypatch.delenv("ROBENCH_DATA")
    assert cifar10.default_root() == Path.home() / ".cache" / "robench"
