"""record.schema.json and the data classes of a record name the same fields, of the same types."""

import dataclasses
import types
import typing

import pytest

from robench.engine.outcome import AttackCost, ResultWarning
from robench.records import json_files
from robench.records.record import DatasetFacts, DefenseFacts, Job, Record, SuiteFacts
from robench.statistics.accuracy import Accuracy

SCHEMA = json_files.schema("record")
TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    types.NoneType: "null",
    tuple: "array",
    dict: "object",
}
# What lies beside the job and is no field of the file; and fields that only some kinds of run have.
NOT_IN_FILE = {"job", "extra", "folder"}
SOME = {
    "search",
    "stochastic",
    "classes",
    "corruptions",
    "corrupted_accuracy",
    "mce",
    "relative_mce",
    "rows",
    "estimate",
    "proven",
}


def resolved(schema: dict) -> dict:
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def of_schema(schema: dict) -> set[str]:
    """The JSON types that a schema allows."""
    schema = resolved(schema)
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if values:
        return {TYPES[type(value)] for value in values}
    return set([schema["type"]] if isinstance(schema["type"], str) else schema["type"])


def of_annotation(annotation) -> set[str]:
    """The JSON types of what a field holds."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return set().union(*map(of_annotation, typing.get_args(annotation)))
    kind = origin or annotation
    if dataclasses.is_dataclass(kind) or kind not in TYPES:
        return {"object"}
    return {TYPES[kind]}


def check(fields: dict, schema: dict) -> None:
    schema = resolved(schema)
    assert fields.keys() == schema["properties"].keys()
    for name, annotation in fields.items():
        assert of_annotation(annotation) == of_schema(schema["properties"][name]), name


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (DefenseFacts, ["defense"]),
        (SuiteFacts, ["suite"]),
        (DatasetFacts, ["dataset"]),
        (Accuracy, ["clean_accuracy"]),
        (Accuracy, ["robust_accuracy"]),
        (AttackCost, ["attacks", "items"]),
        (ResultWarning, ["health", "items"]),
    ],
)
def test_each_part_has_the_fields_of_its_data_class(kind, place):
    schema = SCHEMA["properties"][place[0]]
    check(typing.get_type_hints(kind), schema["items"] if place[1:] else schema)
    assert set(resolved(schema["items"] if place[1:] else schema)["required"]) >= {
        item.name for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING
    }


def test_the_whole_has_the_fields_of_record_and_job():
    hints = {**typing.get_type_hints(Record), **typing.get_type_hints(Job), "schema": int}
    fields = {name: hint for name, hint in hints.items() if name not in NOT_IN_FILE}
    known = {name: part for name, part in SCHEMA["properties"].items() if name not in SOME}
    check(fields, {"properties": known})
    # Only an estimate has the half width.
    assert fields.keys() - {"half_width"} == set(SCHEMA["required"]) and SCHEMA["properties"].keys() >= SOME
