"""Training of a card's checkpoint by its recipe: resumable at any time and reproducible from the seed."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.io import write_file
from robench.data import Images, load_dataset
from robench.defenses import Defense, Purifier, build_purifier, checkpoint_of, find_card, load
from robench.defenses._base import with_purifier
from robench.defenses._checkpoints import load_into, read_state, sha256_of
from robench.defenses._suitability import check_network, check_purifier
from robench.engine.backing_off import backing_off
from robench.engine.device import choose_device
from robench.threats.threat import Threat, check_images
from robench.training.batches import Pixels, batches_of, default_workers, is_streamed
from robench.training.distributed import ProcessGroup
from robench.training.draws import seed_for
from robench.training.generated import Mixture, with_generated
from robench.training.log import Log
from robench.training.measure import measure
from robench.training.partial import OPTION, check_writable, fingerprint, read_partial, write_partial
from robench.training.pretrained import load_encoder, pretrained_file, read_encoder
from robench.training.progress import Reporter
from robench.training.purifier_training import find_purifier_training
from robench.training.recipe import Recipe, choose_method, never_reached, read_recipe
from robench.training.result import TrainResult
from robench.training.stages import Stage, finetuning_stage, pretraining_stage, purifier_stage

# Interval between saves. If a save takes longer than half a second, it is longer, so that training is not slowed down.
SAVE_EVERY_SECONDS = 10.0
# Number of steps between two questions whether to save. Several processes ask rank 0, and wait for each other.
ASK_EVERY_STEPS = 16
# Images per network call of the final evaluation.
_MEASURED = 512


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
    workers: int | None = None,
    generated: str | Path | None = None,
) -> TrainResult:
    """Train the defense of a card by its `[recipe]` and evaluate it on the test split.

    The state of a running training is saved in `<output>.partial`. Calling the function again after an
    interruption resumes from it. On the same device and number of threads, the final weights are bit-identical to
    those of an uninterrupted training.

    Under `torchrun`, the processes split every batch, so the recipe's batch size is the total over all processes.
    Random numbers do not depend on the number of processes, so the losses are those of one process up to rounding,
    unless the loss couples rows of a batch (`mi_group` = 0, batch normalization). Rank 0 writes the files, which must
    lie on a shared file system.

    Large datasets and pictures are read and augmented by worker processes while the network trains.

    Args:
        card: name of a card, name of a family or path of a card.
        data_dir: folder with the files of the dataset.
        output: the checkpoint, `.safetensors`; None for `<card name>.safetensors` in the current folder.
        seed: seed to use instead of the recipe's.
        device: torch device; "auto" uses CUDA if available.
        progress: whether to show the progress on stderr.
        fresh: ignore an interrupted training and start over.
        csv: CSV file to log epochs to (stage, epoch, loss, lr, seconds); None for no log.
        workers: number of processes that read images for each training process; None for one per CPU core, at most 8.
        generated: NumPy archive of generated images, for a recipe with `generated`; see `generated.with_generated`.
        pretrained: checkpoint to start from instead of the recipe's `start` or pre-training: a masked
            pre-training, a classifier or a purifier.

    Raises:
        UsageError: if the card or device is unknown, the card has no recipe, or the recipe is invalid.
        ResourceError: if data is missing, the output cannot be written, or the partial file belongs to another
            training.
    """
    resolved = find_card(card)
    if resolved is None or not resolved.recipe:
        raise UsageError(f"{card} has no recipe: give a card with a [recipe] table")
    recipe = read_recipe(resolved.recipe, str(resolved.path))
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    processes = ProcessGroup.from_environment()
    torch_device = choose_device(processes.device(device))
    path = Path(output) if output else Path(f"{resolved.name}.safetensors")
    if path.suffix != ".safetensors":
        raise UsageError(f"the output {path} must end in .safetensors")
    images = load_dataset(resolved.dataset, "train", recipe.samples or None, data_dir)
    check_images(images.x, images.y)
    x, y, digest = images.x, images.y, ""
    mixture = Mixture(len(images), recipe.generated) if recipe.generated else None
    if bool(generated) != bool(mixture):
        raise UsageError(
            f"{card}: a recipe with `generated` needs --generated FILE with generated images, and no other recipe may"
            " have it"
        )
    if generated:
        x, y, digest = with_generated(images, Path(generated))
    encoder = None
    data = f"{digest or images.digest} {torch_device.type}"
    if pretrained or recipe.start:
        encoder = pretrained_file(pretrained) if pretrained else checkpoint_of(recipe.start)
        recipe = replace(recipe, pretraining=None)
        data += f" from {sha256_of(encoder)}"
    run = _Run(resolved, recipe, path, torch_device, data, processes, Path(csv) if csv else None, encoder)
    run.images, run.mixture = images, mixture
    run.workers = default_workers(processes.local_size) if workers is None else workers
    if processes.is_main:
        check_writable(path)
        if resolved.classifier or not run.is_purifier:  # the test split must not be found missing at the end
            load_dataset(resolved.dataset, "test", 1, data_dir)
        if fresh:
            run.partial.unlink(missing_ok=True)
    processes.connect(torch_device)
    # Training draws from torch's global generators, so the caller's state is restored afterwards.
    cuda = [torch_device] if torch_device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        threads(recipe.threads),
        Reporter(progress and processes.is_main) as reporter,
    ):
        for line in never_reached(recipe):
            reporter.say(line)
        trained = run.train(x, y, reporter)
        return run.finish(trained, data_dir, reporter)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of torch's CPU threads inside the block; 0 leaves it unchanged."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count or previous)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


class _Run:
    """A training in progress: its settings, stages and saved state."""

    images: Images

    def __init__(
        self,
        card: Card,
        recipe: Recipe,
        path: Path,
        device: torch.device,
        data: str,
        processes: ProcessGroup,
        log: Path | None,
        encoder: Path | None = None,
    ):
        self.card = card
        self.path = path
        self.encoder = encoder
        self.processes = processes
        self.log = Log(log if processes.is_main else None)
        self.logging = False
        self.spec = card.spec
        self.is_purifier = self.spec.name in registry.purifiers
        if self.is_purifier != bool(recipe.purifying):
            raise UsageError(
                f"{card.name}: a purifier needs stages [[recipe.purifying]], and a classifier must have none"
            )
        if recipe.finetuning.probe and not encoder:
            raise UsageError(
                f"{card.name}: a probe needs an encoder: give recipe.start, or a file with --pretrained"
            )
        starts = encoder or recipe.pretraining
        if starts and not self.is_purifier and choose_method(recipe.finetuning).sets_weights:
            raise UsageError(
                f"{card.name}: {recipe.finetuning.method} sets the initial weights: leave out recipe.start, "
                "[recipe.pretraining] and --pretrained"
            )
        self.recipe = recipe
        self.device = device
        self.partial = path.with_name(path.name + ".partial")
        size = processes.size
        self.fingerprint = fingerprint(self.spec, recipe, data + (f" x{size}" if size > 1 else ""))
        self.seconds_before = 0.0
        self.workers = 0
        self.mixture: Mixture | None = None
        self.started = self.saved = time.monotonic()
        self.interval = SAVE_EVERY_SECONDS

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def train(self, x: Pixels, y: Tensor, reporter: Reporter) -> Defense | Purifier:
        """Train the defense, or the purifier, from the start or from the saved state."""
        self.processes.wait()  # until rank 0 has deleted the partial file, if --fresh is given
        state = read_partial(self.partial, self.fingerprint, reporter.say)
        self.processes.wait()  # until all processes have read it, before rank 0 overwrites it
        saved = (state["stage"], state["progress"]["done"], state["progress"]["steps"]) if state else ()
        self.processes.check_same((self.fingerprint, *saved))
        if state:
            self.seconds_before = state["seconds"]
            reporter.say(f"resuming from {self.partial}")
        if self.is_purifier:
            return self._train_purifier(state, x, y, reporter)
        finetuning_state = state if state and state["stage"] == "fine-tuning" else None
        encoder = {}
        if self.recipe.pretraining and not finetuning_state:
            defense = self._build("pre-training")
            pretrained = defense.classifier
            stage = pretraining_stage(pretrained, self.recipe.pretraining, self.device, defense.image_size)
            self._train_stage(stage, state, x, y, reporter)
            encoder = pretrained.state_dict()
        config = self.recipe.finetuning
        defense = self._build("fine-tuning", config.drop_path)
        if self.encoder:
            encoder = read_encoder(self.encoder, defense.classifier)
        load_encoder(encoder, defense.classifier, config.head_std)
        average = self._build("fine-tuning")
        stage = finetuning_stage(defense.classifier, average.classifier, config, defense.num_classes)
        self._train_stage(stage, finetuning_state, x, y, reporter)
        return average if config.average else defense

    def _train_purifier(self, state: dict | None, x: Pixels, y: Tensor, reporter: Reporter) -> Purifier:
        """Train a purifier by all stages of the recipe."""
        torch.manual_seed(seed_for(self.recipe.seed, "start", "purifier"))
        purifier = build_purifier(self.spec).to(self.device)
        if self.encoder:
            load_into(purifier, purifier.fitted(read_state(self.encoder)), self.encoder)
        check_purifier(self.card.name, purifier, self.images)
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
            stage_state = state if state and state["stage"] == stage.name else None
            if stage_state or not state:
                torch.manual_seed(seed_for(self.recipe.seed, "images", number))
                if not is_streamed(x):
                    x, y = x.to(self.device), y.to(self.device)
                self._train_stage(stage, stage_state, method.images(learner, x, y), y, reporter)
                state = None
                if stage.average:
                    learner.load_state_dict(stage.average[0].state_dict())
            # A stage that finished before the interruption is skipped: the next stage's state has its weights.
            method.finish(learner, purifier)
        return purifier.eval()

    def _build(self, purpose: str, drop_path: float = 0.0) -> Defense:
        """Build the card's network with initial weights that follow from the seed and the purpose."""
        extra = {"drop_path": drop_path} if drop_path else {}
        torch.manual_seed(seed_for(self.recipe.seed, "start", purpose))
        spec = specs.Spec(self.spec.name, {**self.spec.arguments, **extra})
        defense = specs.build(spec, registry.defenses.get(spec.name))
        assert isinstance(defense, Defense)
        if defense.mean is not None:
            raise UsageError(f"{self.card.name}: training takes pixels in [0, 1]: leave mean and std out")
        check_network(self.card.name, defense, self.images)
        return defense.to(self.device)

    def _train_stage(
        self, stage: Stage, state: dict | None, x: Pixels, y: Tensor, reporter: Reporter
    ) -> None:
        if state:
            stage.restore(state["progress"])
        reporter.begin(stage.name, stage.epochs, stage.done)
        if not self.logging:
            self.log.begin(stage.name, stage.done, resumed=bool(state))
            self.logging = True
        images = batches_of(x, y, stage.augmentation, self.device, self.workers, self.mixture)
        asked = 0

        def after_step() -> None:
            nonlocal asked
            asked += 1
            if self.processes.size == 1 or asked % ASK_EVERY_STEPS == 0:
                self.save_if_due(stage)

        for loss in stage.run(images, self._recipe_of(stage), self.processes, after_step):
            reporter.epoch(stage.done, loss)
            if stage.parts > stage.accumulate:
                reporter.say(f"{self.device} ran out of memory: {stage.parts} micro-batches for each batch")
            group = stage.optimizer.param_groups[0]
            self.log.epoch(stage.name, stage.done, loss, group["lr"] / group["lr_scale"], self.seconds())
            self.save_if_due(stage)

    def _recipe_of(self, stage: Stage) -> Recipe:
        """The recipe with the crops of a stage."""
        crop = self.recipe.finetuning.resized_crop if stage.name == "fine-tuning" else 0.0
        return replace(self.recipe, resized_crop=crop) if crop else self.recipe

    def finish(self, trained: Defense | Purifier, data_dir: str | None, reporter: Reporter) -> TrainResult:
        """Write the checkpoint, evaluate it on the test split and delete the partial file."""
        module = trained.classifier if isinstance(trained, Defense) else trained
        state = {key: value.cpu().contiguous() for key, value in module.state_dict().items()}
        if self.recipe.stored == "fp16":
            state = {
                key: value.half() if value.is_floating_point() else value for key, value in state.items()
            }
        module.load_state_dict(state)
        content = save(state)
        if self.processes.is_main:
            write_file(self.path, content, OPTION)
        n = clean = robust = 0
        if defense := self._evaluated_defense(trained, reporter):
            test = load_dataset(self.card.dataset, "test", self.recipe.measured or None, data_dir)
            n, radius = len(test), Threat.parse(self.recipe.evaluation).eps

            def measured(size: int) -> tuple[int, ...]:
                torch.manual_seed(seed_for(self.recipe.seed, "evaluation"))
                return measure(defense.eval(), test.x, test.y, radius, size, self.processes)

            clean, robust = backing_off(measured, _MEASURED, self.device, reporter.say)
        if self.processes.is_main:
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

    def _evaluated_defense(self, trained: Defense | Purifier, reporter: Reporter) -> Defense | None:
        """The defense to evaluate; None for a purifier whose classifier is not given or not trained yet."""
        if isinstance(trained, Defense):
            return trained
        if not self.card.classifier:
            return None
        try:
            classifier = load(self.card.classifier, self.card.dataset, device=self.device).defense
        except ResourceError as error:
            reporter.say(f"not evaluated: {error}")
            return None
        return with_purifier(trained, classifier)

    def save_if_due(self, stage: Stage) -> None:
        """Save if rank 0 finds that it is time to; the other processes wait until it has."""
        due = self.processes.is_main and time.monotonic() - self.saved >= self.interval
        if not self.processes.broadcast(due):
            return
        if self.processes.is_main:
            self.save(stage)
        self.processes.wait()

    def save(self, stage: Stage) -> None:
        """Save the state of the training to the partial file."""
        started = time.monotonic()
        state = {"stage": stage.name, "seconds": self.seconds(), "progress": stage.state()}
        write_partial(self.partial, state, self.fingerprint)
        self.saved = time.monotonic()
        self.interval = SAVE_EVERY_SECONDS * max(1.0, 2 * (self.saved - started))
