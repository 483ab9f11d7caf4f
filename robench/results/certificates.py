"""adversarials.safetensors: the perturbations that prove "robust accuracy is at most this".

Anyone can check them by forward passes alone: the verdict holds at clamp(x + delta, 0, 1).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robench.data._base import Images
from robench.engine.outcome import Outcome
from robench.errors import ResourceError

FILE = "adversarials.safetensors"


@dataclass(frozen=True)
class Certificates:
    """One perturbation for each sample that an attack fooled.

    Attributes:
        ids: (M,) int64, in the data set's canonical order.
        delta: (M, C, H, W) float32.
    """

    ids: Tensor
    delta: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def apply(x: Tensor, delta: Tensor) -> Tensor:
    """The adversarial images, clamp(x + delta, 0, 1)."""
    return (x + delta).clamp(0, 1)


def is_attacked(fooled_by: str) -> bool:
    """Whether an attack, and not the clean image or its noise, fooled this sample."""
    return fooled_by not in ("", "clean", "noise")


def certificates(outcome: Outcome, images: Images) -> Certificates:
    """The perturbations of an outcome.

    Raises:
        ValueError: when an adversarial image is not reached by adding its perturbation, bit for bit; the
            engine owes that, since the verdict was given on the image and the record keeps the perturbation.
    """
    rows = [i for i, name in enumerate(outcome.fooled_by) if is_attacked(name)]
    x, x_adv = images.x[rows].cpu(), outcome.x_adv[rows].cpu()
    delta = x_adv - x
    missed = (apply(x, delta) != x_adv).flatten(1).any(1) if rows else torch.zeros(0, dtype=torch.bool)
    if missed.any():
        first = int(images.ids[rows][missed][0])
        raise ValueError(
            f"{int(missed.sum())} adversarial images (sample {first} first) are not clamp(x + delta, 0, 1): "
            "the engine must judge the image that the perturbation gives"
        )
    return Certificates(images.ids[rows].cpu().contiguous(), delta.contiguous())


def encode(found: Certificates) -> bytes:
    """The file for these certificates: the same bytes for the same tensors."""
    return save({"delta": found.delta, "id": found.ids})


def read_certificates(folder: Path) -> Certificates:
    """The certificates of a record's folder.

    Raises:
        ResourceError: when the file is missing, damaged or holds other tensors.
    """
    path = Path(folder) / FILE
    mend = "repeat the run with --fresh, or restore the file"
    try:
        tensors = load(path.read_bytes())
    except OSError as error:
        raise ResourceError(f"{path}: {error.strerror or error}: {mend}") from error
    except SafetensorError as error:
        raise ResourceError(f"{path}: damaged or truncated: {mend}") from error
    expected = {"delta": (torch.float32, 4), "id": (torch.int64, 1)}
    found = {name: (tensor.dtype, tensor.dim()) for name, tensor in tensors.items()}
    if found != expected or len(tensors["delta"]) != len(tensors["id"]):
        raise ResourceError(
            f"{path}: expected delta (M, C, H, W) float32 and id (M,) int64, found "
            f"{ {k: (tuple(v.shape), str(v.dtype)) for k, v in sorted(tensors.items())} }: {mend}"
        )
    return Certificates(tensors["id"], tensors["delta"])
