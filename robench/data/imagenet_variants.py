"""`imagenet-a`, `imagenet-r` and `imagenet-sketch`: other images of ImageNet classes, one folder for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as bound

import torch

from robench.core import registry
from robench.core.specs import Spec, without
from robench.data import _image_files
from robench.data import preprocessing as preprocessings
from robench.data._base import Facts, Images, check_split, described, find
from robench.data._names import imagenet_classes, synsets, synsets_of
from robench.data.class_subset import Subset


@dataclass(frozen=True)
class Variant:
    """The fixed properties of such a dataset: the synsets of its classes, number of images and possible folders."""

    synsets: Callable[[], tuple[str, ...]]
    images: int
    places: tuple[str, ...]
    facts: Facts


A = Variant(
    bound(synsets_of, "a"),
    7_500,
    ("imagenet-a",),
    Facts("imagenet-a/<synset>/<picture>", "https://github.com/hendrycks/natural-adv-examples"),
)
R = Variant(
    bound(synsets_of, "r"),
    30_000,
    ("imagenet-r",),
    Facts("imagenet-r/<synset>/<picture>", "https://github.com/hendrycks/imagenet-r"),
)
SKETCH = Variant(
    synsets,
    50_889,
    ("sketch", "imagenet-sketch", "ImageNet-Sketch/sketch", "imagenet-sketch/sketch"),
    Facts("sketch/<synset>/<picture>", "https://github.com/HaohanWang/ImageNet-Sketch"),
)


@registry.datasets.register("imagenet-a")
@described(A.facts)
def load_a(
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "Res256Crop224",
    partial: bool = False,
) -> Images:
    """ImageNet-A, 7,500 natural images of 200 ImageNet classes that classifiers fail on.

    Hendrycks et al. 2021, "Natural Adversarial Examples", arXiv 1907.07174. As in the paper, only the logits of the
    200 classes count: labels are 0 .. 199 in the order of synsets, and a network with 1,000 classes is restricted to
    them.

    The order alternates between classes: the first image of every class, then the second of every class, and so on. An
    id is the position in this order.

    Args:
        data_dir: folder that contains `imagenet-a`, with a folder for each synset.
        samples: number of images to load, from the start; None for all.
        preprocessing: see `robench.data.preprocessing`; "own" for the preprocessing of the defense.
        partial: accept missing images and classes.

    Raises:
        UsageError: for another split or preprocessing.
        ResourceError: if images or classes are missing or damaged, with their number.
    """
    return _load("imagenet-a", A, split, data_dir, samples, preprocessing, partial)


@registry.datasets.register("imagenet-r")
@described(R.facts)
def load_r(
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "Res256Crop224",
    partial: bool = False,
) -> Images:
    """ImageNet-R, 30,000 renditions (art, cartoons, toys, ...) of 200 ImageNet classes.

    Hendrycks et al. 2021, "The Many Faces of Robustness", arXiv 2006.16241. Otherwise like `imagenet-a`.
    """
    return _load("imagenet-r", R, split, data_dir, samples, preprocessing, partial)


@registry.datasets.register("imagenet-sketch")
@described(SKETCH.facts)
def load_sketch(
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "Res256Crop224",
    partial: bool = False,
) -> Images:
    """ImageNet-Sketch, 50,889 drawings of all 1,000 ImageNet classes.

    Wang et al. 2019, "Learning Robust Global Representations by Penalizing Local Predictive Power",
    arXiv 1905.13549. All classes count; otherwise like `imagenet-a`.
    """
    return _load("imagenet-sketch", SKETCH, split, data_dir, samples, preprocessing, partial)


def _load(
    kind: str,
    variant: Variant,
    split: str,
    data_dir: str | None,
    samples: int | None,
    preprocessing: str,
    partial: bool,
) -> Images:
    preprocessings.parse(preprocessing)
    name = str(without(Spec(kind, {"preprocessing": preprocessing, "partial": partial}), partial=False))
    check_split(name, split, ("test",))
    folder = find(name, data_dir, variant.places, variant.facts)
    files = _image_files.list_classes(folder, name)
    _image_files.check_complete(files, variant.synsets(), variant.images, folder, name, partial)
    x, y = _image_files.read_classes(files, variant.synsets(), samples, preprocessing, name)
    indices = tuple(synsets().index(synset) for synset in variant.synsets())
    names = tuple(imagenet_classes()[k] for k in indices)
    class_subset = Subset(indices, len(synsets())) if len(indices) < len(synsets()) else None
    return Images(name, split, x, y, torch.arange(len(x)), names, class_subset)
