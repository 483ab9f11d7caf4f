"""Input and output of loaders, and helpers that several of them share."""

import contextlib
import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robench.core.errors import ResourceError, UsageError, one_line
from robench.core.torch_state import evaluating
from robench.defenses._base import Defense
from robench.defenses._checkpoints import Weights, load_into, read_weights
from robench.defenses._file_kinds import refuse_strays

# One number for all channels, or one per channel.
Channels = float | Sequence[float] | None
Numbers = tuple[float, ...] | None
# Channels of images, in the order of trial: color, then grayscale.
_CHANNELS = (3, 1)


@dataclass(frozen=True)
class Source:
    """Input of a loader.

    Attributes:
        scheme, target: the parts before and after the colon.
        checkpoint: weights to use in place of the published ones, or of the file that `target` names.
        bare: build only the network and fetch no weights, as for `robench show`.
        weights: name of the set of weights in the checkpoint to use; empty for the default one.
        image_size: side of the images, for a model that does not specify its input size; None if unknown.
    """

    scheme: str
    target: str
    checkpoint: Path | None = None
    bare: bool = False
    weights: str = ""
    image_size: int | None = None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.target}"

    @property
    def file(self) -> Path:
        """The file that `target` names, relative to the current folder; the checkpoint if one is given.

        Raises:
            ResourceError: if it is missing or empty, or is an HTML page or a Git LFS pointer instead.
            UsageError: if a set of weights in it is named, since it holds one network.
        """
        path = self.checkpoint or Path(self.target).expanduser()
        if not path.is_file():
            raise ResourceError(
                f"{self}: {path} is missing: put it there or choose another with --checkpoint"
            )
        if self.weights:
            raise UsageError(f"{self} is one network: omit #{self.weights}")
        refuse_strays(path)
        return path


@dataclass(frozen=True)
class Found:
    """Output of a loader.

    Attributes:
        defense: the defense, with its weights unless the source is bare.
        file: the file of the weights, whose sha256 is recorded; None if they are not in a single file. The digest of
            the loaded state is then recorded.
        weights: the weights in the file, for files that may hold several sets.
    """

    defense: Defense
    file: Path | None = None
    weights: Weights | None = None


def fill(defense: Defense, checkpoint: Path, name: str = "") -> Found:
    """Load the weights in `checkpoint` into `defense`; they may be those of the defense or of its network.

    Args:
        name: name of the set of weights to use, see `read_weights`.

    Raises:
        ResourceError: as `read_weights` and `load_into`.
    """
    weights = read_weights(checkpoint, name)
    load_into(defense, weights.state, checkpoint)
    return Found(defense, checkpoint, weights)


def attempt(source: Source, get: Callable[[], Any]) -> Any:
    """Call `get`, which downloads published weights.

    Raises:
        ResourceError: in one line, if the download fails for any reason.
    """
    try:
        with quiet():
            return get()
    except (ResourceError, UsageError):
        raise
    except Exception as error:
        raise ResourceError(
            f"the weights of {source} cannot be downloaded ({one_line(error)}): get them another way and give "
            "their file with --checkpoint"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the hub's messages about retries; only the final outcome is reported."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def needed(module: str, source: Source | str, extra: str) -> ModuleType:
    """Import a package that only some loaders and defenses need.

    Raises:
        ResourceError: if it is missing or cannot be imported, stating how to install it.
    """
    try:
        with warnings.catch_warnings():
            # Warnings about the dependencies of a package do not concern the user.
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    # A package too old for its own dependencies may raise anything.
    except Exception as error:
        raise ResourceError(f"{source} needs {module} ({one_line(error)}): {extra}") from error


def normalisation(
    mean: Channels, std: Channels, default: tuple[Channels, Channels]
) -> tuple[Numbers, Numbers]:
    """The mean and std of the spec, or else `default`, that of the model or its file.

    Raises:
        UsageError: for one without the other, or for anything but one or three numbers, with `std` above zero.
    """
    if (mean is None) != (std is None):
        raise UsageError(f"{mean=} and {std=}: expected both or neither")
    if mean is None:
        mean, std = default
    return _numbers("mean", mean), _numbers("std", std)


def _numbers(name: str, values: Channels) -> Numbers:
    if values is None:
        return None
    numbers = list(values) if isinstance(values, Sequence) else [values]
    valid = all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in numbers)
    if len(numbers) not in (1, 3) or not valid or (name == "std" and min(numbers) <= 0):
        positive = "positive " if name == "std" else ""
        raise UsageError(f"{name}={values}: expected one {positive}number, or three, one per channel")
    return tuple(float(v) for v in numbers)


def wrap(
    source: Source,
    network: nn.Module,
    image_size: int | None,
    normalised: tuple[Numbers, Numbers] = (None, None),
    num_classes: int | None = None,
    preprocessing: str = "",
    channels: int | None = None,
) -> Defense:
    """Wrap a network that takes normalized images as a defense that takes images in [0, 1].

    Args:
        normalised: mean and std.
        num_classes: number of classes; None to find it by calling the network on two black images.
        channels: number of channels, 3 or 1; None to find it by that call too, or for 3 if `num_classes` is given.
        preprocessing: see `Defense`.

    Raises:
        UsageError: for invalid sizes, or a network that does not return logits.
    """
    if image_size is None:
        raise UsageError(f"{source} does not specify its image size: add image_size=..., in pixels")
    if not isinstance(image_size, int) or image_size < 1:
        raise UsageError(f"{source} with {image_size=}: expected a whole number of pixels")
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 2):
        raise UsageError(f"{source} with {num_classes=}: expected a whole number of at least 2")
    if channels not in (None, *_CHANNELS) or isinstance(channels, bool):
        raise UsageError(f"{source} with {channels=}: expected 3, or 1 for grayscale images")
    mean, std = normalised
    make = functools.partial(
        Defense, evaluating(network), image_size=image_size, mean=mean, std=std, preprocessing=preprocessing
    )
    if num_classes is not None:
        return make(num_classes=num_classes, channels=channels or 3)
    # A normalisation by three numbers implies three channels.
    candidates = [channels] if channels else [3] if mean and len(mean) == 3 else list(_CHANNELS)
    first_error: UsageError | None = None
    for count in candidates:
        try:
            classes = _count_classes(source, make(num_classes=0, channels=count))
            return make(num_classes=classes, channels=count)
        except UsageError as error:
            first_error = first_error or error
    assert first_error
    raise first_error


def _count_classes(source: Source, defense: Defense) -> int:
    image_size, channels = defense.image_size, defense.channels
    images = torch.zeros(2, channels, image_size, image_size)
    try:
        with torch.no_grad():
            logits = defense(images)
    # TorchScript and converted graphs raise errors of their own.
    except Exception as error:
        raise UsageError(
            f"{source} cannot take two images of {image_size} px and {channels} channel{'s' * (channels > 1)} "
            f"({one_line(error)}): is image_size right, and is the batch dimension free?"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2 or logits.shape[1] < 2:
        output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"{source} returns {output} for two images: expected logits (2, K)")
    return logits.shape[1]
