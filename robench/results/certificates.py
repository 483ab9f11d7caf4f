"""adversarials.safetensors: the perturbations that prove "robust accuracy is at most this".

Anyone can check them by forward passes alone: the verdict holds at clamp(x + delta, 0, 1). Perturbations of whole
grains (`Threat.grain`) are kept as one or two bytes a pixel, others as float32.
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
from robench.threat import Threat

FILE = "adversarials.safetensors"
_EXACT = {"delta": (torch.float32, 4), "id": (torch.int64, 1)}
_ROUND = {"grain": (torch.float64, 0), "grains": (None, 4), "grains_id": (torch.int64, 1)}


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


def encode(outcome: Outcome, images: Images, threat: Threat) -> bytes:
    """The file for an outcome: the same bytes for the same images.

    Raises:
        ValueError: when an adversarial image is not reached by adding its perturbation, bit for bit; the
            engine owes that, since the verdict was given on the image and the record keeps the perturbation.
    """
    rows = [i for i, name in enumerate(outcome.fooled_by) if is_attacked(name)]
    x, x_adv, ids = images.x[rows].cpu(), outcome.x_adv[rows].cpu(), images.ids[rows].cpu()
    grains = _grains(x, x_adv, threat)
    step, _ = threat.grain
    whole = _same(apply(x, grains * step), x_adv)
    delta = (x_adv - x)[~whole]
    missed = ~_same(apply(x[~whole], delta), x_adv[~whole])
    if missed.any():
        first = int(ids[~whole][missed][0])
        raise ValueError(
            f"{int(missed.sum())} adversarial images (sample {first} first) are not clamp(x + delta, 0, 1): "
            "the engine must judge the image that the perturbation gives"
        )
    tensors = {"delta": delta.contiguous(), "id": ids[~whole].contiguous()}
    if whole.any():
        tensors["grain"] = torch.tensor(step, dtype=torch.float64)
        tensors["grains"] = grains[whole].contiguous()
        tensors["grains_id"] = ids[whole].contiguous()
    return save(tensors)


def _grains(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """How many grains lie between the images, integers (M, C, H, W); at a clipped pixel enough to reach the edge."""
    step, kind = threat.grain
    count = (x_adv - x) / step
    count = torch.where(x_adv <= 0, count.floor(), torch.where(x_adv >= 1, count.ceil(), count.round()))
    most = torch.iinfo(kind).max
    return count.clamp(-most, most).to(kind)


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b).flatten(1).all(1) if len(a) else torch.zeros(0, dtype=torch.bool)


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
    expected = _EXACT | (_ROUND if "grains" in tensors else {})
    fits = set(tensors) == set(expected) and all(
        tensors[name].dim() == dim and tensors[name].dtype == (kind or tensors[name].dtype)
        for name, (kind, dim) in expected.items()
    )
    if not fits or not _counts_fit(tensors):
        raise ResourceError(
            f"{path}: expected delta (M, C, H, W) float32 and id (M,) int64, perhaps grains of one or two bytes, "
            f"found { {k: (tuple(v.shape), str(v.dtype)) for k, v in sorted(tensors.items())} }: {mend}"
        )
    ids, delta = tensors["id"], tensors["delta"]
    if "grains" in tensors:
        rounded = tensors["grains"] * float(tensors["grain"])
        delta = torch.cat([delta.reshape(-1, *rounded.shape[1:]), rounded])
        ids = torch.cat([ids, tensors["grains_id"]])
        ids, order = ids.sort()
        delta = delta[order]
    return Certificates(ids, delta)


def _counts_fit(tensors: dict[str, Tensor]) -> bool:
    if len(tensors["delta"]) != len(tensors["id"]):
        return False
    if "grains" not in tensors:
        return True
    grains = tensors["grains"]
    alike = not len(tensors["delta"]) or tensors["delta"].shape[1:] == grains.shape[1:]
    return alike and grains.dtype in (torch.int8, torch.int16) and len(grains) == len(tensors["grains_id"])
