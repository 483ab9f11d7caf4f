"""`robench train`: from a card's recipe to a checkpoint, resumable at any moment, decided by the seed."""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.io import write_file
from robench.data import load_dataset
from robench.defenses import Defense, Purifier, build_purifier, checkpoint_of, find_card, load
from robench.defenses._base import with_purifier
from robench.defenses._checkpoints import fetch, load_into, read_state, sha256_of
from robench.engine.device import choose_device
from robench.threats.threat import Threat, check_images
from robench.training.adversarial import correct, pgd
from robench.training.distributed import ProcessGroup
from robench.training.log import Log
from robench.training.partial import OPTION, check_writable, read_partial, write_partial
from robench.training.pretrained import read_encoder
from robench.training.progress import Reporter
from robench.training.purifier_training import find_purifier_training
from robench.training.recipe import Recipe, decisive, read_recipe
from robench.training.stages import HEAD, Stage, finetuning_stage, pretraining_stage, purifier_stage, seed_for

# Interval between saves; a killed training loses at most this time plus an epoch.
SAVE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        path, sha256: of the checkpoint; the digest goes into the card.
        n: test images; `clean` of them are classified right, `robust` still are under PGD-20 at `threat`. 0
            where nothing could be measured: a purifier whose classifier has no weights yet.
        clean_accuracy, robust_accuracy: the same as parts of 1.
        seed: what decided the weights.
        seconds: of training and evaluation, with what was spent before interruptions.
    """

    path: Path
    sha256: str
    n: int
    clean: int
    robust: int
    threat: str
    seed: int
    seconds: float

    @property
    def clean_accuracy(self) -> float:
        return self.clean / self.n if self.n else math.nan

    @property
    def robust_accuracy(self) -> float:
        return self.robust / self.n if self.n else math.nan

    def __str__(self) -> str:
        accuracies = "not measured: the classifier behind it has no weights"
        if self.n:
            accuracies = (
                f"clean {self.clean_accuracy:.1%}, PGD-20 at {self.threat} {self.robust_accuracy:.1%} "
                f"of {self.n} test images"
            )
        return f"{self.path}: {accuracies}; seed {self.seed}, {self.seconds:.0f} s, sha256 {self.sha256}"


def train(
    card: str,
    data_dir: str | None = None,
    output: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    progress: bool = True,
    fresh: bool = False,
    csv: str | Path | None = None,
    pretrained: str | Path | None = None,
) -> TrainResult:
    """Train the defense of a card by its `[recipe]`, from nothing, and measure it on the test split.

    While it runs, what it has lies in `<output>.partial`; run again, it goes on to the same weights,
    bit for bit, as if it had never stopped (on the same device and number of threads).

    Started by `torchrun`, its processes share every batch (the recipe's batch size is the sum of theirs) and
    the first writes; how many they are is part of what decides the weights. They need one file system.

    Args:
        card: a card's name, a family or the path of a card.
        data_dir: where the data set's files lie.
        output: the checkpoint, `.safetensors`; None for `<card name>.safetensors` in the current folder.
        seed: None for the recipe's.
        device: "auto" takes CUDA where it works.
        progress: whether to show it, on stderr.
        fresh: start over, whatever an interrupted training has left.
        csv: a file for the epochs (stage, epoch, loss, lr, seconds); None for none.
        pretrained: a checkpoint to start from, in place of the recipe's own start or pre-training: of masked
            pre-training or a classifier's, or a purifier's.

    Raises:
        UsageError: for an unknown card or device, a card without a recipe, or a bad recipe.
        ResourceError: when data is missing, the output not writable, or the partial file not this training's.
    """
    found = find_card(card)
    if found is None or not found.recipe:
        raise UsageError(f"{card} has no recipe to train by: give a card with a [recipe] table")
    recipe = read_recipe(found.recipe, str(found.path))
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    team = ProcessGroup.here()
    where = choose_device(team.device(device))
    path = Path(output) if output else Path(f"{found.name}.safetensors")
    if path.suffix != ".safetensors":
        raise UsageError(f"the output {path} must end in .safetensors")
    images = load_dataset(found.dataset, "train", recipe.samples or None, data_dir)
    check_images(images.x, images.y)
    encoder = None
    data = f"{images.digest} {where.type}"
    if pretrained or recipe.start:
        encoder = _encoder(pretrained) if pretrained else checkpoint_of(recipe.start)
        recipe = replace(recipe, pretraining=None)
        data += f" from {sha256_of(encoder)}"
    run = _Run(found, recipe, path, where, data, team, Path(csv) if csv else None, encoder)
    if team.leads:
        check_writable(path)
        if fresh:
            run.partial.unlink(missing_ok=True)
    team.join(where)
    # Training draws from torch's global generators; the caller's are left as they were.
    cuda = [where] if where.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        threads(recipe.threads),
        Reporter(progress and team.leads) as reporter,
    ):
        trained = run.weights(images.x.to(where), images.y.to(where), reporter)
        return team.from_leader(run.finish(trained, data_dir, reporter) if team.leads else None)


def _encoder(location: str | Path) -> Path:
    file = fetch(location, Path())
    if file.weights:
        raise UsageError(f"--pretrained takes a file whole: leave #{file.weights} out")
    return file.path


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads of the CPU, until the block ends; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(model: nn.Module, x: Tensor, y: Tensor, eps: float, batch_size: int = 512) -> tuple[int, int]:
    """How many images are classified right: clean, and under PGD-20 with steps of eps / 4, as MIMIR's.

    Args:
        model: in evaluation mode.
        x: (N, 3, H, W) in [0, 1].
    """
    device = next(model.parameters()).device
    clean = robust = 0
    for i in range(0, len(x), batch_size):
        batch, labels = x[i : i + batch_size].to(device), y[i : i + batch_size].to(device)
        clean += correct(model, batch, labels)
        right = model(batch).argmax(1) == labels
        x_adv = pgd(model, batch, labels, eps, eps / 4, 20)
        robust += int((right & (model(x_adv).argmax(1) == labels)).sum())
    return clean, robust


class _Run:
    """One training under way: its stages, and what of them is on disk."""

    def __init__(
        self,
        card: Card,
        recipe: Recipe,
        path: Path,
        device: torch.device,
        data: str,
        team: ProcessGroup,
        log: Path | None,
        encoder: Path | None = None,
    ):
        self.card = card
        self.path = path
        self.encoder = encoder
        self.team = team
        self.log = Log(log if team.leads else None)
        self.logging = False
        self.spec = card.spec
        self.purifies = self.spec.name in registry.purifiers
        if self.purifies != bool(recipe.purifying):
            raise UsageError(f"{card.name}: purifiers, and they alone, are trained by [[recipe.purifying]]")
        if recipe.finetuning.probe and not encoder:
            raise UsageError(
                f"{card.name}: a probe needs an encoder: give recipe.start, or a file with --pretrained"
            )
        self.recipe = recipe
        self.device = device
        self.partial = path.with_name(path.name + ".partial")
        self.fingerprint = fingerprint(self.spec, recipe, data + (f" x{team.size}" if team.size > 1 else ""))
        self.before = 0.0
        self.started = self.saved = time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def weights(self, x: Tensor, y: Tensor, reporter: Reporter) -> Defense | Purifier:
        """The trained defense, or the trained purifier."""
        self.team.wait()  # for the leader to have taken away what --fresh does not want
        state = read_partial(self.partial, self.fingerprint, reporter.say)
        self.team.wait()  # for all to have read before the leader writes
        if state:
            self.before = state["seconds"]
            reporter.say(f"going on with {self.partial}")
        if self.purifies:
            return self._purifier(state, x, y, reporter)
        encoder = {}
        if self.recipe.pretraining and not (state and state["stage"] == "fine-tuning"):
            defense = self._build("pre-training")
            pretrained = defense.classifier
            stage = pretraining_stage(pretrained, self.recipe.pretraining, self.device, defense.image_size)
            self._train(stage, state, x, y, reporter)
            encoder = pretrained.state_dict()
        config = self.recipe.finetuning
        defense = self._build("fine-tuning", config.drop_path)
        if self.encoder:
            encoder = read_encoder(self.encoder, defense.classifier)
        hand_over(encoder, defense.classifier)
        average = self._build("fine-tuning")
        stage = finetuning_stage(defense.classifier, average.classifier, config)
        self._train(stage, state if state and state["stage"] == "fine-tuning" else None, x, y, reporter)
        return average if config.average else defense

    def _purifier(self, state: dict | None, x: Tensor, y: Tensor, reporter: Reporter) -> Purifier:
        """The purifier after every stage of the recipe."""
        torch.manual_seed(seed_for(self.recipe.seed, "start", "purifier"))
        purifier = build_purifier(self.spec).to(self.device)
        if self.encoder:
            load_into(purifier, purifier.fitted(read_state(self.encoder)), self.encoder)
        methods = [find_purifier_training(config.method) for config in self.recipe.purifying]
        for method in methods:
            method.check()
        for number, (method, config) in enumerate(zip(methods, self.recipe.purifying, strict=True), 1):
            torch.manual_seed(seed_for(self.recipe.seed, "learner", number))
            try:
                learner = method.learner(purifier).to(self.device)
            except ValueError as error:
                raise UsageError(f"{config.method} does not suit {self.spec.name}: {error}") from error
            stage = purifier_stage(number, learner, method, config)
            begun = state if state and state["stage"] == stage.name else None
            if begun or not state:
                torch.manual_seed(seed_for(self.recipe.seed, "images", number))
                self._train(stage, begun, method.images(learner, x, y), y, reporter)
                state = None
                if stage.average:
                    learner.load_state_dict(stage.average[0].state_dict())
            # A stage that was over before an interruption left its weights in the next one's state.
            method.finish(learner, purifier)
        return purifier.eval()

    def _build(self, purpose: str, drop_path: float = 0.0) -> Defense:
        """The card's network, its start decided by the seed and the purpose."""
        extra = {"drop_path": drop_path} if drop_path else {}
        torch.manual_seed(seed_for(self.recipe.seed, "start", purpose))
        spec = specs.Spec(self.spec.name, {**self.spec.arguments, **extra})
        defense = specs.build(spec, registry.defenses.get(spec.name))
        assert isinstance(defense, Defense)
        return defense.to(self.device)

    def _train(self, stage: Stage, state: dict | None, x: Tensor, y: Tensor, reporter: Reporter) -> None:
        if state:
            stage.restore(state["progress"])
        reporter.begin(stage.name, stage.epochs, stage.done)
        if not self.logging:
            self.log.begin(stage.name, stage.done)
            self.logging = True
        for loss in stage.run(x, y, self.recipe, self.team):
            reporter.epoch(stage.done, loss)
            first = stage.optimizer.param_groups[0]
            self.log.epoch(stage.name, stage.done, loss, first["lr"] / first["lr_scale"], self.seconds())
            if self.team.leads and time.monotonic() - self.saved >= SAVE_EVERY_SECONDS:
                self.save(stage)

    def finish(self, trained: Defense | Purifier, data_dir: str | None, reporter: Reporter) -> TrainResult:
        """Write the checkpoint, measure it on the test split and clear away what was interrupted."""
        stored = trained.classifier if isinstance(trained, Defense) else trained
        state = {key: value.cpu().contiguous() for key, value in stored.state_dict().items()}
        if self.recipe.stored == "fp16":
            state = {
                key: value.half() if value.is_floating_point() else value for key, value in state.items()
            }
        stored.load_state_dict(state)
        content = save(state)
        write_file(self.path, content, OPTION)
        n = clean = robust = 0
        if defense := self._whole(trained, reporter):
            torch.manual_seed(seed_for(self.recipe.seed, "evaluation"))
            test = load_dataset(self.card.dataset, "test", self.recipe.measured or None, data_dir)
            n, radius = len(test), Threat.parse(self.recipe.evaluation).eps
            clean, robust = measure(defense.eval(), test.x[:], test.y, radius)
        self.partial.unlink(missing_ok=True)
        return TrainResult(
            path=self.path,
            sha256=hashlib.sha256(content).hexdigest(),
            n=n,
            clean=clean,
            robust=robust,
            threat=self.recipe.evaluation,
            seed=self.recipe.seed,
            seconds=self.seconds(),
        )

    def _whole(self, trained: Defense | Purifier, reporter: Reporter) -> Defense | None:
        """What can be attacked: a purifier needs the card's classifier, which may not be trained yet."""
        if isinstance(trained, Defense):
            return trained
        if not self.card.classifier:
            return None
        try:
            inner = load(self.card.classifier, self.card.dataset, device=self.device).defense
        except ResourceError as error:
            reporter.say(f"not measured: {error}")
            return None
        return with_purifier(trained, inner)

    def save(self, stage: Stage) -> None:
        """Save the state of the training."""
        state = {"stage": stage.name, "seconds": self.seconds(), "progress": stage.state()}
        write_partial(self.partial, state, self.fingerprint)
        self.saved = time.monotonic()


def fingerprint(builder: specs.Spec, recipe: Recipe, data: str) -> str:
    """What an interrupted training must agree in to be gone on with: network, recipe, seed and data."""
    decides = json.dumps([str(builder), decisive(recipe), data], sort_keys=True)
    return hashlib.sha256(decides.encode()).hexdigest()


def hand_over(encoder: dict[str, Tensor], classifier: nn.Module) -> None:
    """Start a classifier from a pre-trained encoder, as MIMIR does: the rest and the head stay new.

    The final norm of the pre-training is no part of `encoder`; the head is drawn from a normal distribution
    of deviation 0.02, truncated.
    """
    known = {key: value for key, value in encoder.items() if not key.startswith(HEAD)}
    missing, unexpected = classifier.load_state_dict(known, strict=False)
    assert not unexpected and (not known or all(key.startswith(HEAD) for key in missing))
    head = getattr(classifier, "head", None)
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
