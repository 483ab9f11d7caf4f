"""samples.parquet: one row per sample with its result."""

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robench.core.errors import ResourceError
from robench.core.io import read_ordinary
from robench.records.estimate import NOT_ATTACKED, ORDER
from robench.records.record import Record

if TYPE_CHECKING:
    from torch import Tensor

    from robench.data._base import Images
    from robench.data._lazy_images import LazyImages
    from robench.engine.outcome import Outcome

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

# For a run under corruptions: the prediction at every corruption and severity, in the record's order.
CORRUPTED = pa.field("corrupted", pa.list_(pa.int32()))
# For a run on a randomized defense: the predicted class of each fresh draw, -1 where a logit is NaN.
DRAWN = (pa.field("clean_answers", pa.list_(pa.int32())), pa.field("answers", pa.list_(pa.int32())))
# For a run that certifies first: the certifier that proves the image, which is then not attacked; empty for none.
PROVEN = pa.field("proven_by", pa.string())

# For an estimate: the position in the random order of the images that are sampled from.
ORDERED = pa.field(ORDER, pa.int64())

# Limits of memory use: rows (ImageNet has 1.3 million training images) and values of a column, and characters of a text
# and of all texts of a column.
_MOST, _VALUES, _LONGEST, _TEXT = 2_000_000, 200_000_000, 4096, 2**28
_SCHEMAS = [pa.schema([*SCHEMA, *more]) for more in ((), (CORRUPTED,), (ORDERED,), (PROVEN,), DRAWN)]


def input_digests(x: "Tensor | LazyImages") -> list[str]:
    """sha256 of the float32 bytes of each row of `x`, (N, C, H, W), in hexadecimal."""
    rows = (row for part in x.split(64) for row in part.float().cpu())
    return [hashlib.sha256(row.contiguous().numpy().data).hexdigest() for row in rows]


def encode(outcome: "Outcome", images: "Images", corrupted: "Tensor | None" = None) -> bytes:
    """The bytes of the file for an outcome. With one release of pyarrow, the same outcome gives the same bytes.

    Args:
        corrupted: (N, cells) int64, predictions under corruptions.
    """
    rows = {
        "id": images.ids.cpu().numpy(),
        "label": images.y.cpu().numpy(),
        "digest": input_digests(images.x),
        "fooled_by": outcome.fooled_by,
    }
    for name in SCHEMA.names:
        if name not in rows:
            rows[name] = getattr(outcome, name).cpu().numpy()
    table = pa.table([column(rows[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
    if corrupted is not None:
        table = table.append_column(CORRUPTED, column(corrupted.cpu().numpy(), CORRUPTED.type))
    for field in (*DRAWN, ORDERED):
        answers = getattr(outcome, field.name)
        if answers is not None:
            table = table.append_column(field, column(answers.cpu().numpy(), field.type))
    if outcome.proven_by is not None:
        table = table.append_column(PROVEN, column(outcome.proven_by, PROVEN.type))
    return encode_table(table)


def column(values: "Sequence[str] | Sequence[float] | np.ndarray", kind: pa.DataType) -> pa.Array:
    """What `pa.array` makes of strings, of numbers (n,) or of lists of one length (n, length), none of them missing.

    `pa.array` imports pandas, which takes a quarter as long as PyTorch.
    """
    if kind == pa.string():
        texts = [str(text).encode() for text in values]
        offsets = pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32))
        return pa.Array.from_buffers(kind, len(texts), [None, offsets, pa.py_buffer(b"".join(texts))])
    numbers = np.asarray(values)
    if pa.types.is_list(kind):
        starts = column(np.arange(len(numbers) + 1) * numbers.shape[1], pa.int32())
        return pa.ListArray.from_arrays(starts, column(numbers.ravel(), kind.value_type), type=kind)
    buffer = pa.py_buffer(np.ascontiguousarray(numbers, kind.to_pandas_dtype()))
    return pa.Array.from_buffers(kind, len(numbers), [None, buffer])


def encode_table(table: pa.Table) -> bytes:
    """The bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_samples(folder: Path) -> pa.Table:
    """The rows of a record's folder, with the columns of `SCHEMA`, `CORRUPTED` for a run under corruptions, `DRAWN`
    for a randomized defense, `ORDERED` for an estimate, and `PROVEN` for a run that certifies first.

    Raises:
        ResourceError: when the file is missing, damaged or has other columns.
    """
    return read_table(Path(folder) / FILE, _SCHEMAS, "repeat the run with --fresh")


def read_table(path: Path, schemas: Sequence[pa.Schema], remedy: str) -> pa.Table:
    """The rows of a Parquet file with one of the schemas.

    Raises:
        ResourceError: when the file is missing, damaged or has other columns.
    """
    try:
        return decode(read_ordinary(path), schemas)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ResourceError(f"{path}: {problem}: {remedy}, or restore the file") from error


def decode(encoded: bytes, schemas: Sequence[pa.Schema] | None = None) -> pa.Table:
    """The rows in the bytes of a samples.parquet, or of a file with one of these schemas.

    Raises:
        ValueError: in one line, when it is damaged, has other columns, an empty cell, a text of more than 4096
            characters, or more rows than a record can have.
    """
    try:
        metadata = pq.read_metadata(io.BytesIO(encoded))
        _check_schema(metadata.schema.to_arrow_schema(), schemas or _SCHEMAS)
        # A small file can decode to any number of rows with long texts.
        if metadata.num_rows > _MOST or _values(metadata) > _VALUES:
            raise ValueError("more rows than a record can have")
        # Threads cost more than they save, and `pq.read_table` imports pandas.
        texts = [field.name for field in metadata.schema.to_arrow_schema() if field.type == pa.string()]
        table = pq.ParquetFile(io.BytesIO(encoded), read_dictionary=texts).read(use_threads=False)
        # Long texts are refused in the dictionaries of the columns, before they are expanded to rows.
        for name in texts:
            for chunk in table[name].chunks:
                longest = max((len(text or "") for text in chunk.dictionary.to_pylist()), default=0)
                if longest > _LONGEST:
                    raise ValueError(f"column {name} has a text of more than {_LONGEST} characters")
                if longest * metadata.num_rows > _TEXT:
                    raise ValueError(f"column {name} has more than {_TEXT} characters")
        table = table.cast(pa.schema([_without_dictionary(field) for field in table.schema]))
        table.validate(full=True)
    # pyarrow reports damage as an OSError and unknown content as other errors.
    except (OSError, OverflowError, KeyError, UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError("damaged or truncated") from error
    empty = [name for name in table.schema.names if table[name].null_count]
    lists = [field.name for field in (CORRUPTED, *DRAWN) if field.name in table.schema.names]
    empty += [name for name in lists if any(chunk.flatten().null_count for chunk in table[name].chunks)]
    if empty:
        raise ValueError(f"column {empty[0]} has empty cells")
    for name in lists:
        if len(set(map(len, table[name].to_pylist()))) > 1:
            raise ValueError(f"column {name} has rows of different lengths")
    return table


def _check_schema(schema: pa.Schema, known: Sequence[pa.Schema]) -> None:
    if not any(schema.equals(other) for other in known):
        kinds = dict(zip(schema.names, schema.types, strict=True))
        wrong = [field.name for field in known[0] if kinds.get(field.name) != field.type]
        raise ValueError(
            f"column {wrong[0]} is missing or has another type" if wrong else "unexpected columns"
        )


def _values(metadata: pq.FileMetaData) -> int:
    """The most values in any column: a list in a row has several."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = range(metadata.num_columns)
    return sum(max((group.column(i).num_values for i in columns), default=0) for group in groups)


def _without_dictionary(field: pa.Field) -> pa.Field:
    kind = field.type
    return field.with_type(kind.value_type) if pa.types.is_dictionary(kind) else field


@lru_cache(maxsize=1 << 14)
def _figures(folder: Path, stamp: tuple[int, ...]) -> tuple[np.ndarray, ...] | None:
    """Clean margins (n,), which images no attack fooled (n,), and which are right when clean (n,), in the order of the
    ids. The stamp is that of the file."""
    try:
        rows = read_samples(folder).sort_by("id")
    except ResourceError:
        return None
    # Not `to_numpy`, which imports pandas.
    margins = np.array(rows["clean_margin"].to_pylist(), np.float32)
    right = np.array(rows["clean_prediction"].to_pylist()) == np.array(rows["label"].to_pylist())
    return margins, np.isin(rows["fooled_by"].to_pylist(), ("", NOT_ATTACKED)), right


def _rows_of(record: Record) -> tuple[np.ndarray, ...] | None:
    if record.folder is None:
        return None
    try:
        status = (record.folder / FILE).stat()
    except OSError:
        return None
    figures = _figures(record.folder, (status.st_mtime_ns, status.st_size, status.st_ino))
    return figures if figures and len(figures[0]) == record.job.n else None


def clean_margins(record: Record) -> np.ndarray | None:
    """Clean margins in dataset order, float32 (n,); None if the samples cannot be read."""
    figures = _rows_of(record)
    return figures[0] if figures else None


def held(record: Record) -> np.ndarray | None:
    """Which images no attack fooled, bool (n,) in dataset order; None if the samples cannot be read."""
    figures = _rows_of(record)
    return figures[1] if figures else None


def clean_right(record: Record) -> np.ndarray | None:
    """Which clean images are classified correctly, bool (n,) in dataset order; None if the samples cannot be read."""
    figures = _rows_of(record)
    return figures[2] if figures else None


def image_keys(record: Record) -> list[tuple[int, str]] | None:
    """The id and the digest of each image, (n,) in dataset order; None if the samples cannot be read."""
    try:
        rows = read_samples(record.folder or Path()).sort_by("id")
    except ResourceError:
        return None
    return [*zip(rows["id"].to_pylist(), rows["digest"].to_pylist(), strict=True)]
