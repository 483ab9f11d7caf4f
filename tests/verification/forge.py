"""What a careful forger does to a record: an edit, and everything mended that is counted from what was edited."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robench.records import randomized
from robench.records.certificates import is_attacked
from robench.records.record import Record
from robench.statistics.accuracy import Accuracy

JSON, SAMPLES = "record.json", "samples.parquet"


def copied(record: Record, folder: Path) -> Path:
    """A copy of the record's files to forge."""
    assert record.folder
    shutil.copytree(record.folder, folder, dirs_exist_ok=True)
    return folder


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / JSON).read_text("utf-8"))


def write(folder: Path, content: dict[str, Any], seal: tuple[str, ...] = ("files", "key")) -> None:
    """Write record.json with the digests of its files, and its key, as they must be."""
    if "files" in seal:
        for name in content["files"]:
            content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if "key" in seal:
        content["key"] = Record.from_dict(content).job.key
    (folder / JSON).write_text(json.dumps(content), "utf-8")


def set_rows(folder: Path, change: dict[str, dict[int, Any]]) -> None:
    """Put other values into columns of the samples, row by row, and count everything again."""
    table = pq.read_table(folder / SAMPLES)
    for name, values in change.items():
        index = table.schema.get_field_index(name)
        column = table[name].to_pylist()
        for row, value in values.items():
            column[row] = value
        table = table.set_column(
            index, table.schema.field(name), pa.array(column, table.schema.field(name).type)
        )
    pq.write_table(table, folder / SAMPLES)
    recount(folder)


def recount(folder: Path) -> None:
    """Figures of record.json from its rows: accuracies, survivors, passes (what is left over: the last attack's)."""
    content, rows = read(folder), pq.read_table(folder / SAMPLES).to_pydict()
    n = len(rows["id"])
    right = sum(a == b for a, b in zip(rows["clean_prediction"], rows["label"], strict=True))
    for name, correct in (("clean_accuracy", right), ("robust_accuracy", rows["fooled_by"].count(""))):
        true = Accuracy.of(correct, n)
        content[name] = {"value": true.value, "correct": correct, "interval": list(true.interval)}
    if randomized.FIELD in content:
        content[randomized.FIELD] = randomized.figures(rows, content[randomized.FIELD]["draws"])
    elif "corruptions" not in content:
        hits, left = Counter(name for name in rows["fooled_by"] if is_attacked(name)), right
        for cost in content["attacks"]:
            cost["attacked"] = left
            left -= hits[cost["spec"]]
            cost["survivors"] = left
    for direction in ("forward", "backward"):
        content["passes"][direction] = sum(rows[direction])
        others = sum(cost[direction] for cost in content["attacks"][:-1])
        content["attacks"][-1][direction] = max(0, content["passes"][direction] - others)
    write(folder, content)
