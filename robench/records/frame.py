"""Records as a pandas DataFrame."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robench.records.collection import collect

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(results: Path | str | Sequence[Path | str] = "results") -> "DataFrame":
    """Read the records under one or several folders into a pandas DataFrame, one row per record.

    Accuracies are fractions in [0, 1]; columns that end in `_low` and `_high` give their 95 % intervals. `warnings`
    contains the codes of the warnings, separated by spaces. Records that cannot be read are left out, with a warning.

    >>> robench.records("results").sort_values("robust")[["defense", "suite", "clean", "robust"]]

    Raises:
        ResourceError: if a folder does not exist.
    """
    # Imported here: it takes a third of a second, and only this function needs it.
    import pandas

    records = collect([results] if isinstance(results, str | Path) else results)
    for left_out in records.left_out:
        warnings.warn(f"left out: {left_out}", stacklevel=2)
    rows = [{name: value(record) for name, value in _COLUMNS.items()} for record in records]
    return pandas.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = {
    "defense": lambda record: str(record.job.defense.name),
    "suite": lambda record: str(record.job.suite.name),
    "protocol": lambda record: str(record.job.protocol),
    "dataset": lambda record: str(record.job.dataset.name),
    "threat": lambda record: str(record.job.threat),
    "knowledge": lambda record: str(record.job.knowledge),
    "n": lambda record: record.job.n,
    "clean": lambda record: record.clean_accuracy.value,
    "clean_low": lambda record: record.clean_accuracy.interval[0],
    "clean_high": lambda record: record.clean_accuracy.interval[1],
    "robust": lambda record: record.robust_accuracy.value,
    "robust_low": lambda record: record.robust_accuracy.interval[0],
    "robust_high": lambda record: record.robust_accuracy.interval[1],
    "warnings": lambda record: " ".join(str(warning.code) for warning in record.health),
    "forward": lambda record: record.passes["forward"],
    "backward": lambda record: record.passes["backward"],
    "seconds": lambda record: record.seconds,
    "seed": lambda record: record.job.seed,
    "device": lambda record: str(record.device),
    "robench": lambda record: str(record.robench_version),
    "finished": lambda record: str(record.finished),
    "folder": lambda record: str(record.folder),
}
