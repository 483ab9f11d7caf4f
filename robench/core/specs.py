"""Spec strings such as `apgd(loss="ce", steps=100)`: parsed with `ast` and never evaluated.

A spec is a name with keyword arguments that are Python literals. Its canonical form sorts the keywords and omits
defaults, so that equivalent specs are the same key in a record. The part of a name after a colon may be a path or a
URL and contain anything except parentheses: `onnx:my models/a.onnx(mean=0.5)`.
"""

import ast
import dataclasses
import inspect
import json
import math
import re
import warnings
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from robench.core.errors import UsageError, some
from robench.core.fields import check_value
from robench.core.trust import like

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(:[^\s()][^()]*)?")
# Old names of arguments, which records and cards still use, and the new ones.
RENAMED = {"fit": "size_mode"}
# Maximum length of a spec, and of its excerpt in an error message; integers must fit into eight bytes.
_LONGEST, _SHOWN, _WHOLE = 10_000, 200, 2**63


# The annotations of parameters whose values are checked.
_KINDS = {kind.__name__: kind for kind in (bool, int, float, str)}


@dataclass(frozen=True)
class Spec:
    """A name and its keyword arguments, which are Python literals."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    from_text: ClassVar[bool] = True

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        inside = ", ".join(f"{key}={_literal(self.arguments[key])}" for key in sorted(self.arguments))
        return like(self.name, f"{self.name}({inside})")

    def __hash__(self) -> int:
        # Values may be unhashable lists; equal specs have the same name and keywords.
        return hash((self.name, *sorted(self.arguments)))

    def replaced(self, **arguments: Any) -> "Spec":
        """The spec with these arguments added or replaced."""
        return Spec(self.name, {**self.arguments, **arguments})


def _literal(value: Any) -> str:
    if isinstance(value, str):
        # JSON escapes are valid in Python, and leave no control characters in the text.
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def parse(text: str | Spec) -> Spec:
    """Parse one spec; a `Spec` is returned unchanged.

    Raises:
        UsageError: if it is not a name with optional keyword arguments that are literals, is longer than 10,000
            characters, or contains an integer of more than eight bytes or a number that is not finite.
    """
    if isinstance(text, Spec):
        return text
    if len(text) > _LONGEST:
        raise UsageError(f"a spec has {len(text)} characters: expected at most {_LONGEST}")
    source, text = text, text.strip()
    whole, text = text, text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    match = _NAME.match(whole)
    if not match:
        raise UsageError(f'malformed spec "{text}": expected a name such as pgd or pgd(steps=20)')
    name, rest = match.group().strip(), whole[match.end() :].strip()
    if not rest:
        return Spec(like(source, name))
    try:
        with warnings.catch_warnings():
            # Warnings about odd literals, which are refused below.
            warnings.simplefilter("ignore")
            call = ast.parse(f"f{rest}", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or not rest.endswith(")"):
        raise UsageError(f'malformed spec "{text}": expected {name} or {name}(key=value, ...)')
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise UsageError(f'malformed spec "{text}": arguments must be named, {name}(key=value, ...)')
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        assert keyword.arg is not None
        if keyword.arg in arguments:
            raise UsageError(f'malformed spec "{text}": {keyword.arg} is given twice')
        try:
            arguments[keyword.arg] = _bounded(ast.literal_eval(keyword.value))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise UsageError(
                f'malformed spec "{text}": {keyword.arg} must be a finite number, string, list or the like'
            ) from None
    return Spec(like(source, name), like(source, arguments))


def _bounded(value: Any) -> Any:
    """Return `value` unchanged.

    Raises:
        ValueError: if it contains an integer of more than eight bytes, or a number that is not finite.
    """
    if isinstance(value, dict):
        _bounded([*value, *value.values()])
    elif isinstance(value, list | tuple | set):
        for item in value:
            _bounded(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    elif isinstance(value, int) and not -_WHOLE <= value < _WHOLE:
        raise ValueError("more than eight bytes")
    return value


def split(text: str, separator: str = ",") -> list[str]:
    """Split at each `separator` outside brackets and quotes; empty pieces are refused."""
    pieces, depth, quote, start, escaped = [], 0, "", 0, False
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == separator and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    pieces = [piece.strip() for piece in [*pieces, text[start:]]]
    if not all(pieces):
        raise UsageError(f'malformed list "{text}": a name is missing between two "{separator}"')
    return like(text, pieces)


def defaults(builder: Callable[..., Any]) -> dict[str, Any]:
    """The keywords that `builder` accepts, with their defaults (`inspect.Parameter.empty` for none)."""
    if dataclasses.is_dataclass(builder):
        missing, values = dataclasses.MISSING, {}
        for item in dataclasses.fields(builder):
            if item.init:
                value = item.default if item.default_factory is missing else item.default_factory()
                values[item.name] = inspect.Parameter.empty if value is missing else value
        return values
    parameters = inspect.signature(builder).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in parameters if p.kind in named}


def renamed(spec: Spec, known: Container[str]) -> Spec:
    """`spec` with the new names of arguments, for a builder that knows those and not the old ones.

    Raises:
        UsageError: when an argument is given under both names.
    """
    arguments: dict[str, Any] = {}
    for key, value in spec.arguments.items():
        new = RENAMED.get(key, key)
        name = new if key not in known and new in known else key
        if name in arguments:
            raise UsageError(f"{spec.name}: {name} is given twice, once under its old name")
        arguments[name] = value
    return Spec(spec.name, arguments)


def old_text(text: str) -> str:
    """A spec with the old names of renamed arguments, as digests in records contain it; other specs stay as written."""
    old = {new: old for old, new in RENAMED.items()}
    if not any(name in text for name in old):
        return text
    spec = parse(text)
    if old.keys().isdisjoint(spec.arguments):
        return text
    return str(Spec(spec.name, {old.get(key, key): value for key, value in spec.arguments.items()}))


def without(spec: Spec, **defaults: Any) -> Spec:
    """`spec` without the arguments that equal these defaults."""
    known = [key for key, value in spec.arguments.items() if key not in defaults or value != defaults[key]]
    return Spec(spec.name, {key: spec.arguments[key] for key in known})


def canonical(spec: Spec, builder: Callable[..., Any]) -> Spec:
    """`spec` without the arguments that equal the defaults of `builder`, renamed arguments under their new names.

    A builder with a `**` parameter accepts any argument.

    Raises:
        UsageError: for an unknown argument, or a missing required one.
    """
    kinds = {p.kind for p in inspect.signature(builder).parameters.values()}
    return without_defaults(spec, defaults(builder), inspect.Parameter.VAR_KEYWORD in kinds)


def without_defaults(spec: Spec, known: Mapping[str, Any], any_argument: bool = False) -> Spec:
    """`canonical` for known arguments and defaults, as `defaults` returns them.

    Args:
        any_argument: whether other arguments are accepted too.
    """
    spec = renamed(spec, known)
    for key in spec.arguments:
        if key not in known and not any_argument:
            raise UsageError(f"{spec.name} takes no argument {key}: it takes {some(known, key)}")
    missing = [k for k, v in known.items() if v is inspect.Parameter.empty and k not in spec.arguments]
    if missing:
        raise UsageError(f"{spec.name} needs {', '.join(missing)}: write {spec.name}({missing[0]}=...)")
    return without(spec, **known)


def _check_kinds(builder: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of another kind than its parameter is annotated with: bool, int, float or str.

    0 and 1 are accepted for bool, and integral floats for int. The default is always accepted.
    """
    for name, parameter in inspect.signature(builder).parameters.items():
        annotation = parameter.annotation
        kind = _KINDS.get(annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""))
        if name not in arguments or kind is None or (value := arguments[name]) == parameter.default:
            continue
        is_bool = kind is bool and isinstance(value, int) and value in (0, 1)
        if not is_bool and not (kind is int and isinstance(value, float) and value.is_integer()):
            check_value(name, value, kind)


def build(spec: Spec, builder: Callable[..., Any]) -> Any:
    """Call `builder` with the spec's arguments.

    Raises:
        UsageError: for an unknown, missing or invalid argument.
    """
    canonical(spec, builder)
    arguments = renamed(spec, defaults(builder)).arguments
    try:
        _check_kinds(builder, arguments)
        return builder(**arguments)
    except (TypeError, ValueError, ArithmeticError, AssertionError, IndexError, RuntimeError) as error:
        raise UsageError(f"{spec} cannot be built: {' '.join(str(error).split())}") from error
