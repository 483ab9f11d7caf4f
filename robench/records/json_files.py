"""The JSON files of results: how they are read and checked. `<kind>.schema.json` documents the fields of each kind."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from robench.core import strict_json
from robench.core.errors import ResourceError
from robench.core.io import read_ordinary
from robench.core.trust import written

# The most errors of a file that are collected.
_ERRORS = 100


@contextmanager
def named(file: Path, command: str) -> Iterator[None]:
    """Inside the block, errors of reading `file` name it, and the command that writes such files."""
    try:
        yield
    except OSError as error:
        problem = error.strerror or error
        raise ResourceError(f"{file}: {problem}: expected a folder written by {command}") from error
    except ResourceError as error:
        raise ResourceError(f"{file}: {error}") from None


def read_limited(file: Path) -> bytes:
    """The bytes of a JSON file, up to one more than `parse` accepts. Raises OSError."""
    return read_ordinary(file, strict_json.LONGEST + 1)


def parse(encoded: bytes, file: Path | str, remedy: str) -> Any:
    """The content of a JSON file. Its strings are `Written`.

    Raises:
        ResourceError: when it is truncated or not JSON.
    """
    try:
        return written(strict_json.loads(encoded), str(file))
    except ValueError as error:
        raise ResourceError(f"truncated or not JSON ({error}): {remedy}") from error


@cache
def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind of file: "record" or "certification"."""
    return json.loads(Path(__file__).with_name(f"{kind}.schema.json").read_bytes())


def validate(content: Any, kind: str) -> None:
    """Validate the content of a JSON file against the schema of its kind.

    Raises:
        ResourceError: naming the first field that is missing or wrong.
    """
    # A small file can have errors without end, and each of them takes memory.
    errors = list(islice(_validator(kind).iter_errors(content), _ERRORS))
    if not errors:
        return
    errors.sort(key=lambda error: [str(part) for part in error.absolute_path])
    place = ".".join(str(part)[:40] for part in errors[0].absolute_path) or f"the {kind}"
    message = errors[0].message if len(errors[0].message) <= 160 else errors[0].message[:157] + "..."
    more = f" (and {'at least ' * (len(errors) == _ERRORS)}{len(errors) - 1} more)" if len(errors) > 1 else ""
    version = schema(kind)["properties"]["schema"]["const"]
    raise ResourceError(f"{place} breaks {kind} schema {version}: {message}{more}")


@cache
def _validator(kind: str) -> Any:
    # Imported here, because it takes a tenth of a second and only reading and writing results need it.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # JSON Schema accepts 30.0 as an integer, but numbers of images must be an int.
    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    content = schema(kind)
    return extend(Draft202012Validator, type_checker=types)(_inlined(content, content["$defs"]))


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with definitions in place of references to them, because looking up references takes half the time."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    place = node.get("$ref", "")
    node = {**node, **definitions[place.rpartition("/")[2]]} if place else node
    return {key: _inlined(value, definitions) for key, value in node.items() if key not in ("$ref", "$defs")}
