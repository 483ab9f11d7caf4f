"""`--config FILE` and `--save-config FILE`: the options and arguments of a command in a TOML file.

A key is an option without its dashes, `defense = ["mimir", "pgd-at"]`, or an argument's name, `radii = "0:0.1:5"`; the
command line wins. What a file names is not trusted as what a person types is (`robench.core.trust`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from robench.catalog import read_toml
from robench.cli.completion import files
from robench.core.errors import UsageError, unknown_name
from robench.core.io import write_file
from robench.core.trust import admit, written

_FILE, _SAVED = "robench.config", "robench.save_config"
_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
# Options of a command that a file cannot set: a file must not vouch for itself, for one.
_NEVER = ("config", "save_config", "trust", "help")
_PATHS = {
    "results": "is a folder to write to",
    "data_dir": "is a folder of files here",
    "checkpoint": "is a file or a download",
    "address": "is a cluster, whose answers can run code here",
}


def _read(context: click.Context, option: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    table = read_toml(Path(path))
    known = dict(_options(context))
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in known:
            raise UsageError(f"{path}: {unknown_name('option', name, known)}")
        parameter = known[name]
        several = isinstance(parameter, click.Option) and parameter.multiple
        listed = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in listed) or (listed != [value] and not several):
            raise UsageError(f"{path}: {key} = {value!r:.80}: expected one value")
        whole = isinstance(parameter.type, click.types.IntParamType)
        if any(
            isinstance(item, bool) or (isinstance(item, float) and not item.is_integer())
            for item in listed
            if whole
        ):
            raise UsageError(f"{path}: {key} = {value!r:.80}: expected a whole number")
        values[parameter.name or name] = [str(item) for item in listed] if several else value
    context.default_map = {**(context.default_map or {}), **values}
    context.meta[_FILE] = path


def _save(context: click.Context, option: click.Parameter, path: str | None) -> None:
    if path is not None:
        context.meta[_SAVED] = path


options = (
    click.option(
        "--config", metavar="FILE", is_eager=True, expose_value=False, callback=_read, shell_complete=files,
        help="Read options from a TOML file.",
    ),
    click.option(
        "--save-config", metavar="FILE", expose_value=False, callback=_save, shell_complete=files,
        help="Write the options of this command to a TOML file.",
    ),
)  # fmt: skip


def _options(context: click.Context) -> Iterator[tuple[str, click.Parameter]]:
    """The options and arguments that a file can set, by name."""
    for parameter in context.command.params:
        if parameter.name not in _NEVER:
            for name in parameter.opts:
                yield name.lstrip("-"), parameter


def mark(context: click.Context) -> None:
    """Mark the values that a file gave as `written`, and refuse the folders and files among them without `--trust`."""
    if _FILE not in context.meta:
        return
    for name, value in context.params.items():
        if context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
            context.params[name] = written(value, context.meta[_FILE])
            if name in _PATHS:
                admit(context.params[name], _PATHS[name])


def save() -> None:
    """Write the options that were given, where `--save-config` asks for it."""
    context = click.get_current_context()
    if path := context.meta.get(_SAVED):
        parameters = {parameter.name: parameter for _, parameter in _options(context) if parameter.name}
        lines = [
            f"{parameter.opts[0].lstrip('-')} = {json.dumps(context.params[name], ensure_ascii=False)}\n"
            for name, parameter in parameters.items()
            if context.get_parameter_source(name) in _GIVEN
        ]
        write_file(Path(path), "".join(lines).encode())
