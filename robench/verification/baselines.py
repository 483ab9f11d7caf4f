"""Read which checks to run: one record folder, or a TOML file that lists several checks."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.catalog import read_toml
from robench.core.errors import UsageError
from robench.core.fields import check_table
from robench.core.trust import like


@dataclass(frozen=True)
class Check:
    """The fields of a table [[check]]. Those with a default are optional."""

    baseline: str
    defense: str = ""
    checkpoint: str = ""
    margin: float = 0.0
    tolerance: float = 0.0
    false_alarm: float = 0.0
    miss: float = 0.0


@dataclass(frozen=True)
class Baseline:
    """One check.

    Attributes:
        folder: the folder of the record.
        defense: the defense to compare with the record; None for the one that the record names.
        settings: fields of `robench.verification.regression.Options`.
    """

    folder: Path
    defense: str | None
    settings: dict[str, Any]


def read_baselines(path: Path | str) -> list[Baseline]:
    """Read the checks of `path`.

    A TOML file has tables `[[check]]`. Each has `baseline`, a folder relative to the file, and optionally `defense`,
    `checkpoint`, `margin`, `tolerance`, `false_alarm` and `miss`. A checkpoint is a file relative to the TOML file, or
    if there is none, whatever `--checkpoint` accepts.

    Raises:
        ResourceError: when the file cannot be read.
        UsageError: when it is not TOML, or a field is unknown, missing or of the wrong type.
    """
    path = Path(path)
    if path.suffix != ".toml":
        return [Baseline(path, None, {})]
    content = read_toml(path)
    tables = content.pop("check", None)
    if content or not isinstance(tables, list) or not tables:
        raise UsageError(f"{path}: expected tables [[check]] and nothing else")
    return [_baseline(table, path, number) for number, table in enumerate(tables, 1)]


def _baseline(table: Any, path: Path, number: int) -> Baseline:
    source = f"{path}: check {number}"
    check_table(table, Check, source)
    settings = {key: value for key, value in table.items() if key not in ("baseline", "defense")}
    # A path relative to the current folder, or a URL, is used as it is written.
    checkpoint = table.get("checkpoint")
    if checkpoint and os.path.lexists(beside := path.parent / checkpoint):
        settings["checkpoint"] = like(checkpoint, str(beside))
    return Baseline(path.parent / table["baseline"], table.get("defense"), settings)
