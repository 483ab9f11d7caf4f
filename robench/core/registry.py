"""Registries of defenses, purifiers, loaders, attacks, transformations, datasets and certifiers, extended by entry
points.

A package that declares

    [project.entry-points."robench.attacks"]
    my_attack = "my_package:MyAttack"

makes its attack available by name on the command line and in suites. Built-in names are known from
`robench.core.index`, and their modules are imported on first use.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from robench.core import index, specs
from robench.core.errors import ResourceError, RobenchError, UsageError, broken_package, unknown_name
from robench.core.index import Description
from robench.core.specs import Spec

Builder = Callable[..., Any]
Kind = TypeVar("Kind", bound=Builder)


class Registry:
    """A mapping from names to builders of one kind.

    Args:
        kind: singular noun ("defense", "purifier", "loader", "attack", "transformation",
            "dataset", "certifier"); the entry-point group is `robench.<kind>s`.
        built_in: descriptions of builders whose modules are imported on first use.
    """

    def __init__(self, kind: str, built_in: Mapping[str, Description] | None = None):
        self.kind = kind
        self._built_in = built_in or {}
        self.group = f"robench.{kind}s"
        self._builders: dict[str, Builder] = {}
        self._holders: dict[str, str] = {}
        self._outsiders: dict[str, EntryPoint] | None = None

    def register(self, name: str) -> Callable[[Kind], Kind]:
        """Decorator that registers a builder under `name`.

        Raises:
            UsageError: if the name is taken, naming its holder.
        """

        def decorate(builder: Kind) -> Kind:
            holder = f"{builder.__module__}.{builder.__qualname__}"
            if self._outsiders and name in self._outsiders and _path(self._outsiders[name]) == holder:
                return builder  # An entry point already refers to this builder.
            taken = self._holder_inside(name) or self._outside_holder(name)
            if taken and not (taken == holder and name not in self._holders):
                raise UsageError(f'{self.kind} "{name}" is taken by {taken}: {holder} needs another name')
            self._builders[name] = builder
            self._holders[name] = holder
            return builder

        return decorate

    def get(self, name: str) -> Builder:
        """The builder registered under `name`.

        Raises:
            UsageError: if the name is unknown (with the closest matches), or two packages claim it.
            ResourceError: if the builder's module, or a package that it needs, cannot be imported.
        """
        if name in self._entry_points():
            entry = self._entry_points()[name]
            try:
                return entry.load()
            except Exception as error:
                raise ResourceError(
                    f'{self.kind} "{name}" of {_origin(entry)} cannot be loaded from {entry.value}: {error}'
                ) from error
        if name not in self._builders:
            if name not in self._built_in:
                raise unknown_name(self.kind, name, self)
            try:
                import_module(self._built_in[name].place.partition(":")[0])
            except RobenchError:
                raise
            except Exception as error:
                raise broken_package(error) from error
        return self._builders[name]

    def describe(self, name: str) -> Description:
        """The description of `name`; a built-in builder is not imported for it. Raises what `get` raises."""
        if name in self._built_in and name not in self._entry_points():
            return self._built_in[name]
        return index.describe(self.get(name))

    def canonical(self, text: str | Spec) -> Spec:
        """The canonical spec (`robench.core.specs.canonical`). A built-in builder is not imported for it, and values of
        arguments are not checked.

        Raises:
            UsageError: for a malformed spec, an unknown name or an unknown argument.
        """
        spec = specs.parse(text)
        if spec.name in self._built_in and spec.name not in self._entry_points():
            return self._built_in[spec.name].canonical(spec)
        return specs.canonical(spec, self.get(spec.name))

    def holder(self, name: str) -> str:
        """The provider of `name`: a module of robench, or another package."""
        return self._holder_inside(name) or self._outside_holder(name) or ""

    @property
    def registered(self) -> dict[str, Builder]:
        """The builders of the modules that were imported so far."""
        return dict(self._builders)

    def __contains__(self, name: object) -> bool:
        return name in self._builders or name in self._built_in or name in self._entry_points()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._builders, *self._built_in, *self._entry_points()}))

    def _holder_inside(self, name: str) -> str | None:
        if name in self._built_in:
            return self._built_in[name].place.replace(":", ".")
        return self._holders.get(name)

    def _outside_holder(self, name: str) -> str | None:
        # During the import of robench its own names take precedence; entry points are checked on first use.
        if self._outsiders is None or name not in self._outsiders:
            return None
        return _origin(self._outsiders[name])

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._outsiders is None:
            entries: dict[str, EntryPoint] = {}
            for entry in entry_points(group=self.group):
                holder = self._holder_inside(entry.name)
                if holder == _path(entry):
                    continue
                if not holder and entry.name in entries and entries[entry.name].value != entry.value:
                    holder = _origin(entries[entry.name])
                if holder:
                    raise UsageError(
                        f'{self.kind} "{entry.name}" is taken by {holder}: {_origin(entry)} needs another name'
                    )
                entries[entry.name] = entry
            self._outsiders = entries
        return self._outsiders


def _path(entry: EntryPoint) -> str:
    return entry.value.replace(":", ".")


def _origin(entry: EntryPoint) -> str:
    return f"package {entry.dist.name}" if entry.dist else f"entry point {entry.value}"


defenses, purifiers, loaders, attacks, transformations, datasets, certifiers = (
    Registry(kind, index.built_in(kind))
    for kind in ("defense", "purifier", "loader", "attack", "transformation", "dataset", "certifier")
)
