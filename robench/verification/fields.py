"""What `robench verify` holds of a record, field by field, and what rests on the word of whoever made it.

`TABLE` is the one list of all fields of record.json, columns of samples.parquet and tensors of
adversarials.safetensors. A field that is in none of its lines fails a test.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PLAIN, RANDOMIZED, CORRUPTED = "plain", "randomized", "corrupted"
_ATTACKED = (PLAIN, RANDOMIZED)
_EVERY = (PLAIN, RANDOMIZED, CORRUPTED)


@dataclass(frozen=True)
class Field:
    """One line of the table.

    Attributes:
        name: "attacks.survivors", "samples.distance", "adversarials.delta"; it stands for all that lies below it.
        kinds: of the records that this line speaks of.
        trust: why it rests on trust there; empty where it is held.
    """

    name: str
    kinds: tuple[str, ...]
    trust: str = ""


def _held(names: str, kinds: tuple[str, ...] = _EVERY) -> list[Field]:
    return [Field(name, kinds) for name in names.split()]


def _trusted(names: str, why: str, kinds: tuple[str, ...] = _ATTACKED) -> list[Field]:
    return [Field(name, kinds, why) for name in names.split()]


_COST = "within what the attacks can cost; --replay plays rows again"

# What decides most comes first: the output names the fields on trust in this order.
TABLE: tuple[Field, ...] = (
    *_held("schema key"),
    *_held("defense.name defense.family defense.card_digest defense.checkpoint_sha256 defense.parameters"),
    *_held(
        "defense.state_sha256 defense.classifier classes suite.name dataset.name dataset.split dataset.digest n files"
    ),
    *_held("clean_accuracy.value clean_accuracy.correct clean_accuracy.interval"),
    *_held("robust_accuracy.value robust_accuracy.correct robust_accuracy.interval"),
    *_held("stochastic.draws stochastic.fresh stochastic.clean stochastic.robust", (RANDOMIZED,)),
    *_held("attacks.spec"),
    *_held("samples.id samples.label samples.digest samples.clean_prediction samples.prediction"),
    *_held("samples.clean_margin samples.distance"),
    *_held("samples.clean_draws samples.draws", (PLAIN, CORRUPTED)),
    *_held("adversarials.delta adversarials.id adversarials.grain adversarials.grains", _ATTACKED),
    *_held("adversarials.grains_id", _ATTACKED),
    # A run under corruptions is made again as a whole.
    *_held("seed threat knowledge precision suite.attacks passes health", (CORRUPTED,)),
    *_held("attacks.attacked attacks.survivors attacks.forward attacks.backward", (CORRUPTED,)),
    *_held(
        "samples.fooled_by samples.steps samples.forward samples.backward samples.corrupted", (CORRUPTED,)
    ),
    *_held("corruptions.jpeg corruptions.enlarged corruptions.draws corruptions.accuracy", (CORRUPTED,)),
    *_held("corruptions.pixels corrupted_accuracy mce relative_mce", (CORRUPTED,)),
    *_trusted("seed", "of the attacks' random numbers; --replay uses it"),
    *_trusted("threat", "at least as large as the certificates need; --replay uses it"),
    *_trusted("knowledge", "what the attacker asked; --replay uses it"),
    *_trusted("suite.attacks", "held to what they cost; --replay plays them"),
    *_trusted(
        "samples.fooled_by", "which attack fooled a row, and that it failed on the robust ones; --replay"
    ),
    *_trusted("attacks.attacked attacks.survivors", "counted from samples.fooled_by"),
    *_trusted(
        "samples.clean_draws samples.draws samples.clean_answers samples.answers",
        "held to one draw more or less, for ties",
        (RANDOMIZED,),
    ),
    *_trusted("samples.steps samples.forward samples.backward", _COST),
    *_trusted("attacks.forward attacks.backward passes", "sums over the samples"),
    *_trusted("precision batch_size", "of the surrogate's arithmetic; --replay uses it"),
    *_trusted("batch_size", "rows a call, which may change the last bits", (CORRUPTED,)),
    *_trusted(
        "health", "signs in gradients and losses; those in logits, classes and survivors are looked for"
    ),
    *_trusted("corruptions.library", "its images are held by corruptions.pixels", (CORRUPTED,)),
    *_trusted("protocol", "a name; data set, threat and n stand beside it", _EVERY),
    *_trusted("robench_version git command device platform", "where the record was made", _EVERY),
    *_trusted("started finished seconds attacks.seconds", "when, and how long it took", _EVERY),
)


def decision(name: str, kind: str) -> Field | None:
    """The line that speaks of a field, or of what it lies in, for a kind of record; None where none does."""
    lines = {line.name: line for line in TABLE if kind in line.kinds}
    parts = name.split(".")
    return next((lines[p] for k in range(len(parts), 0, -1) if (p := ".".join(parts[:k])) in lines), None)


def known(name: str) -> bool:
    """Whether the table has this field for any kind of record."""
    return any(decision(name, kind) for kind in _EVERY)


def leaves(content: Any, name: str = "") -> Iterator[str]:
    """The names of all values in a record.json; the places in a list have one name."""
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple) and any(isinstance(item, Mapping) for item in content):
        for item in content:
            yield from leaves(item, name)
    else:
        yield name


def split(names: Iterable[str], kind: str) -> tuple[list[Field], list[str], list[str]]:
    """Sort the names of a record's fields.

    Args:
        names: as `leaves` gives them, "samples." and "adversarials." before columns and tensors.

    Returns:
        The lines of the table that speak of this record, in its order; fields of another kind of record; and fields
        that this release does not know.
    """
    unique = list(dict.fromkeys(names))
    lines = {line for name in unique if (line := decision(name, kind))}
    lost = [name for name in unique if not decision(name, kind)]
    return (
        [line for line in TABLE if line in lines],
        [name for name in lost if known(name)],
        [name for name in lost if not known(name)],
    )
