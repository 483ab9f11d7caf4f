"""Choose the weights in a checkpoint: files keep them under many names, and often hold two sets of them."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, float32

from robench.core.errors import ResourceError
from robench.defenses._keys import plain_names
from robench.defenses._reading import Options, read_content
from robench.defenses._state import is_counter

Tables = dict[str, Mapping[str, Tensor]]

# Keys under which common training scripts store the weights, by precedence; MIMIR uses "model".
_KNOWN = (
    "model", "state_dict", "model_state_dict", "model_state", "net", "net_state_dict", "network", "network_state_dict",
    "weights", "params", "module", "state",
)  # fmt: skip
_AVERAGES = frozenset(("ema", "swa", "average", "averaged", "avg", "shadow", "polyak"))
# Prefixes of what is stored beside the weights to resume training.
_TRAINING = (
    "optim", "sched", "lr", "scaler", "amp", "rng", "random", "criterion", "loss", "callback", "loop", "hyper",
)  # fmt: skip
_DEPTH = 4


@dataclass(frozen=True)
class Weights:
    """One set of weights in a file.

    Attributes:
        state: tensors by name, on the CPU, floats of any precision as float32.
        name: place in the file, such as "model_ema"; empty for the whole file.
        chosen: whether it differs from the set that is loaded by default.
        notes: messages for the user, one line each.
        network: name of the network in the options of the training script, `args.model`; empty if unknown.
    """

    state: dict[str, Tensor]
    name: str = ""
    chosen: bool = False
    notes: tuple[str, ...] = ()
    network: str = ""

    def digest(self, of_file: str) -> str:
        """The digest for the record: the file's sha256, combined with the set's name if it is not the default set."""
        return hashlib.sha256(f"{of_file}#{self.name}".encode()).hexdigest() if self.chosen else of_file


def read_weights(path: Path, name: str = "") -> Weights:
    """The weights in a checkpoint.

    Args:
        path: a safetensors file, what `torch.save` wrote, or an index of shards.
        name: of the set to read: its place in the file, such as "model_ema" or "ema.module", or a prefix of the names
            of its tensors; empty for the default one.

    Raises:
        ResourceError: if the file is damaged, has no weights or no such set, or has several sets without a default.
    """
    content = read_content(path)
    tables = _tables(content, path)
    if not tables:
        raise ResourceError(
            f"checkpoint {path} holds no table of tensors{_contents(content)}: expected a state dict"
        )
    default = _default(tables)
    if not name and default is None:
        raise ResourceError(
            f"checkpoint {path} holds {len(tables)} sets of weights, {_listed(tables)}: name one of them, "
            f"--checkpoint '{path}#{next(iter(tables))}'"
        )
    if not name:
        assert default is not None
        return replace(_weights_of(tables, default, False, path), network=_network(content))
    if name in tables:
        return _weights_of(tables, name, name != default, path)
    if len(inside := [place for place in tables if place.startswith(f"{name}.")]) == 1:
        return _weights_of(tables, inside[0], inside[0] != default, path)
    prefix = f"{name}."
    for place, table in tables.items():
        inside_table = ((key, value) for key, value in table.items() if key.startswith(prefix))
        if part := {key.removeprefix(prefix): value for key, value in inside_table}:
            return _weights_of({name: part}, name, len(part) < len(table) or place != default, path)
    raise ResourceError(f"checkpoint {path} holds no weights {name}: it holds {_listed(tables)}")


def _network(content: Any) -> str:
    """The name of the network in a training script's options, which are stored under "args"."""
    options = content.get("args") if isinstance(content, Mapping) else None
    options = options.values if isinstance(options, Options) else options
    name = options.get("model") if isinstance(options, Mapping) else None
    return name if isinstance(name, str) else ""


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of the default set of weights in a checkpoint; see `read_weights`."""
    return read_weights(path).state


def _weights_of(tables: Tables, name: str, chosen: bool, path: Path) -> Weights:
    notes = []
    if len(tables) > 1:
        others = [other for other in tables if other != name]
        notes.append(
            f"{path} holds {len(tables)} sets of weights, {_listed(tables)}: {name} is evaluated, "
            f"--checkpoint '{path}#{others[0]}' evaluates {others[0]}"
        )
    state, stored = {}, set()
    for key, value in tables[name].items():
        if value.is_quantized or value.is_complex() or value.is_meta:
            kind = "quantized" if value.is_quantized else "complex" if value.is_complex() else "without data"
            raise ResourceError(
                f"checkpoint {path} has {key}, which is {kind}: use a checkpoint of ordinary numbers"
            )
        dense = value.detach().to_dense() if value.is_sparse else value.detach()
        state[key] = dense.float() if dense.is_floating_point() else dense
        if value.is_floating_point() and not is_counter(key):
            stored.add(value.dtype)
    if others := sorted(str(kind).removeprefix("torch.") for kind in stored - {float32}):
        notes.append(f"{path} keeps its weights in {' and '.join(others)}: they are evaluated as float32")
    return Weights(state, name, chosen, tuple(notes))


def _default(tables: Tables) -> str | None:
    """The default set of weights; None if there is none."""
    if lists := [name for name in tables if name.endswith("shadow_params")]:
        return lists[0]
    names = [name for name in tables if not _is_average(name)] or list(tables)
    if len(names) == 1:
        return names[0]
    known = [name for name in names if name.partition(".")[0] in _KNOWN]
    first = min((_KNOWN.index(name.partition(".")[0]) for name in known), default=-1)
    best = [name for name in known if _KNOWN.index(name.partition(".")[0]) == first]
    return best[0] if len(best) == 1 else None


def _tables(content: Any, path: Path) -> Tables:
    """Every table of tensors in a file by its place, except those of an optimizer."""
    tables = dict(_walk(content, "", 0))
    lists = dict(_averages(content, "", 0))
    if len(tables) == 1 and not lists:
        ((place, table),) = tables.items()
        return _split_average(place, table)
    if (base := _default(tables) if tables else None) is not None:
        for place, average in lists.items():
            tables[place] = _averaged(tables[base], average, path)
    return tables


def _walk(content: Any, place: str, depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    inside = False
    for key, value in content.items():
        if isinstance(key, str) and not key.lower().startswith(_TRAINING):
            for table in _walk(value, f"{place}.{key}" if place else key, depth + 1):
                inside = True
                yield table
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    # A tensor beside a table of tensors is a metric, such as the best accuracy.
    if tensors and not inside and all(isinstance(key, str) for key in tensors):
        yield place, tensors


def _averages(content: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Moving averages that are stored as a list in the order of the parameters, by their place."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    for key, value in content.items():
        here = f"{place}.{key}" if place else str(key)
        if key == "shadow_params":
            yield here, value
        else:
            yield from _averages(value, here, depth + 1)


def _split_average(place: str, table: Mapping[str, Tensor]) -> Tables:
    """Split a table that holds both a network and its average in two; other tables are returned unchanged."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in table.items():
        first, _, rest = key.partition(".")
        if rest:
            parts.setdefault(first, {})[rest] = value
        elif not is_counter(key):
            return {place: table}
    averages = [first for first in parts if _is_average(first)]
    plain = [first for first in parts if not _is_average(first)]
    if len(averages) == len(plain) == 1:
        network, average = (
            {key: value.shape for key, value in plain_names(parts[first]).items() if not is_counter(key)}
            for first in (plain[0], averages[0])
        )
        if network == average:
            return {f"{place}.{first}" if place else first: parts[first] for first in (plain[0], averages[0])}
    return {place: table}


def _averaged(state: Mapping[str, Tensor], average: Any, path: Path) -> dict[str, Tensor]:
    """The state with its parameters replaced by their moving average, a list in the order of the parameters.

    Buffers stand between the parameters and have no average; they are recognized by their shape.
    """
    averaged = dict(state)
    remaining = list(average) if isinstance(average, Sequence) else [average]
    for key, tensor in state.items():
        if remaining and tensor.shape == getattr(remaining[0], "shape", ()):
            averaged[key] = remaining.pop(0)
    if remaining:
        raise ResourceError(
            f"checkpoint {path} has a moving average that does not fit its parameters: get it again"
        )
    return averaged


def _is_average(name: str) -> bool:
    words = re.split(r"[^a-z]+", name.lower())
    return any(word in _AVERAGES or word.endswith("ema") for word in words)


def _listed(tables: Tables) -> str:
    names = [name or "the tensors beside them" for name in tables]
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def _contents(content: Any) -> str:
    """What a file holds instead of weights, for messages."""
    if not isinstance(content, Mapping):
        return f", but a {type(content).__name__.lstrip('_').lower()}"
    if not content:
        return ", it is empty"
    names = [f"{key} ({type(content[key]).__name__.lstrip('_').lower()})" for key in list(content)[:8]]
    return f", it holds {', '.join(names)}" + (f" and {len(content) - 8} more" if len(content) > 8 else "")
