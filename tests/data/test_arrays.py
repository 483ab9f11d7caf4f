"""Variants of the CIFAR test sets, and NumPy archives."""

import pickle

import numpy as np
import pytest
import torch

from robench.core.errors import ResourceError, UsageError
from robench.data import _numpy_files, load_dataset
from robench.data._names import CIFAR10_CLASSES, CIFAR100_CLASSES
from tests.data.real import REAL, needs


def blank(path, rows):
    """Create a sparse .npy file of `rows` CIFAR-sized images of zeros; returns a writable memory map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path, "w+", np.uint8, (rows, 32, 32, 3))


@pytest.mark.parametrize(
    ("name", "folder", "classes"),
    [("cifar10-c", "CIFAR-10-C", CIFAR10_CLASSES), ("cifar100-c", "CIFAR-100-C", CIFAR100_CLASSES)],
)
def test_a_severity_is_its_block_of_the_file(tmp_path, name, folder, classes):
    images = blank(tmp_path / folder / "fog.npy", 50_000)
    images[20_000, 1, 2] = (10, 20, 30)
    images.flush()
    labels = ((np.arange(10_000) + 5) // 7 % len(classes)).astype(np.uint8)
    np.save(tmp_path / folder / "labels.npy", np.tile(labels, 5))
    found = load_dataset(f'{name}(severity=3, corruption="fog")', samples=3, data_dir=str(tmp_path))
    assert found.name == f'{name}(corruption="fog", severity=3)'
    assert found.x.shape == (3, 3, 32, 32) and found.ids.tolist() == [0, 1, 2]
    assert (found.x[0, :, 1, 2] * 255).round().tolist() == [10, 20, 30]
    assert found.x.sum() == found.x[0, :, 1, 2].sum()
    assert found.y.tolist() == [0, 0, 1]
    assert found.classes == classes
    with pytest.raises(UsageError, match="has 10000"):
        load_dataset(found.name, samples=10_001, data_dir=str(tmp_path))


def test_bad_files_of_cifar10_c_are_reported(tmp_path):
    name = 'cifar10-c(corruption="snow", severity=1)'
    with pytest.raises(ResourceError, match=r"CIFAR-10-C/snow\.npy"):
        load_dataset(name, data_dir=str(tmp_path))
    folder = tmp_path / "CIFAR-10-C"
    blank(folder / "snow.npy", 10_000).flush()
    with pytest.raises(ResourceError, match=r"labels\.npy: No such file"):
        load_dataset(name, data_dir=str(tmp_path))
    # A single severity, which five blocks of a fifth would not be.
    np.save(folder / "labels.npy", np.arange(10_000) % 10 + (np.arange(10_000) == 3))
    with pytest.raises(ResourceError, match=r"the first 2000 images are not repeated four times"):
        load_dataset(name, data_dir=str(tmp_path))
    np.save(folder / "labels.npy", np.zeros(50_000, np.int64))
    # A truncated file with fewer images than labels, and without five severities.
    with pytest.raises(ResourceError, match=r"labels\.npy: shape \(50000,\)"):
        load_dataset(name, data_dir=str(tmp_path))
    blank(folder / "snow.npy", 10_001).flush()
    with pytest.raises(ResourceError, match=r"snow\.npy: 10001 images"):
        load_dataset(name, data_dir=str(tmp_path))
    (folder / "snow.npy").write_bytes(b"\x93NUMPY cut")
    with pytest.raises(ResourceError, match=r"snow\.npy: damaged"):
        load_dataset(name, data_dir=str(tmp_path))


@pytest.mark.parametrize(("version", "rows"), [("v6", 2000), ("v4", 2021)])
def test_cifar10_1_in_the_layout_of_its_repository(tmp_path, version, rows):
    folder = tmp_path / "CIFAR-10.1" / "datasets"
    blank(folder / f"cifar10.1_{version}_data.npy", rows).flush()
    np.save(folder / f"cifar10.1_{version}_labels.npy", np.full(rows, 9, np.int32))
    name = "cifar10.1" if version == "v6" else 'cifar10.1(version="v4")'
    found = load_dataset(name, data_dir=str(tmp_path))
    assert found.name == name and len(found) == rows and found.classes[found.y[0]] == "truck"
    with pytest.raises(UsageError, match="v4 or v6"):
        load_dataset('cifar10.1(version="v5")', data_dir=str(tmp_path))


def test_cifar100_has_the_fine_labels(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    # torchvision reads these like the real files, except for the md5.
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR100, "_load_meta", lambda self: setattr(self, "classes", list(CIFAR100_CLASSES)))
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    data = np.arange(5 * 3072, dtype=np.int64).astype(np.uint8).reshape(5, 3072)
    (folder / "test").write_bytes(pickle.dumps({"data": data, "fine_labels": [5, 99, 0, 1, 2]}))
    found = load_dataset("cifar100", samples=2, data_dir=str(tmp_path))
    assert found.y.tolist() == [5, 99] and found.classes[99] == "worm"
    assert torch.equal((found.x * 255).round().byte().flatten(1), torch.from_numpy(data[:2]))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "floats", "grey"])
def test_archives_in_every_layout(tmp_path, layout):
    raw = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    raw = raw if layout != "grey" else np.repeat(raw[..., :1], 3, -1)
    stored = {
        "NHWC": raw,
        "NCHW": np.moveaxis(raw, -1, 1),
        "floats": raw / np.float32(255),
        "grey": raw[..., 0],
    }[layout]
    np.savez(tmp_path / "mine.npz", x=stored, y=np.array([2, 0, 1, 1]))
    found = load_dataset(f"npz:{tmp_path}/mine.npz", samples=3)
    assert torch.equal((found.x[:] * 255).round().byte(), torch.from_numpy(raw[:3]).permute(0, 3, 1, 2))
    assert found.y.tolist() == [2, 0, 1] and found.classes == ("0", "1", "2")
    wider = load_dataset("npz:mine.npz(classes=5)", data_dir=str(tmp_path))
    assert len(wider.classes) == 5 and len(wider) == 4


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((2, 4, 4, 3))}, "no array y"),
        ({"x": np.zeros((2, 4, 4, 3)), "y": np.zeros(3, int)}, "2 images and 3 labels"),
        ({"x": np.zeros((2, 4, 4, 3)), "y": np.zeros(2)}, "whole numbers"),
        ({"x": np.full((2, 4, 4, 3), 7.0), "y": np.zeros(2, int)}, r"in \[7, 7\]"),
        ({"x": np.full((2, 4, 4, 3), np.nan), "y": np.zeros(2, int)}, "in .*nan"),
        ({"x": np.zeros((2, 4, 4, 3), int), "y": np.zeros(2, int)}, "type int64"),
        ({"x": np.zeros((2, 4, 4, 4)), "y": np.zeros(2, int)}, "of shape"),
        ({"x": np.zeros((2, 4, 4, 3)), "y": np.array([-1, 0])}, "labels in -1"),
        (
            {"x": np.zeros((2, 4, 4, 3)), "y": np.array([0, 3]), "classes": np.array(["a"])},
            "labels in 0 .. 3",
        ),
        ({"x": np.zeros((2, 4, 4, 3)), "y": np.array([None, 1])}, "damaged or not an array of numbers"),
        ({"x": np.zeros((0, 4, 4, 3)), "y": np.zeros(0, int)}, "no images"),
        ({"x": np.zeros((2, 0, 0, 3), np.uint8), "y": np.zeros(2, int)}, "have no pixels"),
        (
            {"x": np.zeros((2, 4, 4, 3)), "y": np.array([0, 3_000_000])},
            "3,000,001 classes, .* at most 100,000",
        ),
    ],
)
def test_bad_archives_are_reported(tmp_path, arrays, said):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ResourceError, match=said):
        load_dataset(f"npz:{tmp_path}/bad.npz")


def test_a_truncated_archive_is_reported(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4, 4, 3)), y=np.zeros(2, int))
    whole = (tmp_path / "a.npz").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ResourceError, match=r"a\.npz"):
            load_dataset(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize("array", ["x", "fortran", "y"])
def test_an_array_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch, array):
    monkeypatch.setattr(_numpy_files, "_LARGE", 1000)
    x = np.zeros((1, 400, 400, 3), np.uint8)
    x = {"x": x, "fortran": np.asfortranarray(np.repeat(x[:, :8, :8], 2000, 0)), "y": x[:, :2, :2]}[array]
    y = np.zeros(len(x) if array != "y" else 500_000, int)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(ResourceError, match=rf"a\.npz: {'y' if array == 'y' else 'x'} would expand from"):
        load_dataset(f"npz:{tmp_path}/a.npz")
    # Blank images of ordinary size are read one after the other.
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((2000, 4, 4, 3)), y=np.zeros(2000, np.uint8))
    assert len(load_dataset(f"npz:{tmp_path}/a.npz")) == 2000


def test_an_array_is_not_an_archive(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4, 3)))
    with pytest.raises(ResourceError, match=r"not a \.npz archive"):
        load_dataset(f"npz:{tmp_path}/a.npy")


@needs("cifar-10-batches-py")
def test_the_listed_classes_are_those_of_cifar10():
    assert load_dataset("cifar10", samples=1, data_dir=str(REAL)).classes == CIFAR10_CLASSES
