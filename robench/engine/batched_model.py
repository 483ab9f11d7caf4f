"""Calls of a network, with few batch shapes, in one global state of torch and without weight gradients.

A network's arithmetic depends on the shape of its input, not on the other images of the batch. Every call therefore
has exactly `batch_size` rows, padded where necessary, or fewer where this changes no bit (`BatchShapes`). A network
receives a copy of the images, which it may modify, and its logits are copied before the next call.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from robench.attacks._base import Answer, Objective, OnFeatures, Rows, finite
from robench.core.errors import RobenchError, UsageError
from robench.core.precision import computing
from robench.core.rng import Stream, noise
from robench.core.torch_state import evaluating, model_device, standard_state
from robench.data._lazy_images import LazyImages
from robench.engine.backing_off import KINDS, BatchSize, out_of_memory
from robench.engine.batch_shapes import BatchShapes
from robench.engine.gradients import cheapest, gradient
from robench.engine.packing import Who, answer_of_lanes, logits_of_draws, pad
from robench.engine.refusals import Model, check_logits, check_model, model_error

T = TypeVar("T")
Both = Callable[[Tensor, str], tuple[Tensor, tuple[Tensor, ...]]]

# Logits and features.
Features = tuple[Tensor, tuple[Tensor, ...]]
# Function of logits, images and features to the loss.
Loss = Callable[[Tensor, Tensor, tuple[Tensor, ...]], Tensor]

# Gradients of several values at a point are kept together up to this many bytes a row, see `Cheapest`.
_STACKED = 1 << 25
# Number of draws that decide a verdict on a randomized defense.
DRAWS = 10


@contextlib.contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Set evaluation mode, disable weight gradients and set torch's standard state inside the block; restore all after.

    Raises:
        UsageError: if the model cannot be called.
    """
    check_model(model)
    if not isinstance(model, nn.Module):
        with standard_state():
            yield
        return
    # Frozen TorchScript modules have no attribute `training`.
    training = {module: module.training for module in model.modules() if hasattr(module, "training")}
    trainable = [p for p in model.parameters() if p.requires_grad]
    if hasattr(model, "training"):
        evaluating(model)
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with standard_state():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


class Network:
    """A model that is called on a fixed number of rows.

    Args:
        model: function of images (N, C, H, W) in [0, 1] to logits (N, K).
        batch_size: number of rows per call.
        precision: "fp32" or "bf16".
        stream: random numbers of a randomized model; None for a deterministic model.
        backs_off: whether `logits` and `features` use smaller batches while memory runs out. Otherwise they raise, for
            callers that must have the same batch size in all calls.
        shapes: the batch sizes of another network with the same model, precision and batch size.
    """

    def __init__(
        self,
        model: Model,
        batch_size: int,
        precision: str = "fp32",
        stream: Stream | None = None,
        backs_off: bool = False,
        shapes: BatchShapes | None = None,
    ):
        self.model = model
        self.batch_size = batch_size
        self.size = BatchSize(batch_size) if backs_off else None
        self.precision = precision
        self.stream = stream
        self.shapes = shapes or BatchShapes(batch_size)
        # Number of rows sent to the model so far, forward and backward.
        self.sent = [0, 0]
        # Whether the model must be called with gradients enabled, even when no gradient is needed.
        self.enables_grad = False

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K), float32, of a batch of any size, with a graph if gradients are enabled.

        For attacks that call the network themselves; a randomized model draws its own noise.
        """
        zero = x.new_zeros(1, dtype=torch.int64)
        who = (zero, zero, zero)
        return self._call(x, who) if torch.is_grad_enabled() else self._without_graph(self._call, x, who)

    def logits(self, x: Tensor, ids: Tensor, draw: int | Tensor = 0) -> Tensor:
        """Logits (N, K), float32, of any number of images, padded to whole batches.

        Args:
            ids: ids of the samples, (N,) int64.
            draw: number of the noise draw, of all images or of each, (N,) int64; with the ids it determines the noise
                of a randomized model.
        """
        return self._batches(x, ids, draw, self._call)

    def features(self, x: Tensor, ids: Tensor, layers: str) -> Tensor:
        """Features of any number of images, (N, F) float32: the flattened features of each layer, concatenated.

        Args:
            ids: (N,) int64, as for `logits`.
            layers: "last" or "all".

        Raises:
            UsageError: if the model has no features.
        """

        def flat(batch: Tensor, who: Who) -> Tensor:
            return torch.cat(
                [layer.flatten(1) for layer in self._call_with_features(batch, who, layers)[1]], 1
            )

        return self._batches(x, ids, 0, flat)

    def _batches(
        self, x: Tensor, ids: Tensor, draw: int | Tensor, call: Callable[[Tensor, Who], Tensor]
    ) -> Tensor:
        outputs, start = [], 0
        while start < len(x):
            size = self.size.current if self.size else self.batch_size
            batch = x[start : start + size]
            sample = pad(ids[start : start + size], size)
            draws = (
                pad(draw[start : start + size], size)
                if isinstance(draw, Tensor)
                else torch.full_like(sample, draw)
            )
            who = (sample, torch.zeros_like(sample), draws)
            try:
                # Copied, because a model may overwrite its previous logits.
                outputs.append(self._without_graph(call, pad(batch, size), who)[: len(batch)].clone())
            except KINDS as error:
                if self.size is None:
                    raise
                self.size.reduce(error, x.device)
                continue
            if self.size:
                self.size.fits()
            start += size
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def answer(
        self,
        x: Tensor,
        objective: Objective | OnFeatures | None,
        rows: Rows,
        eot: int,
        queries: Tensor,
        lanes: Tensor | None = None,
    ) -> Answer:
        """Logits, loss and gradient at `x` (S, C, H, W), averaged over `eot` draws.

        Args:
            rows: S rows; for an objective on features, S is `batch_size`.
            queries: number of earlier passes of each row, (S,) int64, which determine the noise of a randomized model.
            lanes: lanes to evaluate, int64; the answer of other lanes may be zero. None for all.
        """
        if not isinstance(objective, OnFeatures):
            return answer_of_lanes(self, x, objective, rows, eot, queries, lanes)
        features, layers = objective, objective.layers
        answers = [
            self._answer(
                x,
                lambda x, who: self._call_with_features(x, who, layers),
                lambda logits, point, layers: features(logits, rows, point, layers),
                (rows.sample, rows.rank, queries + draw),
            )
            for draw in range(eot)
        ]
        if eot == 1:
            return answers[0]
        logits, loss, grad = (
            torch.stack([getattr(answer, name) for answer in answers]).mean(0)
            for name in ("logits", "loss", "grad")
        )
        return Answer(x, logits, loss, grad, torch.stack([cast(Tensor, a.broken) for a in answers]).any(0))

    def evaluate(
        self,
        x: Tensor,
        objective: Callable[[Tensor], Tensor] | None,
        who: Who,
        cost: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Answer:
        """Logits, loss and gradient of one batch; `cost` is that of `Cheapest`, or None if all gradients are needed."""
        if objective is None:
            logits = self._without_graph(self._call, x, who)
            return Answer(x, logits.clone(), x.new_empty(0), x.new_empty(0))
        loss = objective
        return self._answer(
            x, lambda x, who: (self._call(x, who), ()), lambda logits, point, layers: loss(logits), who, cost
        )

    def _answer(
        self,
        x: Tensor,
        call: Callable[[Tensor, Who], Features],
        loss_of: Loss,
        who: Who,
        cost: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Answer:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            logits, features = call(point, who)
            loss = loss_of(logits, point, features)
            columns = loss.unbind(1) if loss.dim() == 2 else (loss,)
            self.sent[1] += len(x) * len(columns)
            with self._model_errors(x, "the model's gradient"):
                size = loss.shape[1:].numel() * point.shape[1:].numel() * point.element_size()
                if cost is not None and size > _STACKED:
                    return Answer(x, logits.detach().clone(), loss.detach(), *cheapest(cost, loss, point))
                grads = [
                    gradient(column, point, retain=i + 1 < len(columns)) for i, column in enumerate(columns)
                ]
        grad = torch.stack(grads, 1) if loss.dim() == 2 else grads[0]
        return Answer(x, logits.detach().clone(), loss.detach(), *finite(grad))

    def _without_graph(self, call: Callable[[Tensor, Who], T], x: Tensor, who: Who) -> T:
        """The result of `call`, computed without a graph.

        A model that computes gradients in its forward pass without enabling them is called with gradients enabled.
        """
        if self.enables_grad:
            with torch.enable_grad():
                return call(x, who)
        try:
            with torch.no_grad():
                return call(x, who)
        except RobenchError as error:
            try:
                with torch.enable_grad():
                    answer = call(x, who)
            except RobenchError:
                raise error from error.__cause__
            self.enables_grad = True
            return answer

    def _call(self, x: Tensor, who: Who) -> Tensor:
        return _checked(self._run(self.model, x, who), x)

    def _run(self, function: Callable[[Tensor], T], x: Tensor, who: Who) -> T:
        """Call a function of the model on a copy of the images; every call of the model is made here.

        Raises:
            UsageError: if the model raises an exception; the message quotes it in one line.
        """
        with (
            self._model_errors(x),
            model_device(x.device),
            self._noise(who, x.device),
            computing(self.precision, x.device),
        ):
            self.sent[0] += len(x)
            return function(x.clone())

    @contextlib.contextmanager
    def _model_errors(self, x: Tensor, source: str = "the model") -> Iterator[None]:
        """Convert exceptions inside the block to a UsageError about the model, except when memory is exhausted."""
        try:
            yield
        except RobenchError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise model_error(error, self.model, x, source) from error

    def _call_with_features(self, x: Tensor, who: Who, layers: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (N, K) and features (N, ...), float32; from one pass if the model supports it."""
        both: Both | None = getattr(self.model, "logits_and_features", None)
        if both is not None:
            logits, features = self._run(lambda x: both(x, layers), x, who)
        else:
            features_only: Callable[[Tensor], Tensor] | None = getattr(self.model, "features", None)
            if not callable(features_only):
                raise UsageError(
                    "this model has no features(x), which the attack needs: wrap its network in "
                    "robench.defenses.Defense, or use attacks on the logits, such as autoattack"
                )
            logits = self._call(x, who)
            # With the same noise, because features and logits belong to one draw.
            features = (self._run(features_only, x, who),)
        if not all(isinstance(layer, Tensor) and len(layer) == len(x) for layer in features):
            raise UsageError(f"features(x) of this model must be tensors ({len(x)}, ...): one row per image")
        return _checked(logits, x), tuple(layer.float() for layer in features)

    @contextlib.contextmanager
    def _noise(self, who: Who, device: torch.device) -> Iterator[None]:
        """Provide the random numbers of each row inside the block, see `robench.core.rng`.

        Torch's generators are seeded from the first row and restored afterwards. The noise of models that use them
        depends on the batch.
        """
        if self.stream is None or who is None:
            yield
            return
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            sample, rank, step = torch.stack([part[:1] for part in who]).cpu().unbind()
            words = self.stream.bits(sample, rank, step, 2)[0]
            # torch's own function seeds every device, and formats the stack for each that is not in use.
            generator = torch.default_generator if device.type == "cpu" else torch
            generator.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
            with noise(self.stream, *(part.to(device) for part in who)):
                yield


def _checked(logits: Tensor, x: Tensor) -> Tensor:
    """Validated logits, float32, on the device of the images."""
    check_logits(logits, len(x))
    # Inference tensors cannot enter a graph; a copy can.
    logits = logits.clone() if logits.is_inference() else logits
    return logits.to(x.device, torch.float32)


def undefined(logits: Tensor) -> Tensor:
    """Rows with a NaN logit, which have no prediction, bool (N,)."""
    return logits.isnan().any(1)


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Rows that are not classified as `y`, bool (N,). A NaN logit counts as wrong; argmax would return its index."""
    return (logits.argmax(1) != y) | undefined(logits)


def answer(logits: Tensor) -> Tensor:
    """The predicted class of each row, int64 (N,); -1 if a logit is NaN."""
    return torch.where(undefined(logits), -1, logits.argmax(1))


def vote(answers: Tensor) -> Tensor:
    """The majority vote of (N, draws) predictions, int64 (N,); the smaller class on ties."""
    return answers.mode(1).values


class Judge:
    """The full defense in fp32, which decides whether an image fools it.

    Args:
        network: the defense.
        draws: number of noise draws: 1, or DRAWS for a randomized defense.
    """

    def __init__(self, network: Network, draws: int = 1):
        self.network = network
        self.draws = draws

    def answers(self, x: Tensor, ids: Tensor) -> Tensor:
        """The prediction of each draw, int64 (N, draws); -1 if a logit is NaN."""
        return torch.stack([answer(self.network.logits(x, ids, draw)) for draw in range(self.draws)], 1)

    def answers_of(
        self, x: Tensor | LazyImages, ids: Tensor, device: torch.device, rows: Tensor | None = None
    ) -> Tensor:
        """The predictions on any number of images, moved to the device batch by batch; int64 (N, draws) on the CPU.

        Args:
            x: images, (N, C, H, W), or (M, C, H, W) if `rows` is given.
            ids: ids of the samples, (N,).
            rows: indices of the N images in `x`.
        """
        size, answers = self.network.batch_size, [torch.zeros(0, self.draws, dtype=torch.int64)]
        for start in range(0, len(ids), size):
            batch = slice(start, start + size)
            images = x[batch] if rows is None else x[rows[batch]]
            answers.append(self.answers(images.to(device), ids[batch].to(device)).cpu())
        return torch.cat(answers)

    def fooled(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """The number of draws that misclassify each image, int64 (N,), 0 .. draws."""
        if self.network.size:
            return (self.answers(x, ids) != y[:, None]).sum(1)
        logits = logits_of_draws(self.network, x, ids, self.draws)
        return wrong(logits.flatten(0, 1), y.repeat(self.draws)).view(self.draws, -1).sum(0)
