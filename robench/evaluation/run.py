"""Run suites on defenses into records: what `robench run` does, from Python."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from robench.attacks.build import build_attacks
from robench.canonical import defense_name, knowledge_name
from robench.catalog import Protocol, Suite, find_suite
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.io import claim
from robench.core.specs import split
from robench.core.torch_state import standard_state
from robench.core.trust import Untrusted
from robench.corruption.cache import Cache
from robench.corruption.make import enlargement, library
from robench.corruption.suite import cells, corruptions
from robench.data import Images, load_dataset
from robench.data._lazy_images import lazily
from robench.data.class_subset import Subset
from robench.data.corrupted import check_colours
from robench.data.preprocessing import OWN, USUAL
from robench.defenses import Defense, Loaded, counting, find_card, find_cards, load, load_defense
from robench.engine import corruption_run as corrupting
from robench.engine.checkpoint import FolderStore
from robench.engine.device import choose_device, choose_lanes, choose_precision
from robench.engine.knowledge import Attacker, attacker
from robench.engine.progress import Progress
from robench.engine.run import Run
from robench.engine.workers import choose_workers
from robench.evaluation.answering import contradiction
from robench.evaluation.protocol import choose_protocol, with_own_name
from robench.records import corruption, jobs
from robench.records.cross_checks import old_draws
from robench.records.provenance import conditions, robench_version
from robench.records.record import DatasetFacts, DefenseFacts, Job, Record, SuiteFacts, read_record
from robench.records.store import PARTIAL, make_record, record_folder, supersede, write_record
from robench.threats.threat import NO_THREAT, Threat, check_images, whole


@dataclass(frozen=True)
class Options:
    """How a job is run; none of it but seed, precision and batch size changes what is found.

    Attributes:
        workers: processes that share the samples of an attack on a CPU, or make corrupted images; None for one a core,
            where there is enough to do.
        results: folder of all records.
        fresh: start over, whatever record or partial run is there.
        progress: called after every question; note: told what a user should know.
    """

    seed: int = 0
    device: str = "auto"
    batch_size: int | str = "auto"
    precision: str = "auto"
    data_dir: str | None = None
    results: str | Path = "results"
    fresh: bool = False
    checkpoint: str | None = None
    workers: int | None = None
    command: str = ""
    progress: Callable[[Progress], None] | None = None
    note: Callable[[str], None] = lambda text: None


@standard_state()
def run(
    defense: str | Sequence[str],
    attack: str | Sequence[str] | None = None,
    *,
    protocol: str | None = None,
    dataset: str | None = None,
    threat: str | None = None,
    samples: int | None = None,
    knowledge: str | None = None,
    **options,
) -> Record:
    """Run one suite on one defense and give its record; a run repeated resumes or answers from its record.

    Args:
        defense: a card, a family, a card's path or a builder's spec.
        attack: a suite or specs; None for the protocol's.
        protocol: by name or path; None for `dataset`, `threat` and `samples`, or the default protocol.
        options: the fields of Options.

    Raises:
        RobenchError: for everything a user can mend.
    """
    records = list(
        run_all(
            _names(defense),
            _names(attack) if attack else None,
            choose_protocol(protocol, dataset, threat, samples, _names(attack) if attack else None),
            [knowledge] if knowledge else None,
            Options(**options),
        )
    )
    if len(records) != 1:
        raise UsageError(f"{len(records)} records came of this: robench.run takes one defense and one attack")
    return records[0]


def run_all(
    defenses: list[str],
    suites: Sequence[str | Suite] | None,
    protocol: Protocol,
    knowledge: list[str] | None,
    options: Options,
) -> Iterator[Record]:
    """Run every combination in turn. Names are all checked before the first network is called."""
    chosen = [s if isinstance(s, Suite) else find_suite(s) for s in suites or protocol.suites]
    protocol = replace(
        protocol, knowledge=[knowledge_name(level, protocol.dataset) for level in protocol.knowledge]
    )
    knowledge = [knowledge_name(level, protocol.dataset) for level in knowledge or ()] or None
    if not options.checkpoint:
        # The network in a file decides which of a family's cards is meant.
        defenses = [defense_name(name, protocol.dataset) for name in defenses]
    adversarial = [suite for suite in chosen if not _check_corruptions(suite, knowledge)]
    if adversarial and protocol.threat == NO_THREAT:
        raise UsageError(f"{adversarial[0].name} needs a threat, and {protocol.name} has none: add --threat")
    for name in defenses:
        (find_cards if options.checkpoint else find_card)(name, protocol.dataset)
    # A suite of corruptions has no use for it.
    threat = Threat.parse(protocol.threat) if adversarial else None
    for suite in adversarial:
        assert threat
        if suite.rungs and knowledge:
            raise UsageError(f"{suite.name} says what the attacker knows: leave --knowledge out")
        for rung in suite.rungs:
            for own in map(Threat.parse, rung.threats.values() or (protocol.threat,)):
                build_attacks(find_suite(rung.attack).specs(own.norm), own)
        if not suite.rungs:
            build_attacks(suite.specs(threat.norm), threat)

    @cache
    def images_of(dataset: str) -> Images:
        images = load_dataset(dataset, protocol.split, protocol.samples, options.data_dir)
        check_images(images.x, images.y, len(images.classes))
        return images

    if not prepared_by_defense(protocol.dataset):
        # Images that are missing are found out before weights are fetched.
        images_of(protocol.dataset)
    device = choose_device(options.device)
    if options.checkpoint and len(defenses) > 1:
        raise UsageError(f"--checkpoint goes with one defense: {len(defenses)} were given")
    loaded = [load(name, protocol.dataset, options.checkpoint, device) for name in defenses]
    ready = []
    for each in loaded:
        images = images_of(prepared(protocol.dataset, each))
        each = counting(each, images.among)
        check_fit(each, images)
        for line in each.notes:
            options.note(line)
        ready.append((each, images))
    # At that distance itself it may be meant.
    if threat and not threat.name and threat.eps > whole(threat.norm, *ready[0][1].x.shape[1:]):
        options.note(f"{threat} holds every image there is: Linf:8/255 is 8 grey levels, L0:24 is 24 pixels")
    if len(adversarial) < len(chosen):
        for _, images in ready:
            check_colours(images)
    for each, images in ready:
        for suite in chosen:
            if suite not in adversarial:
                yield _run_corrupted(each, suite, protocol, images, options)
                continue
            assert threat
            if suite.rungs:
                runs = list(_climb(each, suite, protocol, images, device, options.note))
            else:
                # An attacker that cannot be says so before the first run.
                runs = [
                    (
                        each,
                        suite,
                        level,
                        _attacker(level, each.defense, protocol.dataset, device, images.among),
                        protocol,
                    )
                    for level in knowledge or protocol.knowledge
                ]
            for *_, own in runs:
                # And so does a transformation that does not fit these images.
                Threat.parse(own.threat).origin(images.x[:1])
            for subject, attacks, level, searching, own in runs:
                if suite.rungs:
                    knowing = "" if level == "full" else f" @{level}"
                    options.note(f"{subject.name} under {attacks.name}{knowing}, {own.threat}")
                yield _run_one(
                    subject, attacks, level, searching, own, Threat.parse(own.threat), images, options
                )


def prepared_by_defense(dataset: str) -> bool:
    """Whether a data set is to have the preprocessing of whoever is run on it."""
    return specs.parse(dataset).arguments.get("preprocessing") == OWN


def prepared(dataset: str, loaded: Loaded) -> str:
    """The data set's name with the defense's own preprocessing, where it asks for that, and with one channel where the
    defense takes grey images and the data set can give them.

    Raises:
        UsageError: when the defense does not say which that is.
    """
    if loaded.defense.channels == 1:
        dataset = _grey(dataset)
    if not prepared_by_defense(dataset):
        return dataset
    own = loaded.defense.preprocessing
    if not own:
        raise UsageError(
            f"{loaded.name} does not say how pictures are prepared for it: name the preprocessing of {dataset}, one of "
            f"{', '.join(USUAL)}, or give its card a line preprocessing = ..."
        )
    spec = specs.parse(dataset)
    return str(specs.Spec(spec.name, {**spec.arguments, "preprocessing": own}))


def _grey(dataset: str) -> str:
    spec = specs.parse(dataset)
    builder = registry.datasets.get(spec.name.partition(":")[0])
    if "channels" in spec.arguments or "channels" not in specs.defaults(builder):
        return dataset
    return str(specs.Spec(spec.name, {**spec.arguments, "channels": 1}))


def _climb(
    loaded: Loaded,
    suite: Suite,
    protocol: Protocol,
    images: Images,
    device: torch.device,
    note: Callable[[str], None],
) -> Iterator[tuple[Loaded, Suite, str, Attacker, Protocol]]:
    """The runs of a ladder: who is attacked, by which suite, with what knowledge, by whom, in which protocol."""
    dataset, side = protocol.dataset, images.x.shape[-1]
    if loaded.defense.purifier is None and any(rung.of_purifiers for rung in suite.rungs):
        raise UsageError(
            f"{suite.name} is for purifiers, and {loaded.name} has none: use autoattack, or PURIFIER+{loaded.name}"
        )
    for rung in suite.rungs:
        if not rung.suits(loaded.defense.stochastic):
            continue
        behind = loaded.card.classifier if loaded.card else loaded.classifier
        subject = (
            load(behind, dataset, device=device, among=images.among)
            if rung.subject == "classifier"
            else loaded
        )
        try:
            searching = _attacker(rung.knowledge, subject.defense, dataset, device, images.among)
        except Untrusted:
            raise
        except UsageError as error:
            if not rung.knowledge.startswith("transfer:"):
                raise
            note(f"{suite.name} leaves the rung {rung.name} out: {error}")
            continue
        own = with_own_name(replace(protocol, threat=str(rung.threat(side, protocol.threat))), protocol)
        yield subject, find_suite(rung.attack), rung.knowledge, searching, own


def _check_corruptions(suite: Suite, knowledge: list[str] | None) -> bool:
    """Whether a suite is one of corruptions; its own mistakes are named here."""
    if not corruptions(suite.attacks):
        return False
    if knowledge and knowledge != ["full"]:
        raise UsageError(f"{suite.name} has no attacker who could know anything: leave --knowledge out")
    library()
    return True


def _run_corrupted(
    loaded: Loaded, suite: Suite, protocol: Protocol, images: Images, options: Options
) -> Record:
    device = choose_device(options.device)
    found = corruptions(suite.attacks)
    asked = cells(found)
    job = replace(
        _job(loaded, suite.name, tuple(map(str, found)), protocol, images, options, device),
        threat=NO_THREAT,
        precision="fp32",
    )
    folder = record_folder(options.results, protocol.name, loaded.name, suite.name, seed=options.seed)
    with claim(folder):
        if not options.fresh and (known := _answer(folder, job, loaded, images, options)):
            return known
        times = enlargement(*images.x.shape[2:])
        if times > 1:
            options.note(
                f"the library takes images from 32 px on: those of {images.name} are corrupted at {times} times "
                "their size and made small again, which weakens noise and blur"
            )
        store = FolderStore(folder / PARTIAL, job.key, conditions(device), options.note)
        if options.fresh:
            store.drop()
        started = store.begin(datetime.now(UTC).isoformat())
        if store.resumes:
            options.note(f"resuming from {store.folder}")
        begun = time.monotonic()
        try:
            outcome = corrupting.play(
                loaded.defense,
                images,
                asked,
                options.seed,
                device=device,
                lanes=job.batch_size,
                stochastic=loaded.defense.stochastic,
                workers=options.workers,
                cache=Cache(),
                store=store,
                progress=options.progress,
            )
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"no memory on {device} for {job.batch_size} images a call: repeat with a smaller --batch-size"
            ) from error
        record = corruption.write(
            folder,
            job,
            images,
            outcome,
            command=options.command or "robench.run",
            started=datetime.fromisoformat(started),
            finished=datetime.now(UTC),
            seconds=max(float(outcome.seconds.sum()), time.monotonic() - begun),
            device=device,
        )
        _retire(folder, job, options)
        store.drop()
        return record


def _job(
    loaded: Loaded,
    suite: str,
    attacks: tuple[str, ...],
    protocol: Protocol,
    images: Images,
    options: Options,
    device: torch.device,
) -> Job:
    return Job(
        defense=DefenseFacts(
            name=loaded.name,
            family=loaded.family,
            card_digest=loaded.card_digest,
            checkpoint_sha256=loaded.checkpoint_sha256,
            parameters=sum(p.numel() for p in loaded.defense.parameters()),
            classifier=loaded.classifier,
            state_sha256=loaded.state_sha256,
        ),
        suite=SuiteFacts(suite, attacks),
        dataset=DatasetFacts(images.name, images.split, images.digest),
        protocol=protocol.name,
        threat=protocol.threat,
        n=len(images),
        batch_size=choose_lanes(options.batch_size, device, images.x.shape[-1], len(images)),
        seed=options.seed,
        precision=choose_precision(options.precision, device),
    )


def _run_one(
    loaded: Loaded,
    suite: Suite,
    knowledge: str,
    searching: Attacker,
    protocol: Protocol,
    threat: Threat,
    images: Images,
    options: Options,
) -> Record:
    device = choose_device(options.device)
    attacks = build_attacks(suite.specs(threat.norm), threat)
    specs_ = tuple(spec for spec, _ in attacks)
    job = replace(
        _job(loaded, suite.name, specs_, protocol, images, options, device),
        threat=str(threat),
        knowledge=knowledge,
    )
    folder = record_folder(options.results, protocol.name, loaded.name, suite.name, knowledge, options.seed)
    with claim(folder):
        if not options.fresh and (known := _answer(folder, job, loaded, images, options)):
            return known
        store = FolderStore(folder / PARTIAL, job.key, conditions(device), options.note)
        if options.fresh:
            store.drop()
        # Written before the first question, so that a folder that cannot be written is found out now.
        started = store.begin(datetime.now(UTC).isoformat())
        if store.resumes:
            options.note(f"resuming from {store.folder}")
        play = Run(
            loaded.defense,
            attacks,
            lazily(images.x),
            images.y,
            images.ids,
            threat,
            options.seed,
            device=device,
            lanes=job.batch_size,
            attacker=searching,
            stochastic=loaded.defense.stochastic,
            precision=job.precision,
            workers=choose_workers(options.workers, device, len(images), loaded.defense, options.note),
            store=store,
            progress=options.progress,
            note=options.note,
        )
        begun = time.monotonic()
        outcome = play.play()
        made = make_record(
            job,
            outcome,
            command=options.command or "robench.run",
            started=datetime.fromisoformat(started),
            finished=datetime.now(UTC),
            seconds=max(sum(cost.seconds for cost in outcome.attacks), time.monotonic() - begun),
            device=device,
            extra=(
                {"classes": {"counted": len(images.classes), "of": loaded.knows}} if loaded.knows else None
            ),
        )
        record = write_record(folder, made, outcome, images)
        _retire(folder, job, options)
        store.drop()
        return record


def _same(record: Record, job: Job, options: Options) -> bool:
    """Whether a record is of this job."""
    # A run that ran out of memory went on with smaller batches than "auto" had chosen: it answers all the same.
    asked = replace(job, batch_size=record.job.batch_size) if options.batch_size == "auto" else job
    return asked.key in (record.key, jobs.canonical(record.job).key)


def _retire(folder: Path, job: Job, options: Options) -> None:
    """Keep records of this job that lie elsewhere under `superseded/`: one that is new takes their place."""
    for record in jobs.others(folder, job):
        if _same(record, job, options) and record.folder:
            supersede(record.folder)


def _answer(folder: Path, job: Job, loaded: Loaded, images: Images, options: Options) -> Record | None:
    """The record in `folder`, if it is whole and answers for this job, or one that lies elsewhere: that is said.

    One whose defense answers some images differently now, because its code has changed say, is superseded.
    """
    record = None
    if (folder / "record.json").is_file():
        with suppress(ResourceError):
            record = read_record(folder)
    if record is None or not _same(record, job, options):
        record = next((each for each in jobs.others(folder, job) if _same(each, job, options)), None)
    if record is None:
        return None
    folder = record.folder or folder
    if reason := contradiction(record, loaded.defense, images, choose_device(options.device)):
        kept = supersede(folder)
        options.note(
            f"the record in {folder} is not of {loaded.name} as it is now: {reason}; it is kept in {kept}"
        )
        return None
    # Another release may raise doubts that this record does not hold.
    made, here = record.robench_version, robench_version()
    by = "" if made == here else f", made by robench {made} (this is {here})"
    options.note(f"answered from {folder}{by}; --fresh runs it again")
    for mark in old_draws(record):
        options.note(f"{folder}: {mark.text}")
    return record


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


def _attacker(
    knowledge: str, attacked: Defense, dataset: str, device: torch.device, among: Subset | None
) -> Attacker:
    return attacker(knowledge, attacked, lambda name: _source(name, attacked, dataset, device, among))


def _source(
    name: str, attacked: Defense, dataset: str, device: torch.device, among: Subset | None
) -> Defense:
    """The defense that is searched in place of the one attacked, for images of the same size."""
    found = load_defense(name, dataset, device=device, among=among)
    if found.channels != attacked.channels:
        raise UsageError(
            f"{name} takes images of {found.channels} channels and the defense attacked {attacked.channels}: "
            "nothing transfers from it"
        )
    if found.image_size != attacked.image_size:
        raise UsageError(
            f"{name} takes images of {found.image_size} px and the defense attacked {attacked.image_size} px: "
            "nothing transfers from it"
        )
    return found


def _names(value: str | Sequence[str]) -> list[str]:
    return split(value) if isinstance(value, str) else list(value)


def default_results() -> Path:
    """Where records go when nothing is said: `results` in the folder one is in, or ROBENCH_RESULTS."""
    return Path(os.environ.get("ROBENCH_RESULTS", "results"))
