"""What `robench diagnose` does: runs first, for they are records and resume; then what is quickly done again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robench.catalog import Protocol
from robench.core.formatting import location
from robench.core.io import refuse_link, write_whole
from robench.diagnosis import failure, gradients, runs, surface
from robench.diagnosis._base import Case, Indicator
from robench.diagnosis.paths import follow
from robench.engine.batched_model import frozen
from robench.engine.device import choose_batch_size, choose_device
from robench.evaluation.planning import load_for_images
from robench.evaluation.run import Options
from robench.records import provenance
from robench.records.cross_checks import DIAGNOSIS, FILE, SCHEMA
from robench.records.store import record_folder
from robench.reports.table import Grid
from robench.statistics.accuracy import clopper_pearson

PICTURE = "surfaces.png"


@dataclass(frozen=True)
class Diagnosis:
    """What was found of one defense.

    Attributes:
        content: of diagnosis.json.
        indicators: the same, to show.
        folder: where it lies, with the picture.
    """

    content: dict[str, Any]
    indicators: tuple[Indicator, ...]
    folder: Path


def diagnose(names: list[str], protocol: Protocol, knowledge: str, options: Options) -> Iterator[Diagnosis]:
    """Diagnose defenses, one after another; warnings are data, not errors.

    Args:
        knowledge: the attacker's, as for a run.

    Raises:
        RobenchError: for everything a user can mend.
    """
    device = choose_device(options.device)
    found, images = load_for_images(names, protocol, options, device)
    protocol = replace(protocol, samples=len(images))
    batch_size = choose_batch_size(options.batch_size, device, images.x.shape[-1], len(images))
    for name, loaded in zip(names, found, strict=True):
        with frozen(loaded.defense):
            case = Case.of(loaded, images, protocol, knowledge, options.seed, device, batch_size)
            with frozen(case.network.model):
                yield _diagnose(case, name, options)


def _diagnose(case: Case, name: str, options: Options) -> Diagnosis:
    job = (case.protocol.name, case.loaded.name, DIAGNOSIS, case.knowledge, case.seed)
    folder = record_folder(options.results, *job)
    refuse_link(folder)
    played = runs.play(case, name, folder, options)
    paths = follow(case, case.followed)
    signs = (*failure.indicators(case, paths), *runs.indicators(played), gradients.indicator(case))
    drawn = surface.surfaces(case)
    if drawn:
        surface.draw(drawn, case, folder / PICTURE)
    content = _content(case, signs, PICTURE if drawn else "")
    write_whole(
        folder, {FILE: (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()}
    )
    return Diagnosis(content, signs, folder)


def _content(case: Case, signs: tuple[Indicator, ...], picture: str) -> dict[str, Any]:
    loaded, images = case.loaded, case.images
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
        "unseen": _unseen(int(case.right.sum())),
        "attack": case.followed,
        "indicators": [
            {
                "code": sign.code,
                "name": sign.name,
                "value": None if sign.value is None else round(sign.value, 6),
                "threshold": sign.threshold,
                "doubtful": "below" if sign.falls else "above",
                "source": sign.source,
                "doubt": sign.doubt,
                "text": sign.text,
            }
            for sign in signs
        ],
        "health": [{"code": s.mark.code, "text": s.mark.text} for s in signs if s.doubt],
        "picture": picture,
    }


def _unseen(n: int) -> dict[str, Any]:
    """The share of all images that a sign may have which none of n images shows: an exact 95 % interval."""
    return {"images": n, "interval": [round(end, 6) for end in clopper_pearson(0, n)] if n else [0.0, 1.0]}


def _proof(unseen: dict[str, Any]) -> str:
    """How little a sign proves that no image shows."""
    if not unseen["images"]:
        return "0 images are classified correctly without an attack: this diagnosis proves nothing"
    return (
        f"a sign in 0 of {unseen['images']} images that are classified correctly without an attack: its true share may "
        f"be up to {100 * unseen['interval'][1]:.1f} % (exact 95 % interval, Clopper-Pearson)"
    )


def grid(found: Diagnosis) -> Grid:
    """The table: indicator, value, threshold, verdict; what was found stands beneath."""
    content = found.content
    rows, said = [], []
    for sign in found.indicators:
        value = "–" if sign.value is None else f"{sign.value:.3g}"
        bound = f"{'<' if sign.falls else '>'} {sign.threshold:g}"
        rows.append((sign.name, value, bound, sign.source, "DOUBT" if sign.doubt else "fine"))
        said.append(f"{'!' if sign.doubt else '·'} {sign.name}: {sign.text}")
    places = [f"diagnosis: {location(found.folder / FILE)}"]
    if content["picture"]:
        places.append(f"picture: {location(found.folder / PICTURE)}")
    return Grid(
        title=(
            f"{content['defense']['name']} · {content['threat']} · {content['n']} images · "
            f"knowledge {content['knowledge']} · path of {content['attack']}"
        ),
        columns=("indicator", "value", "warning if", "threshold from", "verdict"),
        groups=(tuple(rows),),
        numbers=frozenset(("value", "warning if")),
        notes=(*said, _proof(content["unseen"]), *places),
    )
