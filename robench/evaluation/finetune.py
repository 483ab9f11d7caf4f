"""A purifier that learns from a few images of another data set: MAEP (arXiv 2501.16904) suggests it.

The fine-tuned purifier is a card with a recipe, written beside the records with its checkpoint: any other command takes
it by its path, and `robench train` makes it again.
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

# Our choices, the same for every number of images: steps of the optimiser, batches, and LoRA's rank; pairs as
# MAEP's recipes make theirs, by PGD on the classifier behind.
STEPS, BATCH, RANK, PGD_STEPS = 300, 32, 16, 10
FOLDER = "finetuned"


def counts(text: str) -> tuple[int, ...]:
    """Numbers of images, `0,10,50`, in rising order; 0 is the purifier as it was.

    Raises:
        UsageError: for anything else, and for fewer than two.
    """
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if len(found) < 2 or found[0] < 0:
        raise UsageError(f'--finetune "{text}": expected two or more numbers of images, such as 0,10,50,100')
    return tuple(found)


def finetuned(cell: Cell, images: int, options: Options) -> Cell:
    """The cell with its purifier fine-tuned by LoRA on the first `images` training images of the cell's data set.

    What is there already is taken; what was interrupted goes on.

    Raises:
        UsageError: when the purifier cannot be trained so, or the threat is not in Linf.
        ResourceError: when images or packages are missing, or the folder cannot be written.
    """
    if images == 0:
        return cell
    base = find_card(cell.purifier)
    assert base is not None
    name = f"{slug(cell.purifier)}-{slug(specs.parse(cell.end.dataset).name)}-{images}"
    folder = Path(options.results) / FOLDER
    path = folder / f"{name}.toml"
    text = _card(name, base, cell, images)
    if not _is_there(path, text):
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
        found = f'checkpoint = "{name}.safetensors"\nsha256 = "{result.sha256}"\n'
        write_file(path, (found + text).encode())
    return replace(cell, purifier=str(path), subject=str(path))


def _card(name: str, base: Card, cell: Cell, images: int) -> str:
    threat = cell.end.threat
    if threat.norm != "Linf":
        raise UsageError(f"--finetune makes its pairs in Linf: {cell.end.dataset} is tested at {threat}")
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


def _is_there(path: Path, text: str) -> bool:
    """Whether the card at `path` is this one, with the checkpoint that it names."""
    if not path.is_file() or not path.read_text("utf-8").endswith(text):
        return False
    card = read(Card, path)
    file = path.parent / card.checkpoint
    return bool(card.checkpoint) and file.is_file() and sha256_of(file) == card.sha256


def curve(cell: Cell, images: Sequence[int], options: Options) -> list[tuple[int, Cell]]:
    """The cell's purifier fine-tuned on each number of images."""
    return [(count, finetuned(cell, count, options)) for count in images]
