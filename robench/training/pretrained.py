"""Read the weights of a pre-trained encoder for fine-tuning."""

from pathlib import Path

from torch import Tensor, nn

from robench.core.errors import ResourceError
from robench.defenses import _checkpoint_layouts
from robench.defenses._checkpoints import read_state

# Parts of a masked autoencoder other than its encoder, and layers that a classifier reinitialises.
_EXCLUDED = ("decoder", "mask_token", "norm.", "fc_norm.", "head.")


def read_encoder(path: Path, classifier: nn.Module) -> dict[str, Tensor]:
    """Read the weights below the head of `classifier` from a pre-trained or fine-tuned checkpoint.

    Checkpoints of MIMIR and MAE are supported: nested or not, with or without a decoder.

    Raises:
        ResourceError: if the file is damaged or its encoder does not match the network. The message names the first
            tensor that differs.
    """
    state = _checkpoint_layouts.unwrapped(read_state(path))
    weights = {key: value for key, value in state.items() if not key.startswith(_EXCLUDED)}
    expected = {key: value for key, value in classifier.state_dict().items() if not key.startswith(_EXCLUDED)}
    for key, value in expected.items():
        if key not in weights:
            raise ResourceError(f"pre-trained {path} has no tensor {key}: it belongs to another network")
        if weights[key].shape != value.shape:
            shapes = f"{tuple(weights[key].shape)}, but the recipe's network has {tuple(value.shape)}"
            raise ResourceError(f"pre-trained {path} has {key} of shape {shapes}")
    return {key: weights[key] for key in expected}
