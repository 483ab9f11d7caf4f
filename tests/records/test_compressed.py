"""Compressed rows of integers are what was compressed, and nothing that a file claims fills the memory."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from robench.core.errors import ResourceError
from robench.core.row_file import RowFile, shared
from robench.records import certificate_file
from robench.records._compressed import LARGEST, CompressedRows, compress
from robench.records.certificates import FILE, certificates_of, read_certificates
from robench.threats.threat import Threat
from tests.fabricate import make_run, uncompressed

KINDS = (np.int8, np.int16)


def rows_of(path, content: bytes, ends, shape) -> CompressedRows:
    path.write_bytes(content)
    return CompressedRows(
        RowFile(shared(path.open("rb")), (len(content),), np.uint8), np.asarray(ends), shape
    )


def packed(array: np.ndarray) -> tuple[bytes, np.ndarray]:
    pieces = [compress(row) for row in array]
    return b"".join(pieces), np.cumsum([len(each) for each in pieces], dtype=np.int64)


@given(st.data())
def test_rows_in_any_order(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(KINDS))
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9)))
    limits = np.iinfo(kind)
    values = st.integers(limits.min, limits.max)
    size = int(np.prod(shape))
    array = np.array(data.draw(st.lists(values, min_size=size, max_size=size)), kind).reshape(shape)
    path = tmp_path_factory.mktemp("rows") / "file"
    found = rows_of(path, *packed(array), shape)
    chosen = data.draw(st.lists(st.integers(0, len(array) - 1), max_size=6))
    assert len(found) == len(array)
    assert np.array_equal(found.read(chosen), array[chosen])


@given(st.data())
def test_damage_is_refused_or_gives_rows_of_the_same_shape(tmp_path_factory, data):
    array = np.random.default_rng(0).integers(-127, 127, (2, 3, 5)).astype(np.int8)
    content, ends = packed(array)
    damaged = bytearray(content)
    damaged[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    found = rows_of(tmp_path_factory.mktemp("rows") / "file", bytes(damaged), ends, array.shape)
    try:
        assert found.read([0, 1]).shape == array.shape
    except ValueError as error:
        assert str(error) == "damaged or truncated"


@pytest.mark.parametrize(
    "ends",
    [[5, 4, 12], [0, 5, 12], [5, 12, 12], [-1, 5, 12], [5, 8, 11], [5, 8, 13], [2**63 - 1, -(2**63), 12]],
)
def test_ends_that_do_not_divide_the_content_are_refused(tmp_path, ends):
    with pytest.raises(ValueError, match="damaged"):
        rows_of(tmp_path / "file", bytes(12), ends, (3, 4))


@pytest.mark.parametrize(
    "row",
    [
        compress(np.zeros(3, np.int8)),
        compress(np.zeros(5, np.int8)),
        zlib.compress(bytes(1 << 20)),
        compress(np.zeros(4, np.int8))[:-1],
        compress(np.zeros(4, np.int8)) + b"more",
        b"not compressed",
    ],
    ids=["short", "long", "very long", "no end", "a tail", "no zlib"],
)
def test_a_row_of_another_size_is_refused(tmp_path, row):
    found = rows_of(tmp_path / "file", row, [len(row)], (1, 4))
    with pytest.raises(ValueError, match="damaged or truncated"):
        found.read([0])


def test_certificates_from_before_compression_are_read_alike(tmp_path):
    run = make_run(tmp_path)
    folder = run.write().folder
    now, old = read_certificates(folder), uncompressed(folder / FILE)
    assert "grains_end" in load_file(folder / FILE) and old["grains"].dim() == 4
    save_file(old, folder / FILE)
    before = read_certificates(folder)
    assert torch.equal(before.ids, now.ids) and len(now) > 3
    assert torch.equal(before.delta[:], now.delta[:])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "delta": torch.zeros(0, 3, LARGEST // 3 + 1, 1)},
        lambda t: {**t, "grains_end": t["grains_end"][:-1]},
        lambda t: {**t, "grains": t["grains"].view(torch.int8)},
        lambda t: {**t, "grains": t["grains"][:-1]},
        lambda t: {**t, "grains_end": t["grains_end"].flip(0)},
    ],
    ids=["huge rows", "an end less", "signed", "a byte less", "ends out of order"],
)
def test_a_file_that_does_not_fit_together_is_one_line(tmp_path, change):
    folder = make_run(tmp_path).write().folder
    save_file(change(load_file(folder / FILE)), folder / FILE)
    with pytest.raises(ResourceError, match=rf"{FILE}: (damaged or truncated|expected delta)"):
        read_certificates(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "grains_id": t["grains_id"] + 10**6},
        lambda t: {**t, "grains_id": t["grains_id"] * 0},
        lambda t: {**t, "delta": t["delta"][..., :2, :2].clone()},
        lambda t: {**t, "delta": t["delta"][:, :1, :1, :1].clone()},
    ],
    ids=["unknown images", "one image", "smaller", "one number"],
)
def test_certificates_of_other_images_are_one_line(tmp_path, change):
    run = make_run(tmp_path)
    folder, threat = run.write().folder, Threat.parse(run.job.threat)
    assert len(certificates_of(folder, run.images, threat)) > 3
    save_file(change(load_file(folder / FILE)), folder / FILE)
    with pytest.raises(
        ResourceError, match=f"{FILE}: its adversarial examples are not of the record's 30 images"
    ):
        certificates_of(folder, run.images, threat)


def test_headers_tell_both_layouts_apart(tmp_path):
    folder = make_run(tmp_path).write().folder
    for tensors in (load_file(folder / FILE), uncompressed(folder / FILE)):
        save_file(tensors, folder / FILE)
        with (folder / FILE).open("rb") as file:
            assert set(certificate_file.check_header(file)) == set(tensors)
