"""Images in parquet files in the format of Hugging Face datasets, read with pyarrow a few rows at a time."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robench.core.errors import ResourceError, UsageError, one_line
from robench.data._image_files import Blob, named

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>.*)")
# Default columns of images and labels, if the files do not declare them.
_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label", "cls")
_BATCH = 64
# Buffer size in bytes; without it pyarrow loads all images of a row group.
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Table:
    """The concatenated rows of parquet files.

    Attributes:
        files: paths of the files.
        counts: number of rows of each file.
        image: column of images.
        labels: (N,) int64, in 0 .. K - 1.
        classes: names of the K classes.
    """

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    image: str
    labels: np.ndarray
    classes: tuple[str, ...]

    def names(self) -> list[str]:
        """The file name stored for each image; empty if there is none."""
        names: list[str] = []
        for file, count in zip(self.files, self.counts, strict=True):
            with _reading(file):
                table = pq.ParquetFile(file)
                # Reading this column with a buffer would also load the images in between.
                inner = _inner(table.schema_arrow.field(self.image).type, "path")
                column = table.read([f"{self.image}.{inner}"])[self.image] if inner else None
                names += (
                    [""] * count if column is None else [item["path"] or "" for item in column.to_pylist()]
                )
        return names

    def pictures(self, rows: Sequence[int]) -> Iterator[tuple[int, Blob]]:
        """Yield the position in `rows` and the content of each requested image, in the order of the files.

        Raises:
            ResourceError: if a file is damaged.
        """
        places = {row: place for place, row in enumerate(rows)}
        start = 0
        for file, count in zip(self.files, self.counts, strict=True):
            with _reading(file):
                yield from self._of_file(file, start, places)
            start += count

    def group(self, file: Path, group: int) -> list[bytes | None]:
        """The content of every image of one row group.

        Raises:
            ResourceError: if the file is damaged.
        """
        with _reading(file), pq.ParquetFile(file, buffer_size=_BUFFER) as table:
            values = table.read_row_group(group, [self._contents(table)]).column(0).to_pylist()
        return [value["bytes"] if isinstance(value, dict) else value for value in values]

    def _contents(self, table: pq.ParquetFile) -> str:
        inner = _inner(table.schema_arrow.field(self.image).type, "bytes")
        return f"{self.image}.{inner}" if inner else self.image

    def _of_file(self, file: Path, start: int, places: dict[int, int]) -> Iterator[tuple[int, Blob]]:
        with pq.ParquetFile(file, buffer_size=_BUFFER) as table:
            column = self._contents(table)
            end = 0
            for group in range(table.num_row_groups):
                first, end = end, end + table.metadata.row_group(group).num_rows
                if places.keys().isdisjoint(range(start + first, start + end)):
                    continue
                batches = table.iter_batches(_BATCH, [group], [column])
                values = (value for batch in batches for value in batch.column(0))
                for row, value in zip(range(first, end), values, strict=True):
                    if start + row in places:
                        content = value.as_py()
                        content = content["bytes"] if isinstance(content, dict) else content
                        yield places[start + row], Blob(f"{file} row {row}", content)


def open_table(
    files: Sequence[Path], name: str, image: str = "", label: str = "", others: Sequence[Path] = ()
) -> Table:
    """Open the parquet files of a dataset; no image is read yet.

    Args:
        files: the files in order; if numbered as in `-00000-of-00014`, none may be missing.
        name: name of the dataset, for messages.
        image, label: names of the columns; empty for those the files declare, or else common names such as `image`
            and `label`.
        others: files of the other parts of the dataset, whose labels count as classes if the files do not declare
            them: a class may be missing in a part.

    Raises:
        ResourceError: if files are missing, damaged or inconsistent, or rows have no label.
        UsageError: if a column is missing, ambiguous or of the wrong type.
    """
    _check_shards(files, name)
    schemas, counts, unreadable = [], [], []
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                schemas.append(table.schema_arrow)
                counts.append(table.metadata.num_rows)
        except (OSError, pa.ArrowException):
            unreadable.append(file)
    if unreadable:
        raise ResourceError(
            f"{len(unreadable)} of {len(files)} files of {name} cannot be read as parquet: {named(unreadable)}; get "
            "them again"
        )
    schema, features = schemas[0], _features(schemas[0])
    image = image or _column(schema, features, "Image", _IMAGES, name, "image")
    label = label or _column(schema, features, "ClassLabel", _LABELS, name, "label")
    for column in (image, label):
        if column not in schema.names:
            raise UsageError(f"{name} has no column {column}: it has {', '.join(schema.names)}")
    kind = schema.field(image).type
    if not (_inner(kind, "bytes") or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UsageError(
            f"the column {image} of {name} is {kind}: expected encoded images as bytes, or a struct with bytes"
        )
    different = [
        file
        for file, other in zip(files, schemas, strict=True)
        if any(
            column not in other.names or other.field(column).type != schema.field(column).type
            for column in (image, label)
        )
    ]
    if different:
        raise ResourceError(
            f"{len(different)} files of {name} have other columns than {files[0].name}: {named(different)}"
        )
    labels, classes = _labels(files, label, tuple(features.get(label, {}).get("names") or ()), name, others)
    return Table(tuple(files), tuple(counts), image, labels, classes)


def _check_shards(files: Sequence[Path], name: str) -> None:
    present: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.stem):
            key = (file.parent, match["stem"], int(match["count"]))
            present.setdefault(key, set()).add(int(match["number"]))
    missing = [
        folder / f"{stem}-{number:05d}-of-{count:05d}.parquet"
        for (folder, stem, count), numbers in present.items()
        for number in range(count)
        if number not in numbers
    ]
    if missing:
        raise ResourceError(f"{len(missing)} files of {name} are missing: {named(missing)}; get them again")


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The column features stored by Hugging Face: {"label": {"_type": "ClassLabel", "names": [...]}}."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    features = features if isinstance(features, dict) else {}
    return {key: item for key, item in features.items() if isinstance(item, dict)}


def _column(
    schema: pa.Schema, features: dict[str, Any], kind: str, usual: tuple[str, ...], name: str, argument: str
) -> str:
    columns = [
        column for column, item in features.items() if item.get("_type") == kind and column in schema.names
    ]
    columns = columns or [column for column in usual if column in schema.names][:1]
    if len(columns) != 1:
        several = "several columns of that kind:" if columns else "columns"
        available = f"{several} {', '.join(columns or schema.names)}"
        raise UsageError(
            f'no unique {argument} column in {name}, which has {available}: set {argument}="..."'
        )
    return columns[0]


def _inner(kind: pa.DataType, field: str) -> str:
    """`field` if the column is a struct with that field, else ""."""
    return field if pa.types.is_struct(kind) and kind.get_field_index(field) >= 0 else ""


def _labels(
    files: Sequence[Path], label: str, classes: tuple[str, ...], name: str, others: Sequence[Path]
) -> tuple[np.ndarray, tuple[str, ...]]:
    column = _read_labels(files, label)
    if not len(column):
        raise ResourceError(f"{name} contains no images")
    if column.null_count:
        raise ResourceError(
            f"{column.null_count} of {len(column)} rows of {name} have no {label}: restore them"
        )
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        words = np.array(column.to_pylist())
        names = np.unique([*words, *_other_labels(others, label, column.type)])
        return np.searchsorted(names, words).astype(np.int64), tuple(names.tolist())
    if not pa.types.is_integer(column.type):
        raise UsageError(
            f"the column {label} of {name} is {column.type}: expected whole numbers or names of classes"
        )
    labels = column.to_numpy().astype(np.int64)
    if not classes:
        largest = max(int(labels.max()), *_other_labels(others, label, column.type), -1)
        classes = tuple(str(k) for k in range(largest + 1))
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        # Hugging Face stores -1 for hidden labels.
        raise ResourceError(
            f"{int(outside.sum())} of {len(labels)} rows of {name} have a {label} outside 0 .. {len(classes) - 1}, "
            f"the first is {int(labels[outside][0])}: choose a part with labels"
        )
    return labels, classes


def _read_labels(files: Sequence[Path], label: str) -> pa.Array:
    """The column of labels of all files."""
    parts = []
    for file in files:
        with _reading(file):
            parts.append(pq.read_table(file, columns=[label])[label].combine_chunks())
    column = pa.chunked_array(parts).combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _other_labels(files: Sequence[Path], label: str, kind: pa.DataType) -> set[Any]:
    """The different labels in files of other parts, without those that have no column of this name and type."""
    labels: set[Any] = set()
    for file in files:
        with _reading(file):
            if label in pq.read_schema(file).names:
                column = _read_labels([file], label)
                labels |= set(column.drop_null().to_pylist()) if column.type == kind else set()
    return labels


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = one_line(error, 120)
        raise ResourceError(f"{file} is damaged ({reason}): get it again") from error
