"""Fine-tuning of a purifier on a few images of another dataset, as MAEP (arXiv 2501.16904) suggests.

The fine-tuned purifier is saved next to the records as a card with a recipe and a checkpoint. Other commands load it by
its path, and `robench train` reproduces it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from robench.catalog import Card, read
from robench.core import specs
from robench.core.errors import UsageError
from robench.core.io import write_file
from robench.defenses import find_card
from robench.defenses._checkpoints import sha256_of
from robench.evaluation.dataset_transfer import Cell
from robench.evaluation.run import Options
from robench.records.store import slug
from robench.training import train

# Our choices for every number of images: steps of the optimizer, batch size, LoRA's rank, and steps of PGD on the
# purifier's classifier, which generates the pairs as in MAEP's recipes.
STEPS, BATCH, RANK, PGD_STEPS = 300, 32, 16, 10
FOLDER = "finetuned"


def counts(text: str) -> tuple[int, ...]:
    """Parse numbers of images such as `0,10,50`, in increasing order; 0 is the purifier without fine-tuning.

    Raises:
        UsageError: if the text is malformed or has fewer than two numbers.
    """
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if len(numbers) < 2 or numbers[0] < 0:
        raise UsageError(f'--finetune "{text}": expected two or more numbers of images, such as 0,10,50,100')
    return tuple(numbers)


def finetuned(cell: Cell, images: int, options: Options) -> Cell:
    """The cell with its purifier fine-tuned by LoRA on the first `images` training images of the cell's dataset.

    An existing fine-tuned purifier is reused, and an interrupted training is resumed.

    Raises:
        UsageError: if the purifier does not support this training, or the threat is not in Linf.
        ResourceError: if images or packages are missing, or the folder cannot be written.
    """
    if images == 0:
        return cell
    base = find_card(cell.purifier)
    assert base is not None
    name = f"{slug(cell.purifier)}-{slug(specs.parse(cell.end.dataset).name)}-{images}"
    folder = Path(options.results) / FOLDER
    path = folder / f"{name}.toml"
    text = _card(name, base, cell, images)
    if not _exists(path, text):
        write_file(path, text.encode())
        options.note(f"fine-tuning {cell.purifier} on {images} images of {cell.end.dataset}")
        result = train(
            str(path),
            data_dir=options.data_dir,
            output=folder / f"{name}.safetensors",
            device=options.device,
            progress=False,
            fresh=options.fresh,
        )
        checkpoint = f'checkpoint = "{name}.safetensors"\nsha256 = "{result.sha256}"\n'
        write_file(path, (checkpoint + text).encode())
    return replace(cell, purifier=str(path), subject=str(path))


def _card(name: str, base: Card, cell: Cell, images: int) -> str:
    threat = cell.end.threat
    if threat.norm != "Linf":
        raise UsageError(f"--finetune needs a threat in Linf: {cell.end.dataset} is evaluated at {threat}")
    batch = min(BATCH, images)
    radius = str(threat).partition(":")[2]
    method = specs.Spec(
        base.spec.name,
        {
            "source": cell.end.classifier,
            "eps": radius,
            "step_size": threat.eps / 4,
            "steps": PGD_STEPS,
            "mask_ratio": 0,
            "rank": RANK,
        },
    )
    lines = [
        f"name = '{name}'",
        f"family = '{base.family}'",
        f"builder = '{base.builder}'",
        f"dataset = '{cell.end.dataset}'",
        f"classifier = '{cell.end.classifier}'",
        f"threat = '{threat}'",
        f"description = '{base.name}, fine-tuned on {images} images of {specs.parse(cell.end.dataset).name}'",
        "[recipe]",
        f"start = '{base.name}'",
        f"samples = {images}",
        f"measured = {min(100, cell.end.samples)}",
        f"evaluation = '{threat}'",
        "stored = 'fp16'",
        "threads = 1",
        "[[recipe.purifying]]",
        f"method = '{method}'",
        f"epochs = {math.ceil(STEPS / (images // batch))}",
        "warmup = 0.0",
        f"batch_size = {batch}",
        "lr = 1e-3",
    ]
    return "\n".join(lines) + "\n"


def _exists(path: Path, text: str) -> bool:
    """Whether `path` is a card with this text and an intact checkpoint."""
    if not path.is_file() or not path.read_text("utf-8").endswith(text):
        return False
    card = read(Card, path)
    checkpoint = path.parent / card.checkpoint
    return bool(card.checkpoint) and checkpoint.is_file() and sha256_of(checkpoint) == card.sha256


def curve(cell: Cell, images: Sequence[int], options: Options) -> list[tuple[int, Cell]]:
    """The cell with its purifier fine-tuned on each number of images."""
    return [(count, finetuned(cell, count, options)) for count in images]
