"""samples.parquet: one row a sample, what happened to it."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from robench.data._base import Images
from robench.data._pixels import Stack
from robench.engine.outcome import Outcome
from robench.errors import ResourceError
from robench.results.record import Record

FILE = "samples.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("label", pa.int64()),
        ("clean_prediction", pa.int64()),
        ("fooled_by", pa.string()),
        ("prediction", pa.int64()),
        ("clean_margin", pa.float32()),
        ("clean_draws", pa.int64()),
        ("draws", pa.int64()),
        ("distance", pa.float64()),
        ("steps", pa.int64()),
        ("forward", pa.int64()),
        ("backward", pa.int64()),
        ("digest", pa.string()),
    ]
)

# Of a run under corruptions: what was predicted at every corruption and severity, in the record's order.
CORRUPTED = pa.field("corrupted", pa.list_(pa.int32()))


def input_digests(x: Tensor | Stack) -> list[str]:
    """sha256 of the float32 bytes of each row of `x`, (N, C, H, W), in hexadecimal."""
    rows = (row for part in x.split(64) for row in part.float().cpu())
    return [hashlib.sha256(row.contiguous().numpy().data).hexdigest() for row in rows]


def encode(outcome: Outcome, images: Images, corrupted: Tensor | None = None) -> bytes:
    """The file for an outcome: the same bytes for the same outcome, with one release of pyarrow.

    Args:
        corrupted: (N, cells) int64, predictions under corruptions.
    """
    columns = {
        "id": images.ids,
        "label": images.y,
        "clean_prediction": outcome.clean_prediction,
        "prediction": outcome.prediction,
        "clean_margin": outcome.clean_margin,
        "clean_draws": outcome.clean_draws,
        "draws": outcome.draws,
        "distance": outcome.distance,
        "steps": outcome.steps,
        "forward": outcome.forward,
        "backward": outcome.backward,
    }
    rows = {name: column.cpu().numpy() for name, column in columns.items()}
    rows |= {"fooled_by": outcome.fooled_by, "digest": input_digests(images.x)}
    table = pa.table([pa.array(rows[name], field.type) for name, field in _fields()], schema=SCHEMA)
    if corrupted is not None:
        table = table.append_column(CORRUPTED, pa.array(corrupted.tolist(), CORRUPTED.type))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_samples(folder: Path) -> pa.Table:
    """The rows of a record's folder, with the columns of `SCHEMA`, and `CORRUPTED` after a run under corruptions.

    Raises:
        ResourceError: when the file is missing, damaged or has other columns.
    """
    path = Path(folder) / FILE
    mend = "repeat the run with --fresh, or restore the file"
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except OSError as error:
        # pyarrow reports damage inside a file as an OSError without a number.
        found = error.strerror if error.errno else "damaged or truncated"
        raise ResourceError(f"{path}: {found}: {mend}") from error
    except pa.ArrowException as error:
        raise ResourceError(f"{path}: damaged or truncated: {mend}") from error
    if not any(table.schema.equals(known) for known in (SCHEMA, SCHEMA.append(CORRUPTED))):
        wrong = [name for name, field in _fields() if name not in table.schema.names or
                 table.schema.field(name).type != field.type]  # fmt: skip
        named = f"column {wrong[0]} is missing or of another type" if wrong else "unexpected columns"
        raise ResourceError(f"{path}: {named}: {mend}")
    return table


def _fields() -> list[tuple[str, pa.Field]]:
    return [(name, SCHEMA.field(name)) for name in SCHEMA.names]


def held(record: Record) -> np.ndarray | None:
    """Which images are still right, bool (n,) in the order of the data set; None where no samples can be read."""
    try:
        rows = read_samples(record.folder) if record.folder else None
    except ResourceError:
        rows = None
    if rows is None or len(rows) != record.job.n:
        return None
    rows = rows.sort_by("id")
    return np.asarray(rows["fooled_by"].to_pylist()) == ""
