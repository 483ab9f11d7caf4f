"""Write RobustBench's `model_info` files from our records, and read theirs as claims, which boards do not rank.

The files are `model_info/<dataset>/<norm>/<model>.json` (github.com/RobustBench/robustbench). Accuracies are strings
in percent; `external` is the lowest reported robust accuracy.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench import catalog
from robench.core import specs, strict_json
from robench.core.errors import ResourceError, RobenchError, UsageError
from robench.core.grouping import grouped
from robench.core.io import write_file
from robench.records.record import Record
from robench.records.store import slug
from robench.reports.formatting import EMPTY
from robench.reports.table import Grid
from robench.statistics.accuracy import interval, percent
from robench.threats.threat import NORMS, Threat

FOLDER = "model_info"
# Columns of a table with claims only.
_ALONE = ("defense", "clean %", "claimed %", "best known %", "warnings")
_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")


@dataclass(frozen=True)
class Claim:
    """The claim in a file of RobustBench.

    Attributes:
        name: name of the model.
        threat: canonical, from the file's folder and its radius.
        clean, robust: percent; `best_known` is the lowest reported robust accuracy, or None.
        warning: RobustBench's remark on an unreliable result.
    """

    name: str
    dataset: str
    threat: str
    clean: float
    robust: float
    best_known: float | None = None
    warning: str = ""


def read_claims(sources: Iterable[Path | str]) -> list[Claim]:
    """Read claims from files and folders of RobustBench. Claims on corruptions, which have no radius, are left out.

    Raises:
        ResourceError: when a file cannot be read or is not a model_info file, or there are no files.
    """
    all_claims: list[Claim] = []
    for source in map(Path, sources):
        if not source.exists():
            raise ResourceError(
                f"{source}: no such file: expected a file or folder of RobustBench's {FOLDER}"
            )
        files = [source] if source.is_file() else sorted(source.rglob("*.json"))
        claims = [_claim(file) for file in files if file.parent.name in NORMS or source.is_file()]
        if not claims:
            raise ResourceError(
                f"{source} has no files <dataset>/<norm>/<model>.json, as in RobustBench's {FOLDER}"
            )
        all_claims += claims
    return all_claims


def _claim(file: Path) -> Claim:
    try:
        content = json.loads(file.read_bytes())
        if file.parent.name not in NORMS:
            raise ValueError(f"is in the folder {file.parent.name}, which is not one of {', '.join(NORMS)}")
        external = content.get("external")
        numbers = [float(content[name]) for name in ("clean_acc", "autoattack_acc")]
        numbers += [float(external)] if external not in (None, "") else []
        if not all(0 <= number <= 100 for number in numbers):
            raise ValueError("has an accuracy outside 0 to 100 %")
        return Claim(
            name=file.stem,
            dataset=str(content["dataset"]),
            threat=str(Threat.parse(f"{file.parent.name}:{content['eps']}")),
            clean=numbers[0],
            robust=numbers[1],
            best_known=numbers[2] if len(numbers) > 2 else None,
            warning=str(content.get("footnote") or "marked as unreliable")
            if content.get("unreliable")
            else "",
        )
    except OSError as error:
        raise ResourceError(f"{file}: {error.strerror or error}") from error
    except KeyError as error:
        raise ResourceError(f"{file} is not a {FOLDER} file of RobustBench: {error} is missing") from error
    except (ValueError, TypeError, AttributeError, RecursionError, RobenchError) as error:
        raise ResourceError(f"{file} is not a {FOLDER} file of RobustBench: {error}") from error


def model_info(record: Record) -> dict[str, Any]:
    """The fields of a model_info file. Fields that a record does not have are null, to be filled in by hand.

    Raises:
        UsageError: when the record is not of AutoAttack with full knowledge in Linf or L2, as the fields require.
    """
    from robench.attacks.build import build_attacks  # imports torch

    job, threat = record.job, record.job.threat_model
    attacks = build_attacks(catalog.suites()["autoattack"].specs(threat.norm), threat)
    standard = tuple(spec for spec, _ in attacks)
    partial = job.suite.attacks != standard or record.is_estimate
    if partial or job.knowledge != "full" or threat.norm not in ("Linf", "L2"):
        raise UsageError(
            f"{job.defense.name} under {job.suite.name}, {job.knowledge}, {threat}: RobustBench's files need "
            "AutoAttack (standard) with full knowledge in Linf or L2"
        )
    card = catalog.cards().get(job.defense.name)
    title, _, _ = (card.paper if card else "").partition(", arXiv")
    arxiv_id = _ARXIV.search(card.paper if card else "")
    claims = [c["robust"] for c in (card.claims if card else []) if Threat.parse(c["threat"]) == threat]
    footnote = (
        f"Measured by robench {record.robench_version} on the first {job.n:,} images of {job.dataset.name} "
        f"{job.dataset.split}: robust {percent(record.robust_accuracy)} %, 95 % interval "
        f"{interval(record.robust_accuracy)}; record {record.key[:12]}."
    )
    warnings = "; ".join(map(str, record.health))
    return {
        "link": f"https://arxiv.org/abs/{arxiv_id.group(1)}" if arxiv_id else None,
        "name": title or None,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": specs.parse(job.dataset.name).name.replace("-", ""),
        "venue": None,
        "architecture": card.spec.name if card else None,
        "eps": threat.text,
        "clean_acc": percent(record.clean_accuracy),
        "reported": f"{min(claims):.2f}" if claims else None,
        "autoattack_acc": percent(record.robust_accuracy),
        "footnote": footnote + (f" Warnings: {warnings}." if warnings else ""),
        "unreliable": bool(record.health),
    }


def write_infos(records: Sequence[Record], output: Path | str) -> list[Path]:
    """Write a model_info file for each record to `output`, in the folder layout of RobustBench.

    Raises:
        UsageError: as `model_info`; ResourceError: when a file cannot be written.
    """
    files = {}
    for record in records:
        info = model_info(record)
        norm = record.job.threat_model.norm
        place = Path(output) / FOLDER / info["dataset"] / norm / f"{slug(record.job.defense.name)}.json"
        files[place] = strict_json.dumps(info)
    for place, encoded in files.items():
        write_file(place, encoded)
    return list(files)


def claims_only(claims: Sequence[Claim]) -> list[Grid]:
    """A table of claims for each dataset and threat."""
    tables = grouped(claims, lambda claim: (claim.dataset, claim.threat))
    return [
        with_claims(Grid(f"{dataset} · {threat} · claims only", _ALONE, ()), members)
        for (dataset, threat), members in sorted(tables.items())
    ]


def with_claims(grid: Grid, claims: Sequence[Claim]) -> Grid:
    """Add claims to the table of their dataset and threat, in a separate group."""
    if not claims:
        return grid
    columns = grid.columns
    if "claimed %" not in columns:
        place = columns.index("robust %") + 1 if "robust %" in columns else len(columns)
        columns = (*columns[:place], "claimed %", *columns[place:])

    def widened(row: tuple[str, ...]) -> tuple[str, ...]:
        cells = dict(zip(grid.columns, row, strict=True))
        return tuple(cells.get(name, EMPTY) for name in columns)

    groups = tuple(tuple(map(widened, group)) for group in grid.groups)
    lines = []
    for claim in sorted(claims, key=lambda claim: (-claim.robust, claim.name)):
        cells = {
            "rank": "claimed",
            "defense": claim.name,
            "clean %": f"{claim.clean:.2f}",
            "claimed %": f"{claim.robust:.2f}",
            "best known %": EMPTY if claim.best_known is None else f"{claim.best_known:.2f}",
            "suite": "autoattack",
            "warnings": "!" if claim.warning else "",
        }
        lines.append(tuple(cells.get(name, EMPTY) for name in columns))
    notes = [f"! {claim.name}: {claim.warning}" for claim in claims if claim.warning]
    source = "claimed: from RobustBench's model_info, measured by others on their images, not ranked here"
    return Grid(
        title=grid.title,
        columns=columns,
        groups=(*groups, tuple(lines)),
        names=frozenset(("defense", "suite", "knowledge")),
        numbers=grid.numbers | {"rank", "clean %", "robust %", "claimed %", "best known %", "n"},
        best=grid.best,
        notes=(*grid.notes, source, *notes),
    )
