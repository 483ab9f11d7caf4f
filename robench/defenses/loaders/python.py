"""`python:module.function`: your own code, in the current folder or an installed package."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from robench.core import registry, specs
from robench.core.errors import ResourceError, RobenchError, UsageError, one_line, unknown_name
from robench.defenses._base import Defense
from robench.defenses.loaders._base import Channels, Found, Source, fill, normalisation, wrap


@registry.loaders.register("python")
def load(
    source: Source,
    image_size: int | None = None,
    mean: Channels = None,
    std: Channels = None,
    channels: int | None = None,
    **arguments: Any,
) -> Found:
    """The return value of a function: a Defense, or a module from images to logits, with its weights.

    The name may also be that of such a module itself. A function is called with the arguments of the spec:
    `python:mine.build(width=3)`. --checkpoint replaces the weights.

    Args:
        image_size, mean, std, channels: for a function that returns a module. A function with parameters of these
            names receives them and must normalize by itself. image_size defaults to that of the dataset, or else to
            the default of the parameter. channels=1 is for grayscale images; by default, 3 is tried first, then 1.

    Raises:
        UsageError: if there is no such function, it refuses its arguments, or it returns something else.
        ResourceError: if its module cannot be imported.
    """
    options = {"image_size": image_size, "mean": mean, "std": std, "channels": channels}
    given = {key: value for key, value in options.items() if value is not None}
    with _current_folder():
        function = _find(source)
        taken = {} if isinstance(function, nn.Module) else specs.defaults(function)
        shared = {key: value for key, value in given.items() if key in taken}
        sized = {"image_size": source.image_size} if source.image_size and "image_size" in taken else {}
        is_built = isinstance(function, nn.Module) and not arguments
        built = function if is_built else _call(specs.Spec(str(source), arguments | sized | shared), function)
    if isinstance(built, Defense):
        unused = sorted(set(given) - set(shared))
        if unused:
            raise UsageError(f"{source} returns a whole Defense: omit {', '.join(unused)}")
        defense = built
    elif isinstance(built, nn.Module):
        constants = ("mean", "std")
        given = {key: value for key, value in given.items() if key not in constants or key not in shared}
        size = given.get("image_size", source.image_size or taken.get("image_size"))
        size = None if size is inspect.Parameter.empty else size
        normalised = normalisation(given.get("mean"), given.get("std"), (None, None))
        defense = wrap(source, built, size, normalised, channels=channels)
    else:
        raise UsageError(f"{source} returns a {type(built).__name__}: expected a Defense or an nn.Module")
    return fill(defense, source.checkpoint, source.weights) if source.checkpoint else Found(defense)


def _find(source: Source) -> Callable[..., Any]:
    module_name, _, function_name = source.target.rpartition(".")
    if not all(part.isidentifier() for part in source.target.split(".")) or not module_name:
        raise UsageError(f'malformed "{source}": expected python:module.function')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Distinguish a missing module from a missing dependency of the module.
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            advice = "run robench in its folder, or install it"
            raise ResourceError(f"{source}: there is no module {error.name}: {advice}") from error
        raise ResourceError(f"{source} needs {error.name}, which is not installed") from error
    # The module may raise anything.
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ResourceError(f"{source}: {module_name} cannot be imported ({what})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown_name(f"function of {module_name}", function_name, names)
    return function


def _call(spec: specs.Spec, function: Callable[..., Any]) -> Any:
    try:
        return specs.build(spec, function)
    except RobenchError:
        raise
    # The function may raise anything.
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"{spec} cannot be built: it raises {what}") from error


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Search the current folder for modules first, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
