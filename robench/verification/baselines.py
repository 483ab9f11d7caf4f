"""Which checks to make: a record's folder, or a TOML file that lists several."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.catalog import read_toml
from robench.core.errors import UsageError

# Fields of a [[check]] with their types; numbers may be whole.
_FIELDS: dict[str, type] = {
    "baseline": str, "defense": str, "checkpoint": str, "margin": float, "tolerance": float,
    "false_alarm": float, "miss": float,
}  # fmt: skip


@dataclass(frozen=True)
class Baseline:
    """One check.

    Attributes:
        folder: of the record.
        defense: what is held against it; None for what the record names.
        settings: fields of `robench.verification.regression.Options`.
    """

    folder: Path
    defense: str | None
    settings: dict[str, Any]


def read_baselines(path: Path | str) -> list[Baseline]:
    """The checks that `path` stands for.

    A file has tables `[[check]]` with `baseline`, a folder relative to the file, and perhaps `defense`,
    `checkpoint`, `margin`, `tolerance`, `false_alarm`, `miss`.

    Raises:
        ResourceError: when the file cannot be read.
        UsageError: when it is not TOML, or a field is unknown, missing or of another type.
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
    where = f"{path}: check {number}"
    if not isinstance(table, dict):
        raise UsageError(f"{where}: expected a table [[check]]")
    for key, value in table.items():
        if key not in _FIELDS:
            raise UsageError(f'{where}: unknown field "{key}": expected some of {", ".join(_FIELDS)}')
        fits = isinstance(value, int | float) if _FIELDS[key] is float else isinstance(value, str)
        if not fits or isinstance(value, bool):
            raise UsageError(f"{where}: {key} = {value!r}: expected {_FIELDS[key].__name__}")
    if "baseline" not in table:
        raise UsageError(f"{where}: the field baseline is missing")
    settings = {key: value for key, value in table.items() if key not in ("baseline", "defense")}
    return Baseline(path.parent / table["baseline"], table.get("defense"), settings)
