"""Read a pre-trained encoder as the start of fine-tuning."""

from pathlib import Path

from torch import Tensor, nn

from robench.core.errors import ResourceError
from robench.defenses import _checkpoint_layouts
from robench.defenses._checkpoints import read_state

# Parts of a masked autoencoder besides its encoder, and layers that a classifier reinitialises.
_LEFT = ("decoder", "mask_token", "norm.", "fc_norm.", "head.")


def read_encoder(path: Path, classifier: nn.Module) -> dict[str, Tensor]:
    """The weights below the head of `classifier`, from a checkpoint of masked pre-training.

    MIMIR's own files are read (nested or not, with a decoder, keys of official MAE), and fine-tuned ones.

    Raises:
        ResourceError: when the file is damaged, or its encoder is of another network: naming the first tensor.
    """
    state = _checkpoint_layouts.unwrapped(read_state(path))
    weights = {key: value for key, value in state.items() if not key.startswith(_LEFT)}
    wanted = {key: value for key, value in classifier.state_dict().items() if not key.startswith(_LEFT)}
    for key, value in wanted.items():
        if key not in weights:
            raise ResourceError(f"pre-trained {path} lacks {key}: it is of another network")
        if weights[key].shape != value.shape:
            shapes = f"{tuple(weights[key].shape)}: the recipe's network has {tuple(value.shape)}"
            raise ResourceError(f"pre-trained {path} has {key} of shape {shapes}")
    return {key: weights[key] for key in wanted}
