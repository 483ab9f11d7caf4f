"""Where a network is called: always on one batch shape and in one state of torch, without weight gradients.

A network's arithmetic depends on the shape it is called with, not on who else is in the batch. So every call
here has exactly `batch_size` rows; what is missing is padded. A network is given a copy of the images, which it may
change, and its logits are copied before it is called again.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from robench.attacks._base import Answer, Objective, OnFeatures, Rows, finite
from robench.core.errors import RobenchError, UsageError
from robench.core.precision import computing
from robench.core.rng import Stream, noise
from robench.core.torch_state import model_device, standard_state
from robench.data._lazy_images import LazyImages
from robench.engine.refusals import Model, check_logits, check_model, model_error

T = TypeVar("T")
Both = Callable[[Tensor, str], tuple[Tensor, tuple[Tensor, ...]]]

# For every row: its sample, its rank, and the number of the draw; (batch_size,) int64 each.
Who = tuple[Tensor, Tensor, Tensor]

# How many draws of a randomised defense decide a verdict.
DRAWS = 10
# What allocators, cuBLAS and cuDNN say when there is no memory left.
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC(ATION)?_FAILED", re.IGNORECASE)


@contextlib.contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Evaluation mode, no weight gradients and torch's standard state, all restored afterwards.

    Raises:
        UsageError: for a model that cannot be called.
    """
    check_model(model)
    if not isinstance(model, nn.Module):
        with standard_state():
            yield
        return
    # Frozen TorchScript is for evaluation alone, and says nothing of it.
    training = {module: module.training for module in model.modules() if hasattr(module, "training")}
    learning = [p for p in model.parameters() if p.requires_grad]
    if hasattr(model, "training"):
        model.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with standard_state():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)


class Network:
    """A model called on a fixed number of rows.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        batch_size: rows a call.
        precision: "fp32", or "bf16" to search in reduced precision.
        stream: random numbers for a randomised model, or None for a deterministic one.
    """

    def __init__(self, model: Model, batch_size: int, precision: str = "fp32", stream: Stream | None = None):
        self.model = model
        self.batch_size = batch_size
        self.precision = precision
        self.stream = stream
        # Whether the model has to be called with gradients enabled even where none is wanted.
        self.enables_grad = False

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K), float32, of a batch of any size, with a graph where gradients are enabled.

        It is for attacks that call the network themselves; a randomised model draws its own noise.
        """
        none = x.new_zeros(1, dtype=torch.int64)
        who = (none, none, none)
        return self._call(x, who) if torch.is_grad_enabled() else self._without_graph(self._call, x, who)

    def logits(self, x: Tensor, ids: Tensor, draw: int = 0) -> Tensor:
        """Logits (N, K), float32, of any number of images, padded to whole batches.

        Args:
            ids: (N,) int64, of the samples: they and `draw` decide a randomised model's noise.
        """
        return self._batches(x, ids, draw, self._call)

    def features(self, x: Tensor, ids: Tensor, layers: str) -> Tensor:
        """Features of any number of images, each layer's flattened, one after the other, (N, F) float32.

        Args:
            ids: (N,) int64, of the samples, as for `logits`.
            layers: "last" or "all".

        Raises:
            UsageError: when the model offers none.
        """

        def flat(part: Tensor, who: Who) -> Tensor:
            return torch.cat([each.flatten(1) for each in self._call_inside(part, who, layers)[1]], 1)

        return self._batches(x, ids, 0, flat)

    def _batches(self, x: Tensor, ids: Tensor, draw: int, call: Callable[[Tensor, Who], Tensor]) -> Tensor:
        parts = []
        for start in range(0, len(x), self.batch_size):
            part = x[start : start + self.batch_size]
            sample = pad(ids[start : start + self.batch_size], self.batch_size)
            who = (sample, torch.zeros_like(sample), torch.full_like(sample, draw))
            # The copy stays what it is when a model writes its next logits over these.
            parts.append(self._without_graph(call, pad(part, self.batch_size), who)[: len(part)].clone())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def answer(
        self, x: Tensor, objective: Objective | OnFeatures | None, rows: Rows, eot: int, queries: Tensor
    ) -> Answer:
        """What an attack asked for at `x` (batch_size, C, H, W), averaged over `eot` draws.

        Args:
            queries: (batch_size,) int64, passes that each row has had: they decide a randomised model's noise.
        """
        answers = [
            self._answer(x, objective, rows, (rows.sample, rows.rank, queries + draw)) for draw in range(eot)
        ]
        if eot == 1:
            return answers[0]
        broken = [a.broken for a in answers if a.broken is not None]
        return Answer(
            x,
            torch.stack([a.logits for a in answers]).mean(0),
            torch.stack([a.loss for a in answers]).mean(0),
            torch.stack([a.grad for a in answers]).mean(0),
            torch.stack(broken).any(0) if broken else None,
        )

    def _answer(self, x: Tensor, objective: Objective | OnFeatures | None, rows: Rows, who: Who) -> Answer:
        if objective is None:
            logits = self._without_graph(self._call, x, who)
            return Answer(x, logits.clone(), x.new_empty(0), x.new_empty(0))
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            if isinstance(objective, OnFeatures):
                logits, features = self._call_inside(point, who, objective.layers)
                loss = objective(logits, rows, point, features)
            else:
                logits = self._call(point, who)
                loss = objective(logits, rows)
            columns = loss.unbind(1) if loss.dim() == 2 else (loss,)
            with self._blamed(x, "the model's gradient"):
                grads = [
                    _gradient(column.sum(), point, retain=i + 1 < len(columns))
                    for i, column in enumerate(columns)
                ]
        grad = torch.stack(grads, 1) if loss.dim() == 2 else grads[0]
        return Answer(x, logits.detach().clone(), loss.detach(), *finite(grad))

    def _without_graph(self, call: Callable[[Tensor, Who], T], x: Tensor, who: Who) -> T:
        """What `call` gives without a graph.

        A model that takes gradients inside forward, and does not enable them there, is called with them enabled.
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
        return _checked(self._asked(self.model, x, who), x)

    def _asked(self, function: Callable[[Tensor], T], x: Tensor, who: Who) -> T:
        """The one place where a model's function is called, on a copy of the images that it may change.

        Raises:
            UsageError: what it raised, in one line.
        """
        with (
            self._blamed(x),
            model_device(x.device),
            self._noise(who, x.device),
            computing(self.precision, x.device),
        ):
            return function(x.clone())

    @contextlib.contextmanager
    def _blamed(self, x: Tensor, doing: str = "the model") -> Iterator[None]:
        """What is raised inside is the model's mistake, but for a lack of memory."""
        try:
            yield
        except RobenchError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise model_error(error, self.model, x, doing) from error

    def _call_inside(self, x: Tensor, who: Who, layers: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (N, K) and features (N, ...), float32: from one pass where the model can give both."""
        both: Both | None = getattr(self.model, "logits_and_features", None)
        if both is not None:
            logits, features = self._asked(lambda x: both(x, layers), x, who)
        else:
            alone: Callable[[Tensor], Tensor] | None = getattr(self.model, "features", None)
            if not callable(alone):
                raise UsageError(
                    "this model offers no features(x), which the attack looks at: wrap its network in "
                    "robench.defenses.Defense, or choose attacks on the logits, such as autoattack"
                )
            logits = self._call(x, who)
            # The same noise again: features and logits of one draw.
            features = (self._asked(alone, x, who),)
        if not all(isinstance(each, Tensor) and len(each) == len(x) for each in features):
            raise UsageError(
                f"features(x) of this model are no tensors ({len(x)}, ...): one row an image is expected"
            )
        return _checked(logits, x), tuple(each.float() for each in features)

    @contextlib.contextmanager
    def _noise(self, who: Who, device: torch.device) -> Iterator[None]:
        """Numbers for each row's own noise, by `robench.core.rng`.

        Models that draw from torch's own generators get them seeded by the first row, and put back afterwards:
        their noise depends on the batch.
        """
        if self.stream is None:
            yield
            return
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            sample, rank, step = (part[:1].cpu() for part in who)
            words = self.stream.bits(sample, rank, step, 2)[0]
            torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
            with noise(self.stream, *(part.to(device) for part in who)):
                yield


def _checked(logits: Tensor, x: Tensor) -> Tensor:
    """Logits as float32 where the images are, if they are some."""
    check_logits(logits, len(x))
    # Tensors made in a model's own inference mode cannot enter a graph: a copy can.
    logits = logits.clone() if logits.is_inference() else logits
    return logits.to(x.device, torch.float32)


def out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )


def _gradient(loss: Tensor, point: Tensor, retain: bool) -> Tensor:
    """The gradient at `point`, zero where the model's graph does not reach it."""
    if not loss.requires_grad:
        return torch.zeros_like(point)
    (grad,) = torch.autograd.grad(loss, point, retain_graph=retain, allow_unused=True)
    return torch.zeros_like(point) if grad is None else grad.float().contiguous()


def pad(x: Tensor, length: int) -> Tensor:
    """`x` with its first row repeated until it has `length` rows."""
    missing = length - len(x)
    return x if missing == 0 else torch.cat([x, x[:1].expand(missing, *x.shape[1:])])


def undefined(logits: Tensor) -> Tensor:
    """Rows with a NaN among their logits, which answer nothing, bool (N,)."""
    return logits.isnan().any(1)


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Which rows are not classified as `y`, bool (N,). A NaN among the logits is a wrong answer: it must
    not pass for class 0, which is what argmax makes of it."""
    return (logits.argmax(1) != y) | undefined(logits)


def answer(logits: Tensor) -> Tensor:
    """The class of each row, int64 (N,); -1 where a logit is NaN."""
    return torch.where(undefined(logits), -1, logits.argmax(1))


def vote(answers: Tensor) -> Tensor:
    """The class that most draws give, int64 (N,) of (N, draws); the smaller one of two that tie."""
    return answers.mode(1).values


class Judge:
    """The whole defense in fp32, which alone says whether an image fools it.

    Args:
        network: the defense.
        draws: 1, or DRAWS for a randomised defense.
    """

    def __init__(self, network: Network, draws: int = 1):
        self.network = network
        self.draws = draws

    def answers(self, x: Tensor, ids: Tensor) -> Tensor:
        """The class that each draw gives each image, int64 (N, draws); -1 where a logit is NaN."""
        return torch.stack([answer(self.network.logits(x, ids, draw)) for draw in range(self.draws)], 1)

    def answers_of(
        self, x: Tensor | LazyImages, ids: Tensor, device: torch.device, rows: Tensor | None = None
    ) -> Tensor:
        """The answers to any number of images, moved to the device a batch at a time; int64 (N, draws) on the CPU.

        Args:
            x: (N, C, H, W), or (M, C, H, W) of which `rows` (N,) are asked for; ids: (N,).
        """
        size, parts = self.network.batch_size, [torch.zeros(0, self.draws, dtype=torch.int64)]
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            images = x[part] if rows is None else x[rows[part]]
            parts.append(self.answers(images.to(device), ids[part].to(device)).cpu())
        return torch.cat(parts)

    def fooled(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """In how many draws each image is classified wrongly, int64 (N,), 0 .. draws."""
        return (self.answers(x, ids) != y[:, None]).sum(1)
