"""Which fields of a record `robench verify` checks, and which it takes on trust.

`TABLE` lists all fields of record.json, columns of samples.parquet and tensors of adversarials.safetensors. A
test fails if a field is missing from it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

PLAIN, RANDOMIZED, CORRUPTED, ESTIMATE = "plain", "randomized", "corrupted", "estimate"
_ATTACKED = (PLAIN, RANDOMIZED, ESTIMATE)
_EVERY = (PLAIN, RANDOMIZED, CORRUPTED, ESTIMATE)


@dataclass(frozen=True)
class Field:
    """One line of the table.

    Attributes:
        name: such as "attacks.survivors", "samples.distance" or "adversarials.delta"; includes every field below it.
        kinds: the kinds of records that the line applies to.
        trust: why the field is taken on trust; empty where it is checked.
    """

    name: str
    kinds: tuple[str, ...]
    trust: str = ""


def _checked(names: str, kinds: tuple[str, ...] = _EVERY) -> list[Field]:
    return [Field(name, kinds) for name in names.split()]


def _trusted(names: str, why: str, kinds: tuple[str, ...] = _ATTACKED) -> list[Field]:
    return [Field(name, kinds, why) for name in names.split()]


_COST = "within the possible cost of the attacks; --replay attacks images again"

# The most important fields come first. The output lists the fields on trust in this order.
TABLE: tuple[Field, ...] = (
    *_checked("schema key"),
    *_checked("defense.name defense.family defense.card_digest defense.checkpoint_sha256 defense.parameters"),
    *_checked(
        "defense.state_sha256 defense.classifier classes suite.name dataset.name dataset.split dataset.digest n files"
    ),
    *_checked("clean_accuracy.value clean_accuracy.correct clean_accuracy.interval"),
    *_checked("robust_accuracy.value robust_accuracy.correct robust_accuracy.interval"),
    *_checked(
        "estimate.survivors estimate.attacked estimate.fooled estimate.at_most samples.order", (ESTIMATE,)
    ),
    *_checked("stochastic.draws stochastic.fresh stochastic.clean stochastic.robust", (RANDOMIZED,)),
    *_checked("attacks.spec"),
    *_checked("samples.id samples.label samples.digest samples.clean_prediction samples.prediction"),
    *_checked("samples.clean_margin samples.distance"),
    *_checked("samples.clean_draws samples.draws", (PLAIN, CORRUPTED, ESTIMATE)),
    *_checked("proven.by proven.images samples.proven_by", (PLAIN,)),
    *_checked("adversarials.delta adversarials.id adversarials.grain adversarials.grains", _ATTACKED),
    *_checked("adversarials.grains_end adversarials.grains_id", _ATTACKED),
    # A run under corruptions is repeated as a whole.
    *_checked("seed threat knowledge precision suite.attacks passes health", (CORRUPTED,)),
    *_checked("attacks.attacked attacks.survivors attacks.forward attacks.backward", (CORRUPTED,)),
    *_checked(
        "samples.fooled_by samples.steps samples.forward samples.backward samples.corrupted", (CORRUPTED,)
    ),
    *_checked("corruptions.jpeg corruptions.enlarged corruptions.draws corruptions.accuracy", (CORRUPTED,)),
    *_checked("corruptions.pixels corrupted_accuracy mce relative_mce", (CORRUPTED,)),
    *_trusted("seed", "seeds the attacks' random numbers; --replay uses it"),
    *_trusted("threat", "at least as large as the stored adversarial examples need; --replay uses it"),
    *_trusted("half_width", "what the estimate was made for", (ESTIMATE,)),
    *_trusted("estimate.screen", "the key of the record whose survivors were sampled", (ESTIMATE,)),
    *_trusted("knowledge", "what the attacker had access to; --replay uses it"),
    *_trusted("suite.attacks", "checked against their cost; --replay runs them"),
    *_trusted(
        "samples.fooled_by",
        "which attack fooled an image, and that attacks failed on robust images; --replay checks it",
    ),
    *_trusted("attacks.attacked attacks.survivors", "counted from samples.fooled_by"),
    *_trusted(
        "samples.clean_draws samples.draws samples.clean_answers samples.answers",
        "checked up to one draw, for ties",
        (RANDOMIZED,),
    ),
    *_trusted("samples.steps samples.forward samples.backward", _COST),
    *_trusted("attacks.forward attacks.backward passes", "sums over the samples"),
    *_trusted(
        "proven.forward proven.saved", "passes of the certifier, and of attacks that did not run", (PLAIN,)
    ),
    *_trusted("precision batch_size", "arithmetic of the surrogate; --replay uses it"),
    *_trusted("search.compiled search.disagreements search.repeats", "arithmetic of the search"),
    *_trusted("batch_size", "images per call, which may change the last bits", (CORRUPTED,)),
    *_trusted(
        "health", "warnings from gradients and losses; those from logits, classes and survivors are checked"
    ),
    *_trusted("corruptions.library", "corruptions.pixels checks its images", (CORRUPTED,)),
    *_trusted("protocol", "a name; the record also has dataset, threat and n", _EVERY),
    *_trusted("robench_version git command device platform", "where the record was made", _EVERY),
    *_trusted("started finished seconds attacks.seconds", "when, and how long it took", _EVERY),
    *_trusted("rows", "images that the network was called on, with padding"),
)


@cache
def _lines(kind: str) -> dict[str, Field]:
    """The lines of the table for a kind of record, by name."""
    return {line.name: line for line in TABLE if kind in line.kinds}


def decision(name: str, kind: str) -> Field | None:
    """The line for a field, or for the field that contains it, in a kind of record; None where there is none."""
    lines = _lines(kind)
    parts = name.split(".")
    return next((lines[p] for k in range(len(parts), 0, -1) if (p := ".".join(parts[:k])) in lines), None)


def known(name: str) -> bool:
    """Whether the table has this field for any kind of record."""
    return any(decision(name, kind) for kind in _EVERY)


def leaves(content: Any, name: str = "") -> Iterator[str]:
    """The names of all values in a record.json. The entries of a list share one name."""
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
        names: as `leaves` returns them, with the prefix "samples." for columns and "adversarials." for tensors.

    Returns:
        The lines of the table that apply to this record, in table order; fields of another kind of record; and fields
        that this release does not know.
    """
    unique = list(dict.fromkeys(names))
    lines = {line for name in unique if (line := decision(name, kind))}
    unmatched = [name for name in unique if not decision(name, kind)]
    return (
        [line for line in TABLE if line in lines],
        [name for name in unmatched if known(name)],
        [name for name in unmatched if not known(name)],
    )
