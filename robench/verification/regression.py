"""Check whether a checkpoint is still as robust: certificates first, then a sequential test with few attacks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from robench.core.errors import ResourceError, UsageError
from robench.data import Images
from robench.data._lazy_images import LazyImages
from robench.defenses import Loaded, load
from robench.defenses._suitability import check_network
from robench.engine.attack_context import Samples
from robench.engine.batched_model import Judge, vote
from robench.engine.device import choose_device
from robench.engine.knowledge import Attacker
from robench.engine.run import Run
from robench.engine.setup import Setup, find_attacker
from robench.engine.tolerances import margins, same_margins
from robench.engine.workers import Processes, choose_workers
from robench.records import json_files
from robench.records.certificates import Applied, certificates_of, certified, is_attacked
from robench.records.collection import check_rows
from robench.records.estimate import SUFFIX
from robench.records.inputs import defense_of, images_of
from robench.records.randomized import FIELD, chosen_on
from robench.records.record import Record, read_record
from robench.records.samples import read_samples
from robench.statistics.accuracy import Accuracy, interval, mcnemar, percent
from robench.statistics.sequential import Plan
from robench.threats.threat import check_images
from robench.verification.replay import attacks_of

# Significance level of the paired test for a loss of clean accuracy.
_LEVEL = 0.05


@dataclass(frozen=True)
class Step:
    """One step of a check: whether it holds, and a sentence with the figures."""

    name: str
    held: bool
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        baseline: the folder of the record; defense: the defense that was compared with it.
        steps: in order; the check ends at the first failed step.
        attacked: images that were attacked again; open: images that no certificate fools.
        passes: images sent through the network, forward and backward; baseline_passes: what the record cost.
    """

    baseline: str
    defense: str
    steps: tuple[Step, ...]
    attacked: int
    open: int
    passes: int
    baseline_passes: int

    @property
    def held(self) -> bool:
        return all(step.held for step in self.steps)

    @property
    def reason(self) -> str:
        """Why the check failed, in one line; empty when it held."""
        return next((step.detail for step in self.steps if not step.held), "")

    @property
    def saving(self) -> float:
        """How many times cheaper than the baseline's run, in passes."""
        return self.baseline_passes / max(self.passes, 1)


@dataclass(frozen=True)
class Options:
    """Tolerances and error rates (see `Plan`), as fractions of the baseline's images, and where to run."""

    margin: float = 0.03
    tolerance: float = 0.005
    false_alarm: float = 0.05
    miss: float = 0.05
    device: str = "auto"
    data_dir: str | None = None
    checkpoint: str | None = None
    note: Callable[[str], None] = lambda text: None


def check(baseline: Path | str, defense: str | None = None, options: Options | None = None) -> Verdict:
    """Compare a defense with the record of an earlier one.

    Args:
        baseline: the record's folder.
        defense: name of the defense; None for the one that the record names.

    Raises:
        ResourceError: when the record, the data or the checkpoint cannot be read, or the data differ.
        UsageError: for an unknown defense or impossible options.
    """
    options = options or Options()
    try:
        Plan(1, 0, 0, options.margin, options.tolerance, options.false_alarm, options.miss)
    except ValueError as error:
        raise UsageError(f"this check is impossible: {error}") from error
    record = read_record(baseline)
    if record.corrupted:
        raise UsageError(f"{baseline} is of a run under corruptions: robench verify re-checks it")
    if record.is_estimate:
        suite = record.job.suite.name.removesuffix(SUFFIX)
        raise UsageError(f"{baseline} is an estimate: run {suite} on all images for a baseline")
    name, images = defense_of(record, defense), images_of(record, options.data_dir)
    check_images(images.x, images.y, len(images.classes))
    if images.digest != record.job.dataset.digest:
        raise ResourceError(
            f"the images of {baseline} differ from those of {images.name} here: digest "
            f"{record.job.dataset.digest[:12]} in the record, {images.digest[:12]} found"
        )
    device = choose_device(options.device)
    loaded = load(
        name, record.job.dataset.name, options.checkpoint, device, images.class_subset, images.image_size
    )
    check_network(loaded.name, loaded.defense, images)
    return _Check(record, loaded, images, device, options).run()


class _Check:
    """One running check."""

    def __init__(
        self, record: Record, loaded: Loaded, images: Images, device: torch.device, options: Options
    ):
        self.record, self.loaded, self.images = record, loaded, images
        self.device, self.options = device, options
        self.folder = record.folder or Path()
        table = read_samples(self.folder)
        with json_files.named(self.folder, "robench run"):
            check_rows(record, table)
        self.rows = table.to_pydict()
        setup = Setup.of(loaded.defense, Attacker(), record.job, device)
        stochastic = loaded.defense.stochastic or FIELD in record.extra
        fresh = not chosen_on(record)
        self.judges = replace(setup, stochastic=stochastic, fresh_draws=fresh, backs_off=True).judges
        self.passes = 0
        self.attacked = 0

    def run(self) -> Verdict:
        if chosen_on(self.record):
            self.options.note(
                f"{self.folder} is judged on the draws that its candidates were chosen on, but images attacked again "
                "are judged on fresh draws: robench results migrate makes the two comparable"
            )
        answers = self._answers(self.judges.clean, self.images.x, torch.arange(len(self.images)))
        steps = [self._clean(answers)]
        open_images = self._open(answers) if steps[-1].held else []
        if steps[-1].held:
            steps.append(self._certificates(open_images))
            steps.append(self._attack(open_images))
        return Verdict(
            baseline=str(self.folder),
            defense=self.loaded.name,
            steps=tuple(steps),
            attacked=self.attacked,
            open=len(open_images),
            passes=self.passes,
            baseline_passes=sum(self.record.passes.values()),
        )

    def _answers(self, judge: Judge, x: Tensor | LazyImages, rows: Tensor) -> Tensor:
        """The answers of a judge to one image for each of `rows`, (N, draws)."""
        self.passes += len(x) * judge.draws
        return judge.answers_of(x, self.images.ids[rows], self.device)

    def _clean(self, answers: Tensor) -> Step:
        labels = self.images.y
        then = torch.tensor(self.rows["clean_prediction"])
        now = vote(answers)
        n, changed = len(labels), int((now != then).sum())
        before, after = int((then == labels).sum()), int((now == labels).sum())
        was = Accuracy.of(before, n)
        figures = f"{100 * after / n:.2f} %, was {percent(was)} % {interval(was)}"
        recorded = self.record.job.defense
        if (self.loaded.checkpoint_sha256, self.loaded.name) == (recorded.checkpoint_sha256, recorded.name):
            # The same weights must give the same logits up to rounding; a changed card may have the same weights.
            margins_changed = self._other_margins()
            held = max(changed, margins_changed) <= max(1, n // 1000)
            detail = f"clean accuracy {figures}; the weights are the same"
            if changed or margins_changed:
                detail += f", but {changed} of {n} predictions differ, and {margins_changed} margins"
            return Step("clean", held, detail)
        lost = int(((then == labels) & (now != labels)).sum())
        won = int(((then != labels) & (now == labels)).sum())
        worse = lost > won and (mcnemar(lost, won) < _LEVEL or (lost - won) / n >= self.options.margin)
        detail = f"{figures}; {lost} images lost, {won} won (McNemar's test: p = {mcnemar(lost, won):.2g})"
        return Step("clean", not worse, f"clean accuracy{' fell:' if worse else ''} {detail}")

    def _other_margins(self) -> int:
        """Number of clean images whose margin between the two best logits changed beyond rounding."""
        logits = [
            self.judges.search.network.logits(x.to(self.device), ids.to(self.device)).cpu()
            for x, ids in zip(self.images.x.split(1024), self.images.ids.split(1024), strict=True)
        ]
        self.passes += len(self.images)
        then = torch.tensor(self.rows["clean_margin"])
        return int((~same_margins(then, margins(torch.cat(logits)))).sum())

    def _open(self, clean: Tensor) -> list[int]:
        """The images that may still be robust: classified correctly, and not fooled by their certificate.

        Args:
            clean: answers to the clean images, (N, draws). Images with a certificate are judged on its draws.
        """
        threat = self.record.job.threat_model
        held = certificates_of(self.folder, self.images, threat)
        rows = certified(self.rows["fooled_by"], self.rows["distance"], FIELD in self.record.extra)
        labels = self.images.y
        robust = (clean == labels[:, None]).all(1)
        if rows:
            index = torch.tensor(rows)
            if held.ids.tolist() != self.images.ids[rows].tolist():
                raise ResourceError(
                    f"{self.folder}: its adversarial examples are not of the images that were fooled"
                )
            x_adv = Applied(threat, self.images.x, held.delta, self.images.ids, rows)
            answers = self._answers(self.judges.final, x_adv, index)
            correct = vote(clean[index]) == labels[index]
            robust[index] = correct & (answers == labels[index, None]).all(1)
        return robust.nonzero()[:, 0].tolist()

    def _certificates(self, open_images: list[int]) -> Step:
        n, robust_then = len(self.images), self.record.robust_accuracy.correct
        attacked = sum(map(is_attacked, self.rows["fooled_by"]))
        fooled = attacked - sum(is_attacked(self.rows["fooled_by"][i]) for i in open_images)
        holds = len(open_images) > robust_then - self.options.margin * n or robust_then == 0
        detail = f"{fooled} of {attacked} known adversarial examples fool it"
        return Step("adversarial examples", holds, f"{self._figures(len(open_images), not holds)}; {detail}")

    def _figures(self, robust: int, fell: bool) -> str:
        """The bound on robust accuracy, and the baseline's robust accuracy."""
        was = self.record.robust_accuracy
        bound = f"at most {100 * robust / len(self.images):.2f} %, was {percent(was)} % {interval(was)}"
        return f"robust accuracy {'fell' if fell else 'is'}{':' * fell} {bound}"

    def _attack(self, open_images: list[int]) -> Step:
        job, options = self.record.job, self.options
        robust_then = self.record.robust_accuracy.correct
        plan = Plan(
            len(self.images), robust_then, len(open_images), options.margin, options.tolerance,
            options.false_alarm, options.miss,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(job.seed)
        order = [open_images[i] for i in torch.randperm(len(open_images), generator=generator).tolist()]
        robust = fooled = 0
        while (answer := plan.decide(robust, fooled)) is None:
            batch = order[robust + fooled :][: plan.needed(robust, fooled)]
            survivors = self._robust(batch)
            robust, fooled = robust + survivors, fooled + len(batch) - survivors
            options.note(f"attacked {robust + fooled} of {len(order)} images: {robust} are robust")
        self.attacked = robust + fooled
        errors = f"(false alarms {options.false_alarm:.0%}, misses {options.miss:.0%})"
        if answer:
            again = (
                f"{robust} of {self.attacked} images attacked again are robust, of {len(order)} candidates"
            )
            detail = f"as robust as it was: {again} {errors}"
        else:
            again = f"{fooled} of {self.attacked} images attacked again are fooled"
            detail = f"{self._figures(len(order) - fooled, True)}; {again} {errors}"
        return Step("attack", answer, detail)

    def _robust(self, rows: list[int]) -> int:
        """Number of these images that survive the baseline's suite."""
        job = self.record.job
        threat, index = job.threat_model, torch.tensor(rows)
        defense = self.loaded.defense
        images = self.images
        attacker = find_attacker(job.knowledge, defense, job.dataset.name, self.device, images.class_subset)
        outcome = Run(
            Setup.of(defense, attacker, job, self.device),
            attacks_of(job, len(rows), len(images.classes)),
            Samples(images.x[index], images.y[index], images.ids[index]),
            threat,
            executor=Processes(choose_workers(None, self.device, len(rows))),
        ).outcome()
        self.passes += sum(outcome.passes.values())
        return int(outcome.robust.sum())
