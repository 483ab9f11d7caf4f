"""Saving of a result of `robench.attack` as a record: see `Result.save`."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from robench import catalog
from robench.core.errors import UsageError
from robench.core.io import read_ordinary, write_file
from robench.data import Images, load_dataset
from robench.defenses import load
from robench.defenses._state import state_sha256
from robench.engine.batched_model import frozen
from robench.engine.judges import SEARCH
from robench.engine.outcome import Outcome
from robench.engine.refusals import Model
from robench.engine.setup import Setup
from robench.engine.tolerances import margins, same_margins
from robench.records.inputs import BESIDE, FILE, MODEL
from robench.records.record import DatasetFacts, DefenseFacts, Job, Record, SuiteFacts
from robench.records.store import make_record, write_record

if TYPE_CHECKING:
    from robench.evaluation.result import Attacked

# Number of clean images that are classified again to check that the model is the one that was attacked.
_IMAGES = 64


def save(outcome: Outcome, attacked: "Attacked", folder: Path, names: tuple[str, str, str | None]) -> Record:
    """Write the record; see `Result.save`.

    Args:
        names: name of the defense, or empty; name of the dataset, or empty; folder with the dataset's files.
    """
    defense, dataset, data_dir = names
    facts = _defense(outcome, attacked, defense, dataset)
    images = _images(attacked, folder, dataset, data_dir)
    threat = str(attacked.threat)
    job = Job(
        defense=facts,
        suite=SuiteFacts(attacked.suite, attacked.specs),
        dataset=DatasetFacts(images.name, images.split, images.digest),
        protocol=catalog.protocol_name(dataset or "images", threat, len(images)),
        threat=threat,
        n=len(images),
        batch_size=outcome.batch_size or attacked.setup.batch_size,
        seed=attacked.setup.seed,
        precision=outcome.precision,
    )
    record = make_record(
        job,
        outcome,
        command="robench.attack",
        started=attacked.started,
        finished=max(attacked.finished, attacked.started),
        seconds=sum(cost.seconds for cost in outcome.attacks),
        device=attacked.setup.device,
    )
    return write_record(folder, record, outcome, images, attacked.threat)


def _defense(outcome: Outcome, attacked: "Attacked", name: str, dataset: str) -> DefenseFacts:
    model = attacked.setup.model
    if name:
        loaded = load(name, dataset or None, device=attacked.setup.device, image_size=attacked.x.shape[-1])
        if not _agrees(loaded.defense, outcome, attacked):
            raise UsageError(f"{name} is not the model that was attacked: its logits differ")
        return DefenseFacts.of(loaded)
    if model is forgotten:
        raise UsageError("this result was pickled without its model: name a defense")
    if not _agrees(model, outcome, attacked):
        raise UsageError(
            "the model has changed since the attack: its logits differ; save the result before changing the model"
        )
    name = MODEL + model_name(model)
    if not isinstance(model, nn.Module):
        return DefenseFacts(name)
    weights = state_sha256(model)
    parameters = sum(p.numel() for p in model.parameters())
    return DefenseFacts(name, checkpoint_sha256=weights, parameters=parameters, state_sha256=weights)


def forgotten(x: torch.Tensor) -> torch.Tensor:
    """Replaces the model of a pickled result; pickled results refer to this function by name."""
    raise UsageError("this result was pickled without its model: name its dataset and defense")


def model_name(model: Model) -> str:
    """The name of a function, or of the model's class."""
    return str(getattr(model, "__name__", type(model).__name__))


def _agrees(model: Model, outcome: Outcome, attacked: "Attacked") -> bool:
    """Whether a model gives the same clean margins as during the attack."""
    logits = _logits(model, attacked, _IMAGES)
    return bool(same_margins(outcome.clean_margin[: len(logits)], margins(logits)).all())


def _classes(attacked: "Attacked") -> int:
    return _logits(attacked.setup.model, attacked, 1).shape[1]


def _logits(model: Model, attacked: "Attacked", n: int) -> torch.Tensor:
    """Logits of the first clean images, (n, K), on the CPU."""
    setup = attacked.setup
    stochastic = setup.stochastic or bool(getattr(model, "stochastic", False))
    network = Setup(model, setup.seed, setup.device, setup.batch_size, stochastic=stochastic).network(SEARCH)
    x, ids = attacked.x[:n].to(setup.device), torch.arange(len(attacked.x[:n]), device=setup.device)
    with frozen(model):
        batches = zip(x.split(setup.batch_size), ids.split(setup.batch_size), strict=True)
        return torch.cat([network.logits(x, ids).float().cpu() for x, ids in batches])


def _images(attacked: "Attacked", folder: Path, dataset: str, data_dir: str | None) -> Images:
    """The images as a dataset: the named one, or a file next to the record."""
    x, y = attacked.x, attacked.y
    if dataset:
        images = load_dataset(dataset, "test", len(x), data_dir)
        if not (torch.equal(images.x[:], x) and torch.equal(images.y, y)):
            raise UsageError(f"the attacked images are not the first {len(x)} test images of {dataset}")
        return images
    if x.shape[1] not in (1, 3):
        raise UsageError(
            f"images with {x.shape[1]} channels cannot be saved next to a record: name their dataset"
        )
    content = io.BytesIO()
    np.savez_compressed(content, x=_pixels(x), y=y.numpy())
    file = folder / FILE
    if file.is_file() and read_ordinary(file) != content.getvalue():
        raise UsageError(f"{folder} contains other images: give an empty folder")
    write_file(file, content.getvalue())
    channels = ", channels=1" if x.shape[1] == 1 else ""
    return load_dataset(f"{BESIDE}(classes={_classes(attacked)}{channels})", "test", None, str(folder))


def _pixels(x: torch.Tensor) -> np.ndarray:
    """Convert images (N, C, H, W) to (N, H, W, C), as bytes if that is lossless, else as floats."""
    pixels = (x * 255).round().to(torch.uint8)
    lossless = torch.equal(pixels.float().div(255), x)
    return (pixels if lossless else x).permute(0, 2, 3, 1).contiguous().numpy()
