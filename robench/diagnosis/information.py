"""Estimates of the information of each layer about an image, its adversarial example and the perturbation.

MIMIR (arXiv 2312.04960) argues from bounds on the mutual information between an adversarial example and its latent.
`estimators` describes the estimators and their limits. The layers are those of `Defense.all_features`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.catalog import Protocol
from robench.core import strict_json
from robench.core.errors import UsageError
from robench.core.formatting import location
from robench.core.io import refuse_link, write_file
from robench.defenses import Loaded
from robench.diagnosis import estimators
from robench.diagnosis._base import Case
from robench.diagnosis.paths import follow
from robench.engine.backing_off import backing_off
from robench.engine.batched_model import frozen
from robench.engine.device import choose_batch_size, choose_device
from robench.evaluation.planning import load_all
from robench.evaluation.run import Options
from robench.records import provenance
from robench.records.store import slug
from robench.reports.table import Grid
from robench.statistics.accuracy import mean_and_deviation

FILE, PICTURE = "information.json", "information.png"
# Default number of images: four groups, two for each half of InfoNCE.
SAMPLES = 4 * estimators.GROUP
SEEDS = 3
ATTACK_STEPS = 20
PAIRS = {"image": "x and z(x)", "adversarial": "x' and z(x')", "perturbation": "x' - x and z(x')"}
# Suffix of the estimates for randomly paired rows, where these are not 0.
RANDOM = " at random"
# Title and unit of each estimate.
ESTIMATES = {
    "nhsic": ("nHSIC (sigma 5)", "no unit"),
    "renyi": (f"Renyi, alpha {estimators.ALPHA}", "bits"),
    "infonce": ("InfoNCE, lower bound", "nats"),
}


@dataclass(frozen=True)
class Information:
    """The result of a measurement.

    Attributes:
        content: the content of information.json; `values[defense][layer][pair][estimate]` has one number per seed.
        folder: the folder of information.json and the picture.
    """

    content: dict[str, Any]
    folder: Path


def measure(names: Sequence[str], protocol: Protocol, seeds: Sequence[int], options: Options) -> Information:
    """Estimate for every defense, layer and seed. A seed determines the attack, the groups and the critics.

    Args:
        names: names of defenses that have features.

    Raises:
        RobenchError: for every mistake that a user can fix, such as too few images or a defense without features.
    """
    minimum = 2 * estimators.GROUP
    if protocol.samples < minimum:
        groups = f"two groups of {estimators.GROUP}"
        raise UsageError(f"--mi needs at least {minimum} samples ({groups}), got {protocol.samples}")
    device = choose_device(options.device)
    loaded_defenses, (images, *others) = zip(*load_all(names, protocol, options, device), strict=True)
    if any(other.digest != images.digest for other in others):
        raise UsageError("--mi compares defenses on the same images: choose defenses of one preprocessing")
    if len(images) < minimum:
        raise UsageError(f"--mi needs at least {minimum} images: {images.name} has only {len(images)}")
    batch_size = choose_batch_size(options.batch_size, device, images.x.shape[-1], len(images))
    for loaded in loaded_defenses:
        loaded.defense.features(images.x[:1].to(device))  # raises for a defense without features
    values: dict[str, list[dict[str, dict[str, list[float]]]]] = {}
    for loaded in loaded_defenses:
        for seed in seeds:
            options.note(f"{loaded.name}, seed {seed}")

            def estimated(
                size: int, loaded: Loaded = loaded, seed: int = seed
            ) -> list[tuple[int, str, str, float]]:
                return list(_estimates(Case.of(loaded, images, protocol, "full", seed, device, size)))

            with frozen(loaded.defense):
                estimates = backing_off(estimated, batch_size, device, options.note)
            layers = values.setdefault(loaded.name, [])
            for layer, pair, estimate, value in estimates:
                if layer == len(layers):
                    layers.append({name: {} for name in PAIRS})
                layers[layer][pair].setdefault(estimate, []).append(round(value, 5))
    content = {
        "robench_version": provenance.robench_version(),
        "dataset": {"name": images.name, "split": images.split, "digest": images.digest},
        "protocol": protocol.name,
        "threat": protocol.threat_name,
        "n": len(images),
        "seeds": list(seeds),
        "group": estimators.GROUP,
        "limits": {"renyi": math.log2(estimators.GROUP), "infonce": math.log(estimators.GROUP)},
        "defenses": {loaded.name: loaded.checkpoint_sha256 for loaded in loaded_defenses},
        "values": values,
    }
    folder = Path(options.results) / slug(protocol.name) / slug(f"information-{'-'.join(values)}")
    refuse_link(folder)
    write_file(folder / FILE, strict_json.dumps(content))
    picture(content, folder / PICTURE)
    return Information(content, folder)


def _estimates(case: Case) -> Iterator[tuple[int, str, str, float]]:
    """Yield (layer, pair, estimate, value) for one defense and seed."""
    clean = case.x.cpu()
    spec = case.spec("pgd" if case.threat.norm != "L1" else "apgd-l1", steps=ATTACK_STEPS)
    adversarial = follow(case, spec).last
    layers = list(zip(_layers(case, clean), _layers(case, adversarial), strict=True))
    for layer, (z, z_adv) in enumerate(layers):
        pairs = {
            "image": (clean, z),
            "adversarial": (adversarial, z_adv),
            "perturbation": (adversarial - clean, z_adv),
        }
        for pair, (x, latent) in pairs.items():
            for name, estimate in (
                ("nhsic", estimators.plain_nhsic),
                ("renyi", estimators.renyi_information),
            ):
                yield layer, pair, name, estimators.in_groups(estimate, x, latent, case.seed)
                others = estimators.unpaired(latent, case.seed)
                yield layer, pair, name + RANDOM, estimators.in_groups(estimate, x, others, case.seed)
            yield layer, pair, "infonce", estimators.infonce(x, latent, case.seed, estimators.GROUP)


def _layers(case: Case, x: Tensor) -> tuple[Tensor, ...]:
    """Flattened features of each layer for images (N, 3, H, W), on the CPU."""
    with torch.inference_mode():
        widths = [features[0].numel() for features in case.loaded.defense.all_features(case.x[:1])]
    parts = zip(x.split(case.network.batch_size), case.ids.split(case.network.batch_size), strict=True)
    features = [case.judge.network.features(part.to(case.x.device), ids, "all").cpu() for part, ids in parts]
    return torch.cat(features).split(widths, 1)


def grids(information: Information) -> list[Grid]:
    """One table per estimate: layers in rows, pairs in columns, mean and standard deviation over the seeds."""
    content = information.content
    tables = []
    for estimate, (title, unit) in ESTIMATES.items():
        groups = [
            tuple(
                (name, str(layer + 1), *(_cell(layer_values[pair], estimate) for pair in PAIRS))
                for layer, layer_values in enumerate(layers)
            )
            for name, layers in content["values"].items()
        ]
        limit = content["limits"].get(estimate)
        notes = [] if limit is None else [f"at most {limit:.2f} {unit}, even if the true value is larger"]
        first_layers = (pairs for layers in content["values"].values() for pairs in layers[0].values())
        if any(estimate + RANDOM in pairs for pairs in first_layers):
            notes.append("in brackets: for randomly paired rows")
        tables.append(
            Grid(
                title=f"{title}, {unit} · {content['threat']} · {content['n']} images, groups of {content['group']} · "
                f"{_seeds(content, 'mean ± standard deviation of')}",
                columns=("defense", "layer", *PAIRS.values()),
                groups=tuple(groups),
                names=frozenset(("defense",)),
                numbers=frozenset(("layer", *PAIRS.values())),
                notes=tuple(notes),
            )
        )
    files = (("information", FILE), ("plot", PICTURE))
    places = (f"{name}: {location(information.folder / file)}" for name, file in files)
    return [*tables[:-1], replace(tables[-1], notes=(*tables[-1].notes, *places))]


def _seeds(content: Mapping[str, Any], what: str) -> str:
    count = len(content["seeds"])
    return f"{what} {count} seeds" if count > 1 else "one seed"


def _cell(estimates: Mapping[str, Sequence[float]], estimate: str) -> str:
    mean, deviation = mean_and_deviation(estimates[estimate])
    text = f"{mean:.3g}"
    if not math.isnan(deviation):
        text += f" ± {deviation:.{1 if deviation < 9.5 else 2}g}"
    at_random = estimates.get(estimate + RANDOM)
    return text + (f"\n({mean_and_deviation(at_random)[0]:.3g})" if at_random else "")


def picture(content: dict[str, Any], path: Path) -> Path:
    """Write a PNG with one row per estimate, one column per pair, and one curve per defense over its layers.

    Raises:
        ResourceError: when the file cannot be written.
    """
    from robench.reports.plots import style

    figure = style.figure(9.6, 7.6, layout="constrained")
    panels = figure.subplots(len(ESTIMATES), len(PAIRS), sharex=True, sharey="row")
    for down, (estimate, (title, unit)) in enumerate(ESTIMATES.items()):
        for across, (pair, pair_title) in enumerate(PAIRS.items()):
            axes = panels[down][across]
            for i, (name, layers) in enumerate(content["values"].items()):
                colour = style.colour(i)
                statistics = [mean_and_deviation(layer_values[pair][estimate]) for layer_values in layers]
                spread = [0.0 if math.isnan(deviation) else deviation for _, deviation in statistics]
                positions = [layer + 1 + 0.05 * (i - 1) for layer in range(len(layers))]
                axes.errorbar(
                    positions, [mean for mean, _ in statistics], spread, color=colour, marker=style.marker(i),
                    markersize=5, linewidth=1.3, capsize=2, label=style.literal(name),
                )  # fmt: skip
                at_random = [values[pair].get(estimate + RANDOM) for values in layers]
                if all(at_random):
                    level = [mean_and_deviation(values)[0] for values in at_random]
                    axes.plot(positions, level, color=colour, linestyle=":", linewidth=1.1)
            if estimate in content["limits"] and estimate == "infonce":
                limit = content["limits"][estimate]
                axes.axhline(limit, color=style.QUIET, linestyle="--", linewidth=1.0, label="limit")
            x = "layer" if down == len(ESTIMATES) - 1 else ""
            y = "" if across else f"{title}\n{unit}"
            style.frame(axes, title="" if down else pair_title, x=x, y=y)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.tick_params(labelsize=8)
    handles = {
        label: handle
        for row in panels
        for axes in row
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    description = f"{content['threat']}, {content['n']} images of {content['dataset']['name']}"
    figure.suptitle(
        f"Information of each layer z about its image; {style.literal(description)}\n"
        f"{_seeds(content, 'bars: standard deviation of')}; "
        "dotted: randomly paired rows",
        fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    return style.save(figure, path)
