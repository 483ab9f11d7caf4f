"""Canonical names of datasets, defenses, suites and attacker knowledge, so that equivalent spellings are one name.

Nothing is loaded or imported. For names that are neither shipped nor built in, only the arguments are sorted. A name
that was read from a file remains marked as such (see `robench.core.trust`). Canonical threats come from
`robench.threats.threat.Threat.parse`.
"""

from robench import catalog
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.specs import Spec
from robench.core.trust import like
from robench.defenses.resolution import DEFAULT_DATASET, canonical_name, changed_arguments, family_card
from robench.threats.knowledge import Knowledge

# The preprocessing of images that are of one size already.
_NONE = "none"


def dataset_name(text: str) -> str:
    """A dataset's canonical name; `text` where it is no name of one."""
    try:
        return str(dataset_spec(text))
    except UsageError:
        return like(text, text.strip())


def dataset_spec(text: str | Spec) -> Spec:
    """The canonical spec of a dataset.

    Raises:
        UsageError: when it is malformed.
    """
    spec = specs.parse(text)
    base = spec.name.partition(":")[0]
    if not registry.datasets.holder(base).startswith("robench."):
        return spec
    known = registry.datasets.describe(base).defaults
    if known.get("preprocessing", _NONE) != _NONE:
        # The name always says how pictures are prepared.
        spec = Spec(spec.name, {"preprocessing": known.pop("preprocessing"), **spec.arguments})
    return Spec(spec.name, changed_arguments(spec, known))


def defense_name(text: str, dataset: str | Spec | None = None) -> str:
    """A defense's canonical name (`robench.defenses.resolution.canonical_name`); `text` where the dataset has none."""
    try:
        return canonical_name(text, dataset)
    except UsageError:
        return like(text, text.strip())


def suite_name(text: str) -> str:
    """The name of `robench.catalog.find_suite(text)`, which is found without building attacks.

    Raises:
        UsageError: for an unknown attack, or an argument that it does not take.
    """
    if text not in catalog.suites() and not text.endswith(".toml"):
        pieces = list(map(specs.parse, specs.split(text, "+")))
        if all(spec.name in registry.attacks for spec in pieces):
            return "+".join(str(registry.attacks.canonical(spec)) for spec in pieces)
    return catalog.find_suite(text).name


def knowledge_name(text: str, dataset: str | Spec | None = None) -> str:
    """A knowledge level's canonical name. A defense in it is named by its family if that is enough on this dataset:
    "transfer:standard"."""
    knowledge = Knowledge.of(text)
    if not knowledge.level.needs_name or ":" not in text:
        return like(text, text.strip())
    name = defense_name(knowledge.defense, dataset)
    card = catalog.cards().get(name)
    if card and card.family and family_card(card.family, specs.parse(dataset or DEFAULT_DATASET)) == card:
        name = card.family
    return like(text, f"{knowledge.name}:{name}")
