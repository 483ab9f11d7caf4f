"""A safetensors file written piece by piece is the one that safetensors writes, and is read as it reads it."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from robench.core.row_file import shared
from robench.records._tensors import Entry, encode, read_headers

KINDS = {"F32": torch.float32, "I64": torch.int64, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}


@pytest.mark.parametrize("names", [("delta", "id"), ("delta", "id", "grain", "grains", "grains_id")])
@pytest.mark.parametrize("kind", [torch.int8, torch.int16])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_byte_for_byte(names, kind, rows):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "delta": torch.randn(rows, 3, 2, 2, generator=generator),
        "id": torch.arange(rows),
        "grain": torch.tensor(0.1, dtype=torch.float64),
        "grains": torch.randint(-100, 100, (rows, 3, 2, 2), generator=generator).to(kind),
        "grains_id": torch.arange(rows) + 7,
    }
    tensors = {name: tensors[name] for name in names}

    def entry(tensor):
        return Entry(
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            lambda: iter(tensor.split(2) if tensor.dim() else [tensor]),
        )

    assert b"".join(encode({name: entry(each) for name, each in tensors.items()})) == save(tensors)


def file_of(header: object, content: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def as_read(path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        headers = read_headers(file)
    tensors = {}
    for name, header in headers.items():
        if not header.shape:
            continue
        rows = header.rows(shared(path.open("rb")))
        tensors[name] = torch.from_numpy(rows.read(range(len(rows))))
    return tensors


@given(
    shapes=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), max_size=4),
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=4, max_size=4),
)
def test_every_file_of_safetensors_is_read_alike(tmp_path_factory, shapes, kinds):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(i): torch.randint(-100, 100, shape, generator=generator).to(KINDS[kind])
        for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=False))
    }
    path = tmp_path_factory.mktemp("file") / "file.safetensors"
    path.write_bytes(save(tensors))
    read = as_read(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_some_rows_in_any_order(tmp_path):
    tensor = torch.randn(7, 2, 3)
    path = tmp_path / "file.safetensors"
    path.write_bytes(save({"a": tensor}))
    with path.open("rb") as file:
        header = read_headers(file)["a"]
    rows = header.rows(shared(path.open("rb")))
    for chosen in ([], [3], [2, 3, 4], [6, 0, 6, 1]):
        assert torch.equal(torch.from_numpy(rows.read(chosen)), tensor[chosen])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EOFError):
        rows.read([0, 6])


A = {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": A}, 3),
        ({"a": A}, 5),
        ({"a": A | {"shape": [5]}}, 4),
        ({"a": A | {"shape": [-2, -2]}}, 4),
        ({"a": A | {"data_offsets": [1, 5]}}, 5),
        ({"a": A | {"data_offsets": [4, 0]}}, 4),
        ({"a": A, "b": A}, 4),
        ({"a": A, "b": A | {"data_offsets": [2, 6]}}, 6),
        ({"a": A, "b": A | {"data_offsets": [5, 9]}}, 9),
        ({"a": A | {"dtype": "I7"}}, 4),
        ({"a": A | {"shape": [1 << 62, 4]}}, 4),
        ({"a": {"dtype": "I8"}}, 4),
        ({"a": None}, 4),
        (["a"], 4),
        ("a", 0),
    ],
)
def test_what_safetensors_refuses_is_refused(tmp_path, header, size):
    content = file_of(header, bytes(size))
    with pytest.raises(SafetensorError):
        load(content)
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(ValueError, match=r"^damaged"):
        read_headers(file)


@pytest.mark.parametrize("size", [0, 7, 8, 12])
def test_a_file_that_ends_in_its_header_is_refused(tmp_path, size):
    path = tmp_path / "file.safetensors"
    path.write_bytes(save({"a": torch.zeros(3)})[:size])
    with path.open("rb") as file, pytest.raises(ValueError, match=r"^damaged or truncated"):
        read_headers(file)
