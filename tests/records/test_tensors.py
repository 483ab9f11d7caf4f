"""A safetensors file written piece by piece is the one that safetensors writes."""

import pytest
import torch
from safetensors.torch import save

from robench.records._tensors import Entry, encode


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
            tensor.dtype, tuple(tensor.shape), lambda: iter(tensor.split(2) if tensor.dim() else [tensor])
        )

    assert b"".join(encode({name: entry(each) for name, each in tensors.items()})) == save(tensors)
