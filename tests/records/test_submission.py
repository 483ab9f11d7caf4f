"""Files of adversarial images from other tools: what is read, and what is refused in one line."""

import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robench.core.errors import ResourceError, UsageError
from robench.records.submission import read_submission, write_images

SHAPE = (3, 6, 5)
RECORD = (4, *SHAPE)
LONG = pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here")


def images(n: int = 4) -> torch.Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["adv_complete", "x_adv", "images", "anything"])
@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_every_format_and_name_is_read(tmp_path, name, suffix):
    x, path, ids = images(), tmp_path / f"mine{suffix}", torch.tensor([7, 3, 9, 1])
    content = {name: x, "ids": ids, "labels": torch.zeros(4)}
    if suffix == ".pt":
        torch.save(content, path)
    elif suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in content.items()})
    else:
        save_file(content, path)
    submission = read_submission(path, RECORD)
    assert torch.equal(submission.x, x)
    assert submission.ids is not None and torch.equal(submission.ids, ids)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".npz", ".safetensors"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    x, ids = images(), torch.arange(4) * 2
    write_images(tmp_path / f"ours{suffix}", x, ids)
    submission = read_submission(tmp_path / f"ours{suffix}", RECORD)
    assert submission.ids is not None
    assert torch.equal(submission.x, x) and torch.equal(submission.ids, ids)
    with pytest.raises(ResourceError, match="already exists"):
        write_images(tmp_path / f"ours{suffix}", x, ids)


def test_bytes_channels_last_and_lists_of_batches_are_read(tmp_path):
    pixels = (images() * 255).round().to(torch.uint8)
    np.save(tmp_path / "bytes.npy", pixels.permute(0, 2, 3, 1).numpy())
    assert torch.equal(read_submission(tmp_path / "bytes.npy", RECORD).x, pixels.float() / 255)
    torch.save([images()[:3], images()[3:]], tmp_path / "list.pt")
    assert torch.equal(read_submission(tmp_path / "list.pt", RECORD).x, images())
    torch.save({"adv": [images()[:3], images()[3:]]}, tmp_path / "lists.pt")
    assert torch.equal(read_submission(tmp_path / "lists.pt", RECORD).x, images())


def quantized():
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(images(), 0.1, 0, torch.quint8)


def nested():
    with warnings.catch_warnings(action="ignore"):
        return torch.nested.nested_tensor([images()])


def compressed(path):
    """A file of torch as an archive that may expand without limit."""
    torch.save(images(), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _save(content):
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    ("write", "kind", "reason"),
    [
        (_save({"x_adv": images()[:, :, :4]}), UsageError, "images of shape"),
        (_save({"x_adv": images() * 255}), UsageError, "pixels from"),
        (_save({"x_adv": images() - 0.5}), UsageError, "pixels from"),
        (_save({"x_adv": images() * torch.nan}), UsageError, "NaN"),
        (_save({"x_adv": images()[:0]}), UsageError, "no images"),
        (_save({"a": images(), "b": images()}), UsageError, "expected images"),
        (_save({"labels": torch.zeros(3)}), UsageError, "labels (3,)"),
        (_save({"x_adv": images(), "ids": torch.tensor([1, 1, 2, 3])}), UsageError, "4 different integers"),
        (_save({"x_adv": images(), "ids": torch.rand(4)}), UsageError, "4 different integers"),
        (_save({"x_adv": images(), "ids": torch.arange(4) * 1j}), UsageError, "ids of type complex64"),
        (_save({"x_adv": images(), "ids": torch.arange(4).to_sparse()}), UsageError, "ids of type sparse"),
        (_save({"x_adv": images(), "ids": torch.arange(4, device="meta")}), UsageError, "ids of type meta"),
        (_save({"x_adv": images() + 0j}), UsageError, "images of type complex64"),
        (_save({"x_adv": images().to("meta")}), UsageError, "images of type meta"),
        (_save({"x_adv": images().to_sparse()}), UsageError, "images of type sparse"),
        (lambda path: torch.save(quantized(), path), UsageError, "images of type quantized"),
        (lambda path: torch.save(nested(), path), UsageError, "it holds array ()"),
        (lambda path: compressed(path), ResourceError, "damaged"),
        (_save((images(), images()[:3], torch.zeros(4))), UsageError, "[0] (4, 3, 6, 5), [1] (3, 3, 6, 5)"),
        (_save({"x_adv": torch.zeros(1).expand(5, *SHAPE)}), UsageError, "5 images for a record of 4"),
        (_save([images(), images()]), UsageError, "8 images for a record of 4"),
        (lambda path: path.write_bytes(b"PK\x03\x04 damaged"), ResourceError, "damaged"),
        (lambda path: path.write_bytes(b""), ResourceError, "damaged"),
        (lambda path: None, ResourceError, "no such file"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path, write, kind, reason):
    path = tmp_path / "mine.pt"
    write(path)
    with pytest.raises(kind) as error:
        read_submission(path, RECORD)
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        pytest.param({"adv": images().numpy().astype(np.longdouble)}, "images of type float128", marks=LONG),
        pytest.param(
            {"adv": images().numpy(), "ids": np.arange(4, dtype=np.longdouble)},
            "ids of type float128",
            marks=LONG,
        ),
        ({"adv": images().numpy(), "ids": np.array(list("abcd"))}, "ids of type str32"),
        ({"adv": np.zeros((5, *SHAPE))}, "5 images for a record of 4"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_arrays_of_other_types_or_sizes_are_refused_before_they_are_read(
    tmp_path, monkeypatch, arrays, reason
):
    np.savez(tmp_path / "mine.npz", **arrays)
    read = np.lib.format.read_array

    def small(*arguments, **options):
        array = read(*arguments, **options)
        assert array.shape == RECORD and array.dtype == np.float32
        return array

    monkeypatch.setattr(np.lib.format, "read_array", small)
    with pytest.raises(UsageError, match=reason):
        read_submission(tmp_path / "mine.npz", RECORD)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64, ">i8"])
def test_ids_of_every_integer_type_are_read(tmp_path, kind):
    np.savez(tmp_path / "mine.npz", adv=images().numpy(), ids=np.array([3, 1, 0, 2], kind))
    submission = read_submission(tmp_path / "mine.npz", RECORD)
    assert submission.ids is not None and submission.ids.tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize("kind", [tuple, list])
def test_images_that_were_saved_with_their_labels_are_read(tmp_path, kind):
    torch.save(kind([images(), torch.arange(4)]), tmp_path / "mine.pt")
    assert torch.equal(read_submission(tmp_path / "mine.pt", RECORD).x, images())


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("code in a file was executed",))


@pytest.mark.parametrize("name", ["mine.pt", "mine.npz", "mine.npy"])
def test_nothing_in_a_file_is_executed(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".pt"):
        path.write_bytes(pickle.dumps({"x_adv": Harmful()}))
    else:
        content = np.array([Harmful()], dtype=object)
        (np.savez if name.endswith(".npz") else np.save)(path, content, allow_pickle=True)
    with pytest.raises(ResourceError, match="damaged, or holds more than arrays"):
        read_submission(path, RECORD)


def test_other_endings_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.pt"):
        read_submission(tmp_path / "mine.txt", RECORD)
    with pytest.raises(UsageError, match="written to"):
        write_images(tmp_path / "mine.txt", images(), torch.arange(4))
