"""`imagenet-3dcc` and `imagenet-c-bar`: other corruptions of ImageNet, in the layout of ImageNet-C."""

from robench.core import registry
from robench.data._base import Facts, Images, described
from robench.data._names import BAR, COMMON_3D
from robench.data.imagenet import load_severity

IN_3D = Facts(
    "ImageNet-3DCC/<corruption>/<severity>/<synset>/ILSVRC2012_val_<number>.JPEG",
    "https://datasets.epfl.ch/3dcc",
)
C_BAR = Facts(
    "imagenet-c-bar/<corruption>/<severity>/<synset>/ILSVRC2012_val_<number>.JPEG",
    "https://github.com/facebookresearch/augmentation-corruption",
)


@registry.datasets.register("imagenet-3dcc")
@described(IN_3D)
def load_3dcc(
    corruption: str,
    severity: int,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "none",
    ids: str = "",
) -> Images:
    """ImageNet-3DCC, validation images under 3D common corruptions: `imagenet-3dcc(corruption="fog_3d", severity=3)`.

    Kar et al. 2022, "3D Common Corruptions and Data Augmentation", arXiv 2203.01441. Otherwise like `imagenet-c`.
    """
    choice = (corruption, severity, preprocessing, ids)
    places = [f"{folder}/{corruption}" for folder in ("ImageNet-3DCC", "imagenet_3dcc")]
    return load_severity("imagenet-3dcc", IN_3D, COMMON_3D, places, choice, split, data_dir, samples)


@registry.datasets.register("imagenet-c-bar")
@described(C_BAR)
def load_c_bar(
    corruption: str,
    severity: int,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "none",
    ids: str = "",
) -> Images:
    """ImageNet-C-bar, corruptions unlike those of ImageNet-C: `imagenet-c-bar(corruption="sparkles", severity=3)`.

    Mintun et al. 2021, "On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness",
    arXiv 2102.11273. Folders of severities may be named 1 .. 5 or by the numbers that the authors' code writes.
    Otherwise like `imagenet-c`.
    """
    choice = (corruption, severity, preprocessing, ids)
    places = [f"{folder}/{corruption}" for folder in ("imagenet-c-bar", "ImageNet-C-Bar")]
    return load_severity("imagenet-c-bar", C_BAR, BAR, places, choice, split, data_dir, samples)
