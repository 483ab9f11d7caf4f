"""Descriptions of everything built in, available without imports: names, places, documentation, arguments, costs.

They are stored in `index.json`, so that `robench list`, `robench show` and messages about unknown names need not import
torch. `perf/write_index.py` writes the file, and a test compares it with the code.
"""

import ast
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from robench.core import specs

FILE = Path(__file__).with_name("index.json")
NEEDED = "(needed)"
# Attributes of a builder that its description repeats.
_FACTS = ("minimum_norm", "gradient_free", "norm")


@dataclass(frozen=True)
class Description:
    """The description of a builder.

    Attributes:
        place: "module:name".
        documentation: its docstring, with entries from its base classes for parameters that it does not describe.
        arguments: the repr of each default by name, or NEEDED.
        facts: facts stated by its class or a decorator, such as {"gradient_free": True} or {"layout": "..."}.
    """

    place: str
    documentation: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the arguments that have one, as values."""
        return {name: ast.literal_eval(text) for name, text in self.arguments.items() if text != NEEDED}

    def canonical(self, spec: specs.Spec) -> specs.Spec:
        """`specs.canonical` for the described builder, which is not imported."""
        needed = dict.fromkeys(self.arguments, inspect.Parameter.empty)
        return specs.without_defaults(spec, {**needed, **self.defaults})

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return self.documentation.strip().split("\n")[0]


def built_in(kind: str) -> dict[str, Description]:
    """The descriptions of the builders of a kind, by name."""
    return {name: Description(**entry) for name, entry in section(kind).items()}


def section(name: str) -> dict[str, Any]:
    """A table of the index by its name; empty if there is none."""
    return _content().get(name, {})


def describe(builder: Callable[..., Any]) -> Description:
    """The description of a builder, from its code."""
    needed, defaults = inspect.Parameter.empty, specs.defaults(builder)
    arguments = {name: NEEDED if value is needed else repr(value) for name, value in defaults.items()}
    facts = {name: getattr(builder, name) for name in _FACTS if getattr(builder, name, False)}
    if stated := getattr(builder, "facts", None):
        facts |= vars(stated)
    place = f"{builder.__module__}:{builder.__qualname__}"
    return Description(place, _documentation(builder), arguments, facts)


def _documentation(builder: Callable[..., Any]) -> str:
    text = inspect.getdoc(builder) or "no documentation"
    bases = builder.__mro__[1:] if isinstance(builder, type) else ()
    for name in specs.defaults(builder):
        entry = re.compile(rf"^    {name}: .*(?:\n {{8}}.*)*", re.MULTILINE)
        described = [match.group() for base in bases if (match := entry.search(inspect.getdoc(base) or ""))]
        if described and not entry.search(text):
            text += ("" if "\nArgs:" in text else "\n\nArgs:") + f"\n{described[0]}"
    return text


@cache
def _content() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))
