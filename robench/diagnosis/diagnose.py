"""`robench diagnose`: first the runs, whose records allow it to resume, then the cheap parts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robench.catalog import Protocol
from robench.core import strict_json
from robench.core.formatting import location
from robench.core.io import refuse_link, write_file
from robench.data import Images
from robench.defenses import Loaded
from robench.diagnosis import failure, gradients, runs, surface
from robench.diagnosis._base import Case, Indicator
from robench.diagnosis.paths import follow
from robench.engine.backing_off import backing_off
from robench.engine.batched_model import frozen
from robench.engine.device import choose_batch_size, choose_device
from robench.evaluation.planning import load_all
from robench.evaluation.run import Options
from robench.records import provenance
from robench.records.cross_checks import DIAGNOSIS, FILE, SCHEMA
from robench.records.store import record_folder
from robench.reports.table import Grid
from robench.statistics.accuracy import clopper_pearson

PICTURE = "surfaces.png"
# The rate of unseen failures above which a diagnosis says that it proves little: that of fewer than 36 images.
_FEW = 0.1


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of one defense.

    Attributes:
        content: the content of diagnosis.json.
        indicators: the same as values.
        folder: the folder of diagnosis.json and the picture.
    """

    content: dict[str, Any]
    indicators: tuple[Indicator, ...]
    folder: Path


def diagnose(names: list[str], protocol: Protocol, knowledge: str, options: Options) -> Iterator[Diagnosis]:
    """Diagnose defenses one after another. Warnings are data, not errors.

    Args:
        knowledge: the attacker knowledge, as for a run.

    Raises:
        RobenchError: for every mistake that a user can fix.
    """
    device = choose_device(options.device)
    for name, (loaded, images) in zip(names, load_all(names, protocol, options, device), strict=True):
        batch_size = choose_batch_size(options.batch_size, device, images.x.shape[-1], len(images))

        def diagnosed(
            size: int, name: str = name, loaded: Loaded = loaded, images: Images = images
        ) -> Diagnosis:
            actual = replace(protocol, samples=len(images))
            case = Case.of(loaded, images, actual, knowledge, options.seed, device, size)
            with frozen(case.network.model):
                return _diagnose(case, name, options)

        with frozen(loaded.defense):
            yield backing_off(diagnosed, batch_size, device, options.note)


def _diagnose(case: Case, name: str, options: Options) -> Diagnosis:
    job = (case.protocol.name, case.loaded.name, DIAGNOSIS, case.knowledge, case.seed)
    folder = record_folder(options.results, *job)
    refuse_link(folder)
    run_records = runs.play(case, name, folder, options)
    paths = follow(case, case.followed)
    indicators = (*failure.indicators(case, paths), *runs.indicators(run_records), gradients.indicator(case))
    surfaces = surface.surfaces(case)
    if surfaces:
        surface.draw(surfaces, case, folder / PICTURE)
    content = _content(case, indicators, PICTURE if surfaces else "")
    write_file(folder / FILE, strict_json.dumps(content))
    return Diagnosis(content, indicators, folder)


def _content(case: Case, indicators: tuple[Indicator, ...], picture: str) -> dict[str, Any]:
    loaded, images, n = case.loaded, case.images, int(case.right.sum())
    # The exact 95 % interval of the true share of images with a sign that 0 of n images show.
    unseen = [round(end, 6) for end in clopper_pearson(0, n)] if n else [0.0, 1.0]
    return {
        "schema": SCHEMA,
        "robench_version": provenance.robench_version(),
        "defense": {"name": loaded.name, "checkpoint_sha256": loaded.checkpoint_sha256},
        "dataset": {"name": images.name, "split": images.split, "digest": images.digest},
        "protocol": case.protocol.name,
        "threat": str(case.threat),
        "knowledge": case.knowledge,
        "seed": case.seed,
        "n": len(images),
        "unseen": {"images": n, "interval": unseen},
        "attack": case.followed,
        "indicators": [
            {
                "code": indicator.code,
                "name": indicator.name,
                "value": None if indicator.value is None else round(indicator.value, 6),
                "threshold": indicator.threshold,
                "warns_if": "below" if indicator.falls else "above",
                "source": indicator.source,
                "warns": indicator.warns,
                "text": indicator.text,
            }
            for indicator in indicators
        ],
        "health": [{"code": i.warning.code, "text": i.warning.text} for i in indicators if i.warns],
        "picture": picture,
    }


def _proof(unseen: dict[str, Any]) -> str:
    """State how large the true rate of an unobserved failure may be."""
    if not unseen["images"]:
        return "0 images are classified correctly without an attack: this diagnosis proves nothing"
    n, rate = unseen["images"], f"{100 * unseen['interval'][1]:.1f} %"
    few = "few images prove little: " if unseen["interval"][1] > _FEW else ""
    return (
        f"{few}a failure that none of the {n} images shows (those classified correctly without an attack) may still "
        f"occur on up to {rate} of all images (exact 95 % interval, Clopper-Pearson)"
    )


def grid(diagnosis: Diagnosis) -> Grid:
    """The table of indicator, value, threshold and verdict, with one sentence per indicator below."""
    content = diagnosis.content
    rows, sentences = [], []
    for indicator in diagnosis.indicators:
        value = "–" if indicator.value is None else f"{indicator.value:.3g}"
        bound = f"{'<' if indicator.falls else '>'} {indicator.threshold:g}"
        verdict = "WARNING" if indicator.warns else "fine"
        rows.append((indicator.name, value, bound, indicator.source, verdict))
        sentences.append(f"{'!' if indicator.warns else '·'} {indicator.name}: {indicator.text}")
    files = [f"diagnosis: {location(diagnosis.folder / FILE)}"]
    if content["picture"]:
        files.append(f"plot: {location(diagnosis.folder / PICTURE)}")
    return Grid(
        title=(
            f"{content['defense']['name']} · {content['threat']} · {content['n']} images · "
            f"knowledge {content['knowledge']} · path of {content['attack']}"
        ),
        columns=("indicator", "value", "warning if", "threshold from", "verdict"),
        groups=(tuple(rows),),
        numbers=frozenset(("value", "warning if")),
        notes=(*sentences, _proof(content["unseen"]), *files),
    )
