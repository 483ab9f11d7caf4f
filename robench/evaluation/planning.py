"""Planning of runs: names are resolved to defenses, images and attacks, and validated before the first network call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from robench.attacks._base import Attack
from robench.attacks.build import build_attacks
from robench.canonical import knowledge_name
from robench.catalog import Card, Protocol, Suite, find_suite, protocols
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.specs import Spec
from robench.core.trust import Untrusted
from robench.corruption.make import library
from robench.corruption.suite import Corruption, corruptions
from robench.data import Images, load_dataset
from robench.data.corrupted import check_colours
from robench.data.preprocessing import OWN, USUAL
from robench.defenses import Loaded, ResolvedDefense, load, resolve, restrict_to_classes
from robench.defenses._suitability import REMEDY, check_network
from robench.engine.device import choose_device
from robench.engine.knowledge import Attacker
from robench.engine.setup import find_attacker
from robench.evaluation.options import Options
from robench.evaluation.protocol import find_suites, sets_threats, too_large, with_name
from robench.threats.threat import check_images

Value = TypeVar("Value")


@dataclass(frozen=True)
class PlannedRun:
    """A run of one suite on one defense, which makes one record.

    Attributes:
        name: name by which the defense was requested.
        protocol: protocol with the threat model of this run; a corruption run has no threat model.
        attacker: None for a corruption run.
    """

    name: str
    loaded: Loaded
    suite: Suite
    protocol: Protocol
    images: Images
    knowledge: str = "full"
    attacker: Attacker | None = None

    @cached_property
    def corruptions(self) -> list[Corruption]:
        """The corruptions of a corruption suite; empty for other suites."""
        return corruptions(self.suite.attacks)

    @cached_property
    def attacks(self) -> list[tuple[str, Attack]]:
        """The suite's attacks with their canonical specs; not available for a corruption run."""
        assert self.protocol.threat is not None
        return build_attacks(self.suite.specs(self.protocol.threat.norm), self.protocol.threat)


class Sources:
    """Images and defenses that several plans use; the last ones are kept, so each is loaded once."""

    def __init__(self) -> None:
        self._images: dict[Any, Images] = {}
        self._defenses: dict[Any, Loaded] = {}

    def images(self, dataset: Spec, protocol: Protocol, data_dir: str | None) -> Images:
        """The images of a protocol, checked."""

        def load() -> Images:
            images = load_dataset(dataset, protocol.split, protocol.samples, data_dir)
            check_images(images.x, images.y, len(images.classes))
            return images

        return _kept(self._images, (str(dataset), protocol.split, protocol.samples, data_dir), load)

    def defense(
        self,
        defense: ResolvedDefense,
        dataset: Spec,
        checkpoint: str | None,
        device: torch.device,
        image_size: int | None,
    ) -> Loaded:
        """A defense, see `robench.defenses.load`."""
        key = (defense.name, str(dataset), checkpoint, str(device), image_size)
        return _kept(
            self._defenses, key, lambda: load(defense, dataset, checkpoint, device, image_size=image_size)
        )


def _kept(values: dict[Any, Value], key: Any, make: Callable[[], Value]) -> Value:
    """The value of a key, and room for two values."""
    if key not in values:
        while len(values) > 1:
            del values[next(iter(values))]
        values[key] = make()
    return values[key]


def plan(
    defenses: Sequence[str],
    suites: Sequence[str | Suite] | None,
    protocol: Protocol,
    knowledge: Sequence[str] | None,
    options: Options,
    sources: "Sources | None" = None,
) -> Iterator[PlannedRun]:
    """Plan the runs of every combination; see `robench.evaluation.run.run_all`.

    Args:
        sources: defenses and images that several plans share.
    """
    sources = sources or Sources()
    dataset, threat = protocol.dataset, protocol.threat
    assert dataset is not None
    all_suites = find_suites(suites or protocol.suites)
    levels = [knowledge_name(level, dataset) for level in knowledge or protocol.knowledge]
    adversarial = [
        suite for suite in all_suites if not _check_corruptions(suite, levels if knowledge else None)
    ]
    if threat is None and (without := [suite for suite in adversarial if not sets_threats(suite)]):
        raise UsageError(
            f"{without[0].name} needs a threat, but protocol {protocol.name} has none: add --threat"
        )
    # With --checkpoint, the network in the checkpoint determines the card of a family.
    resolved = [resolve(name, dataset, canonical=not options.checkpoint) for name in defenses]
    for defense in resolved if not options.checkpoint else ():
        _ = defense.card  # raises an error for an ambiguous family
    for suite in adversarial:
        _check_attacks(suite, protocol, knowledge)

    device = choose_device(options.device)
    pairs = load_all(resolved, protocol, options, device, sources)
    if adversarial and threat and (hint := too_large(threat, pairs[0][1].x.shape[1:])):
        options.note(hint)
    if len(adversarial) < len(all_suites):
        for _, images in pairs:
            check_colours(images)
    for name, (loaded, images) in zip(defenses, pairs, strict=True):
        for suite in all_suites:
            if suite not in adversarial:
                yield PlannedRun(name, loaded, suite, replace(protocol, threat=None), images)
            elif suite.rungs:
                yield from _checked(_ladder(name, loaded, suite, protocol, images, device, options.note))
            else:
                yield from _checked(
                    PlannedRun(
                        name,
                        loaded,
                        suite,
                        protocol,
                        images,
                        level,
                        find_attacker(level, loaded.defense, dataset, device, images.class_subset),
                    )
                    for level in levels
                )


def _checked(runs: Iterator[PlannedRun]) -> Iterator[PlannedRun]:
    """Load the attackers of all runs and test their threat models on an image, before the first run starts."""
    planned = list(runs)
    for run in planned:
        assert run.protocol.threat is not None
        run.protocol.threat.origin(run.images.x[:1])
    return iter(planned)


def _check_corruptions(suite: Suite, knowledge: Sequence[str] | None) -> bool:
    """Whether a suite consists of corruptions, after checking that it can be run."""
    if not corruptions(suite.attacks):
        return False
    if knowledge and list(knowledge) != ["full"]:
        raise UsageError(f"{suite.name} does not depend on attacker knowledge: remove --knowledge")
    library()
    return True


def _check_attacks(suite: Suite, protocol: Protocol, knowledge: Sequence[str] | None) -> None:
    """Raise an error if an attack of the suite does not support its threat model."""
    if not suite.rungs:
        assert protocol.threat is not None
        build_attacks(suite.specs(protocol.threat.norm), protocol.threat)
        return
    if knowledge:
        raise UsageError(f"{suite.name} sets the attacker knowledge of each run: remove --knowledge")
    for rung in suite.rungs:
        attacks = find_suite(rung.attack)
        for threat in rung.threats.values() or (protocol.threat,):
            assert threat is not None
            build_attacks(attacks.specs(threat.norm), threat)


def _ladder(
    asked: str,
    loaded: Loaded,
    suite: Suite,
    protocol: Protocol,
    images: Images,
    device: torch.device,
    note: Callable[[str], None],
) -> Iterator[PlannedRun]:
    """Plan the runs of a ladder."""
    dataset, side = protocol.dataset, images.x.shape[-1]
    assert dataset is not None
    if loaded.defense.purifier is None and any(rung.of_purifiers for rung in suite.rungs):
        raise UsageError(
            f"suite {suite.name} needs a defense with a purifier, but {loaded.name} has none: use autoattack, or "
            f"PURIFIER+{loaded.name}"
        )
    for rung in suite.rungs:
        if not rung.suits(loaded.defense.stochastic):
            continue
        name, subject = asked, loaded
        if rung.subject == "classifier":
            name = loaded.card.classifier if loaded.card else loaded.classifier
            subject = load(name, dataset, device=device, class_subset=images.class_subset, image_size=side)
        try:
            attacker = find_attacker(rung.knowledge, subject.defense, dataset, device, images.class_subset)
        except Untrusted:
            raise
        except UsageError as error:
            if not rung.knowledge.startswith("transfer:"):
                raise
            note(f"skipped run {rung.name} of {suite.name}: {error}")
            continue
        rung_protocol = with_name(replace(protocol, threat=rung.threat(side, protocol.threat)), protocol)
        attacks = find_suite(rung.attack)
        yield PlannedRun(name, subject, attacks, rung_protocol, images, rung.knowledge, attacker)


def load_all(
    defenses: Sequence[str | ResolvedDefense],
    protocol: Protocol,
    options: Options,
    device: torch.device,
    sources: Sources | None = None,
) -> list[tuple[Loaded, Images]]:
    """Load defenses, each with the images of a protocol in its own preprocessing, and check that they fit."""
    sources, dataset = sources or Sources(), protocol.dataset
    assert dataset is not None
    if options.checkpoint and len(defenses) > 1:
        raise UsageError(f"--checkpoint needs exactly one defense: got {len(defenses)}")

    def images_of(dataset: Spec) -> Images:
        return sources.images(dataset, protocol, options.data_dir)

    # Images are loaded first, so that missing ones are reported before weights are downloaded.
    side = None if prepared_by_defense(dataset) else images_of(dataset).image_size
    resolved = [resolve(name, dataset) for name in defenses]
    pairs = []
    for loaded in [
        sources.defense(defense, dataset, options.checkpoint, device, side) for defense in resolved
    ]:
        images = images_of(with_preprocessing(dataset, loaded))
        loaded = restrict_to_classes(loaded, images.class_subset)
        check_fit(loaded, images)
        for line in loaded.notes:
            options.note(line)
        pairs.append((loaded, images))
    return pairs


def prepared_by_defense(dataset: Spec) -> bool:
    """Whether the evaluated defense determines the preprocessing of the dataset."""
    return dataset.arguments.get("preprocessing") == OWN


def with_preprocessing(dataset: Spec, loaded: Loaded) -> Spec:
    """The dataset's spec with the preprocessing of the defense, if the dataset requests it.

    For a defense of gray images, it also selects one channel if the dataset supports that.

    Raises:
        UsageError: if the defense does not specify its preprocessing.
    """
    if loaded.defense.channels == 1:
        parameters = specs.defaults(registry.datasets.get(dataset.name.partition(":")[0]))
        if "channels" in parameters and "channels" not in dataset.arguments:
            dataset = dataset.replaced(channels=1)
    if not prepared_by_defense(dataset):
        return dataset
    preprocessing = loaded.defense.preprocessing
    if not preprocessing:
        raise UsageError(
            f"{loaded.name} does not specify its preprocessing: set the preprocessing of {dataset} to one of "
            f"{', '.join(USUAL)}, or add a line preprocessing = ... to the card"
        )
    return dataset.replaced(preprocessing=preprocessing)


def check_fit(loaded: Loaded, images: Images) -> None:
    """Raise an error, before anything is computed, if a defense does not support the size, channels or classes."""
    card = loaded.card
    protocol = None if card is None or card.dataset == images.name else _protocol_of(card)
    remedy = f"it is a defense of {card.dataset}: use --protocol {protocol}" if card and protocol else REMEDY
    check_network(loaded.name, loaded.defense, images, remedy)


def _protocol_of(card: Card) -> str | None:
    """The plainest protocol of a card's dataset and threat; of Linf for a card without a threat."""
    fitting = [
        protocol.name
        for protocol in protocols().values()
        if str(protocol.dataset).partition("(")[0] == card.dataset
        and (protocol.threat_name == card.threat if card.threat else protocol.threat_name.startswith("Linf"))
    ]
    return min(fitting, key=len, default=None)
