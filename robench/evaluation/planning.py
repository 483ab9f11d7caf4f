"""Names become runs: defenses with their images, suites with their attacks, checked before the first network call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch

from robench.attacks._base import Attack
from robench.attacks.build import build_attacks
from robench.canonical import knowledge_name
from robench.catalog import Protocol, Suite, find_suite
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.specs import Spec
from robench.core.trust import Untrusted
from robench.corruption.make import library
from robench.corruption.suite import Corruption, corruptions
from robench.data import Images, load_dataset
from robench.data.corrupted import check_colours
from robench.data.preprocessing import OWN, USUAL
from robench.defenses import Loaded, load, resolve, restrict_to_classes
from robench.engine.device import choose_device
from robench.engine.knowledge import Attacker
from robench.engine.setup import find_attacker
from robench.evaluation.options import Options
from robench.evaluation.protocol import find_suites, with_own_name
from robench.threats.threat import check_images, whole


@dataclass(frozen=True)
class PlannedRun:
    """One suite on one defense: what becomes one record.

    Attributes:
        protocol: with the threat of this run, none under corruptions.
        attacker: None under corruptions.
        note: a line for the user before it starts; empty for none.
    """

    loaded: Loaded
    suite: Suite
    protocol: Protocol
    images: Images
    knowledge: str = "full"
    attacker: Attacker | None = None
    note: str = ""

    @cached_property
    def corruptions(self) -> list[Corruption]:
        """Of a suite of corruptions; else none."""
        return corruptions(self.suite.attacks)

    @cached_property
    def attacks(self) -> list[tuple[str, Attack]]:
        """The suite's attacks with their canonical specs; none under corruptions."""
        assert self.protocol.threat is not None
        return build_attacks(self.suite.specs(self.protocol.threat.norm), self.protocol.threat)


def plan(
    defenses: Sequence[str],
    suites: Sequence[str | Suite] | None,
    protocol: Protocol,
    knowledge: Sequence[str] | None,
    options: Options,
) -> Iterator[PlannedRun]:
    """Every combination in turn; see `robench.evaluation.run.run_all`."""
    dataset, threat = protocol.dataset, protocol.threat
    assert dataset is not None
    chosen = find_suites(suites or protocol.suites)
    levels = [knowledge_name(level, dataset) for level in knowledge or protocol.knowledge]
    adversarial = [suite for suite in chosen if not _check_corruptions(suite, levels if knowledge else None)]
    if adversarial and threat is None:
        raise UsageError(f"{adversarial[0].name} needs a threat, and {protocol.name} has none: add --threat")
    # The network in a checkpoint decides which of a family's cards is meant.
    resolved = [resolve(name, dataset, canonical=not options.checkpoint) for name in defenses]
    for defense in resolved if not options.checkpoint else ():
        _ = defense.card  # an ambiguous family is refused here
    for suite in adversarial:
        _check_attacks(suite, protocol, knowledge)

    @cache
    def images_of(dataset: Spec) -> Images:
        images = load_dataset(dataset, protocol.split, protocol.samples, options.data_dir)
        check_images(images.x, images.y, len(images.classes))
        return images

    # Missing images are reported before weights are fetched.
    side = None if prepared_by_defense(dataset) else images_of(dataset).image_size
    device = choose_device(options.device)
    if options.checkpoint and len(defenses) > 1:
        raise UsageError(f"--checkpoint goes with one defense: {len(defenses)} were given")
    ready = []
    for loaded in [
        load(defense, dataset, options.checkpoint, device, image_size=side) for defense in resolved
    ]:
        images = images_of(prepared(dataset, loaded))
        loaded = restrict_to_classes(loaded, images.class_subset)
        check_fit(loaded, images)
        for line in loaded.notes:
            options.note(line)
        ready.append((loaded, images))
    # A radius of exactly that size may be intended.
    if (
        adversarial
        and threat
        and not threat.name
        and threat.eps > whole(threat.norm, *ready[0][1].x.shape[1:])
    ):
        options.note(f"{threat} holds every image there is: Linf:8/255 is 8 grey levels, L0:24 is 24 pixels")
    if len(adversarial) < len(chosen):
        for _, images in ready:
            check_colours(images)
    for loaded, images in ready:
        for suite in chosen:
            if suite not in adversarial:
                yield PlannedRun(loaded, suite, replace(protocol, threat=None), images)
            elif suite.rungs:
                yield from _in_order(_ladder(loaded, suite, protocol, images, device, options.note))
            else:
                yield from _in_order(
                    PlannedRun(
                        loaded,
                        suite,
                        protocol,
                        images,
                        level,
                        find_attacker(level, loaded.defense, dataset, device, images.class_subset),
                    )
                    for level in levels
                )


def _in_order(runs: Iterator[PlannedRun]) -> Iterator[PlannedRun]:
    """The runs, when every attacker is ready and every threat has been tried on an image."""
    planned = list(runs)
    for run in planned:
        assert run.protocol.threat is not None
        run.protocol.threat.origin(run.images.x[:1])
    return iter(planned)


def _check_corruptions(suite: Suite, knowledge: Sequence[str] | None) -> bool:
    """Whether a suite is one of corruptions, after checking that it can be run."""
    if not corruptions(suite.attacks):
        return False
    if knowledge and list(knowledge) != ["full"]:
        raise UsageError(f"{suite.name} has no attacker who could know anything: leave --knowledge out")
    library()
    return True


def _check_attacks(suite: Suite, protocol: Protocol, knowledge: Sequence[str] | None) -> None:
    """Refuse attacks that cannot be built in their threat."""
    assert protocol.threat is not None
    if not suite.rungs:
        build_attacks(suite.specs(protocol.threat.norm), protocol.threat)
        return
    if knowledge:
        raise UsageError(f"{suite.name} says what the attacker knows: leave --knowledge out")
    for rung in suite.rungs:
        attacks = find_suite(rung.attack)
        for threat in rung.threats.values() or (protocol.threat,):
            build_attacks(attacks.specs(threat.norm), threat)


def _ladder(
    loaded: Loaded,
    suite: Suite,
    protocol: Protocol,
    images: Images,
    device: torch.device,
    note: Callable[[str], None],
) -> Iterator[PlannedRun]:
    """The runs of a ladder's rungs."""
    dataset, side = protocol.dataset, images.x.shape[-1]
    assert dataset is not None and protocol.threat is not None
    if loaded.defense.purifier is None and any(rung.of_purifiers for rung in suite.rungs):
        raise UsageError(
            f"{suite.name} is for purifiers, and {loaded.name} has none: use autoattack, or PURIFIER+{loaded.name}"
        )
    for rung in suite.rungs:
        if not rung.suits(loaded.defense.stochastic):
            continue
        subject = loaded
        if rung.subject == "classifier":
            name = loaded.card.classifier if loaded.card else loaded.classifier
            subject = load(name, dataset, device=device, class_subset=images.class_subset, image_size=side)
        try:
            searching = find_attacker(rung.knowledge, subject.defense, dataset, device, images.class_subset)
        except Untrusted:
            raise
        except UsageError as error:
            if not rung.knowledge.startswith("transfer:"):
                raise
            note(f"{suite.name} leaves the rung {rung.name} out: {error}")
            continue
        own = with_own_name(replace(protocol, threat=rung.threat(side, protocol.threat)), protocol)
        attacks = find_suite(rung.attack)
        knowing = "" if rung.knowledge == "full" else f" @{rung.knowledge}"
        line = f"{subject.name} under {attacks.name}{knowing}, {own.threat}"
        yield PlannedRun(subject, attacks, own, images, rung.knowledge, searching, line)


def load_for_images(
    names: Sequence[str], protocol: Protocol, options: Options, device: torch.device
) -> tuple[list[Loaded], Images]:
    """Defenses and the images of a protocol, as the first defense wants them prepared, which suit them all."""
    assert protocol.dataset is not None
    images_of = cache(lambda chosen: load_dataset(chosen, protocol.split, protocol.samples, options.data_dir))
    dataset = protocol.dataset
    side = None if prepared_by_defense(dataset) else images_of(dataset).image_size
    loaded = [load(name, dataset, options.checkpoint, device, image_size=side) for name in names]
    images = images_of(prepared(dataset, loaded[0]) if loaded else dataset)
    check_images(images.x, images.y, len(images.classes))
    for defense in loaded:
        check_fit(defense, images)
    return loaded, images


def prepared_by_defense(dataset: Spec) -> bool:
    """Whether a data set is to have the preprocessing of the defense that is run on it."""
    return dataset.arguments.get("preprocessing") == OWN


def prepared(dataset: Spec, loaded: Loaded) -> Spec:
    """The data set with the defense's own preprocessing, where it asks for that, and with one channel where the
    defense takes grey images and the data set has them.

    Raises:
        UsageError: when the defense does not say which preprocessing that is.
    """
    if loaded.defense.channels == 1:
        takes = specs.defaults(registry.datasets.get(dataset.name.partition(":")[0]))
        if "channels" in takes and "channels" not in dataset.arguments:
            dataset = dataset.replaced(channels=1)
    if not prepared_by_defense(dataset):
        return dataset
    own = loaded.defense.preprocessing
    if not own:
        raise UsageError(
            f"{loaded.name} does not say how pictures are prepared for it: name the preprocessing of {dataset}, one of "
            f"{', '.join(USUAL)}, or give its card a line preprocessing = ..."
        )
    return dataset.replaced(preprocessing=own)


def check_fit(loaded: Loaded, images: Images) -> None:
    """Refuse a defense made for other images or classes, before anything is computed."""
    defense, side = loaded.defense, images.x.shape[-1]
    if defense.image_size != side:
        raise UsageError(
            f"{loaded.name} takes images of {defense.image_size} px and {images.name} has {side} px: "
            "choose a defense of that data set (robench list defenses)"
        )
    if defense.channels != images.x.shape[1]:
        raise UsageError(
            f"{loaded.name} takes images of {defense.channels} channels and {images.name} has {images.x.shape[1]}: 3 "
            "are colours, 1 is grey"
        )
    if defense.num_classes != len(images.classes):
        raise UsageError(
            f"{loaded.name} tells {defense.num_classes} classes apart and {images.name} has {len(images.classes)}"
        )
