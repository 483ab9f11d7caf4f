"""A picture of adversarial examples of a record: clean and adversarial images and their amplified difference."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robench.core.errors import ResourceError
from robench.core.io import write_file
from robench.core.sanitize import plain
from robench.data._base import Images
from robench.records.certificates import apply, certificates_of, is_attacked
from robench.records.record import Record, read_record
from robench.records.samples import read_samples
from robench.reports.formatting import suite_label
from robench.reports.plots import style
from robench.reports.plots.style import INK, LINE, QUIET, WRONG, literal
from robench.statistics.accuracy import interval, percent

MOST = 6
_FACTORS = (1, 2, 3, 4, 5, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
_SIDE, _LEFT = 1.45, 1.25  # inches: one image, and the names of the rows


@dataclass(frozen=True)
class Example:
    """One adversarial example: images (C, H, W), class names, the successful attack and the distance."""

    sample: int
    clean: Tensor
    adversarial: Tensor
    label: str
    prediction: str
    attack: str
    distance: float


def picture(folder: Path | str, images: Images, path: Path | str) -> Path:
    """Write a PNG with up to six adversarial examples of a record.

    Args:
        folder: the folder of the record.
        images: the images of the record's dataset, split and n.
        path: path of the PNG; its folder is created if necessary.

    Raises:
        ResourceError: when there are no adversarial examples, the record is damaged, the images are not those of the
            record, or the file cannot be written.
    """
    record, path = read_record(folder), Path(path)
    chosen = examples(record, images)
    if not chosen:
        raise ResourceError(
            f"{folder}: the attacks found no adversarial example, so there is nothing to show"
        )
    write_file(path, draw(record, chosen))
    return path


def examples(record: Record, images: Images, most: int = MOST) -> list[Example]:
    """Adversarial examples to show, from as many classes as possible, in dataset order.

    Raises:
        ResourceError: when a file of the record is missing or damaged, or the images are not those of the record.
    """
    if images.digest != record.job.dataset.digest:
        raise ResourceError(
            f"these {len(images)} images of {images.name} are not those of the record (different digest): load "
            f"the first {record.job.n} of {record.job.dataset.name} {record.job.dataset.split}"
        )
    folder = record.folder or Path()
    rows = {row["id"]: row for row in read_samples(folder).to_pylist()}
    positions = {sample: i for i, sample in enumerate(images.ids.tolist())}
    certificates = certificates_of(folder, images, record.job.threat_model)
    if unknown := set(certificates.ids.tolist()) - rows.keys():
        raise ResourceError(
            f"{folder}: it stores an adversarial example of image {min(unknown)}, which is not in the record"
        )
    # The first of every class, then the second of every class, and so on.
    seen: dict[int, int] = {}
    queue = []
    for i, sample in enumerate(certificates.ids.tolist()):
        if not is_attacked(rows[sample]["fooled_by"]):
            continue
        label = rows[sample]["label"]
        seen[label] = seen.get(label, 0) + 1
        queue.append((seen[label], i, sample))
    chosen, threat = [], record.job.threat_model
    for _, i, sample in sorted(sorted(queue)[:most], key=lambda item: item[1]):
        row, clean = rows[sample], images.x[positions[sample]]
        adversarial = apply(threat, clean[None], certificates.delta[i][None], certificates.ids[i][None])[0]
        label, prediction = _class(images, row["label"]), _class(images, row["prediction"])
        attack, distance = row["fooled_by"], row["distance"]
        chosen.append(Example(sample, clean, adversarial, label, prediction, attack, distance))
    return chosen


def amplification(chosen: list[Example]) -> int:
    """The largest round factor that keeps all amplified differences within the range of gray values; at least 1."""
    largest = max(float((e.adversarial - e.clean).abs().max()) for e in chosen)
    fitting = [factor for factor in _FACTORS if factor * largest <= 0.505]
    return max(fitting, default=1)


def draw(record: Record, chosen: list[Example]) -> bytes:
    """The PNG: a header with the run and its result, then one column per sample."""
    factor, n = amplification(chosen), len(chosen)
    width = max(_LEFT + n * (_SIDE + 0.15) + 0.2, 7.0)
    height = 6.85
    figure = style.figure(width, height)
    _header(figure, record, width, height)
    rows = (
        ("clean", 4.1, lambda e: e.clean),
        ("adversarial", 2.3, lambda e: e.adversarial),
        (f"difference\n× {factor}", 0.7, lambda e: 0.5 + factor * (e.adversarial - e.clean)),
    )
    for name, bottom, image in rows:
        place = ((_LEFT - 0.2) / width, (bottom + _SIDE / 2) / height)
        figure.text(*place, name, ha="right", va="center", fontsize=10, color=QUIET)
        for column, example in enumerate(chosen):
            left = _LEFT + column * (_SIDE + 0.15)
            axes = figure.add_axes((left / width, bottom / height, _SIDE / width, _SIDE / height))
            pixels = image(example).clamp(0, 1)
            pixels = pixels if len(pixels) == 3 else pixels.mean(0).expand(3, -1, -1)
            axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(color=LINE, linewidth=0.8)
    for column, example in enumerate(chosen):
        _titles(figure, example, _LEFT + column * (_SIDE + 0.15), width, height)
    return style.encode(figure)


def _header(figure, record: Record, width: float, height: float) -> None:
    job, robust = record.job, record.robust_accuracy
    place, name = (0.2 / width, 1 - 0.2 / height), literal(job.defense.name)
    figure.text(*place, name, va="top", fontsize=14, weight="bold", color=INK)
    facts = (
        f"{suite_label(record)} · {job.threat} · robust accuracy {percent(robust)} % {interval(robust)} "
        f"on {job.n:,} images of {job.dataset.name}"
    )
    characters = int(width * 13)
    lines = textwrap.wrap(plain(facts), characters)[:2]
    if record.health:
        lines = [*lines[:1], f"warnings: {', '.join(warning.code for warning in record.health)}"]
    text = literal("\n".join(line[:characters] for line in lines))
    figure.text(0.2 / width, 1 - 0.5 / height, text, va="top", fontsize=9.5, color=QUIET, linespacing=1.4)


def _titles(figure, example: Example, left: float, width: float, height: float) -> None:
    middle = (left + _SIDE / 2) / width
    for text, y, color in ((example.label, 5.6, INK), (f"→ {example.prediction}", 3.8, WRONG)):
        fitted = literal(textwrap.shorten(text, 18, placeholder="…"))
        style = {"ha": "center", "va": "bottom", "fontsize": 11, "weight": "bold"}
        figure.text(middle, y / height, fitted, color=color, **style)
    # Attacks often share a name and differ in an argument, such as the loss.
    attack = textwrap.shorten(example.attack.replace("(", " (", 1), 40, placeholder="…")
    lines = [*textwrap.wrap(attack, 20)[:2], f"distance {example.distance:.3g}"]
    text = literal("\n".join(lines))
    figure.text(middle, 0.63 / height, text, ha="center", va="top", fontsize=8, linespacing=1.3, color=QUIET)


def _class(images: Images, index: int) -> str:
    return images.classes[index] if 0 <= index < len(images.classes) else str(index)
