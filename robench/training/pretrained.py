"""Start a fine-tuning from the weights of a pre-trained encoder."""

from pathlib import Path

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from robench.core.errors import ResourceError, UsageError
from robench.defenses import _checkpoint_layouts
from robench.defenses._checkpoints import fetch, read_state
from robench.defenses.swin import from_simmim

# Layers that a classifier reinitializes when it starts from a pre-trained encoder.
HEAD = ("fc_norm.", "head.")


def pretrained_file(location: str | Path) -> Path:
    """The file at a path or URL, for `--pretrained`.

    Raises:
        UsageError: if a set of weights in the file is named.
    """
    file = fetch(location, Path())
    if file.weights:
        raise UsageError(f"--pretrained reads the whole file: remove #{file.weights}")
    return file.path


def read_encoder(path: Path, classifier: nn.Module) -> dict[str, Tensor]:
    """Read the weights below the head of `classifier` from a pre-trained or fine-tuned checkpoint.

    Checkpoints of MIMIR and MAE are supported, nested or not, with or without a decoder, and Swins of SimMIM. The last
    norm is read if the classifier has one, unlike a ViT with an `fc_norm`.

    Raises:
        ResourceError: if the file is damaged or its encoder does not match the network. The message names the first
            tensor that differs.
    """
    state = _checkpoint_layouts.unwrapped(read_state(path))
    if isinstance(classifier, SwinTransformer):
        state = from_simmim(state, classifier, path)
    expected = {key: value for key, value in classifier.state_dict().items() if not key.startswith(HEAD)}
    for key, value in expected.items():
        if key not in state:
            raise ResourceError(f"pre-trained {path} has no tensor {key}: it belongs to another network")
        if state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)}, but the recipe's network has {tuple(value.shape)}"
            raise ResourceError(f"pre-trained {path} has {key} of shape {shapes}")
    return {key: state[key] for key in expected}


def load_encoder(encoder: dict[str, Tensor], classifier: nn.Module, head_std: float = 0.02) -> None:
    """Load pre-trained weights below the head into a classifier and reinitialize its head, as MIMIR does.

    Biases that the classifier lacks are left out (see `encoders.convit`). The head's weights are drawn from a truncated
    normal distribution with standard deviation `head_std`.
    """
    weights = {key: value for key, value in encoder.items() if not key.startswith(HEAD)}
    missing, unexpected = classifier.load_state_dict(weights, strict=False)
    assert all(key.endswith(".bias") for key in unexpected)
    assert not weights or all(key.startswith(HEAD) for key in missing)
    head = getattr(classifier, "head", None)
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=head_std)
        nn.init.zeros_(head.bias)
