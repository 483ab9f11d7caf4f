"""Names of classes and corruptions that are not stored in the files of datasets."""

import csv
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from robench.corruption.names import COMMON, SEVERITIES, VALIDATION, check_corruption

__all__ = [
    "CIFAR10_CLASSES",
    "CIFAR100_CLASSES",
    "COMMON",
    "SEVERITIES",
    "VALIDATION",
    "check_corruption",
    "imagenet_classes",
    "synsets",
]

# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter",
    "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper",
    "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
    "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)
# fmt: on


# Kar et al. 2022, "3D Common Corruptions and Data Augmentation"; the twelve available for ImageNet.
COMMON_3D = (
    "near_focus", "far_focus", "fog_3d", "flash", "color_quant", "low_light", "xy_motion_blur", "z_motion_blur",
    "iso_noise", "bit_error", "h265_abr", "h265_crf",
)  # fmt: skip
# Mintun et al. 2021, "On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness"; the
# spelling of the fifth follows the authors.
BAR = (
    "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves",
    "inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles",
)  # fmt: skip


@cache
def synsets() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes ("n01440764"), in the order of labels 0 .. 999."""
    return _listed("imagenet_synsets.txt")


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of labels."""
    names = dict(csv.reader(_text("imagenet_synset_to_lemma.txt").splitlines(), delimiter="\t"))
    return tuple(names[synset] for synset in synsets())


@cache
def synsets_of(variant: str) -> tuple[str, ...]:
    """The 200 synsets of ImageNet-A ("a") or ImageNet-R ("r"), in their order."""
    return _listed(f"imagenet_{variant}_synsets.txt")


def _listed(file: str) -> tuple[str, ...]:
    return tuple(_text(file).split())


def _text(file: str) -> str:
    """A table of timm, read without importing timm, which takes as long as torch."""
    spec = find_spec("timm")
    assert spec and spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "data" / "_info" / file).read_text(encoding="utf-8")
