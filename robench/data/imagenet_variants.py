"""`imagenet-a`, `imagenet-r` and `imagenet-sketch`: other pictures of ImageNet's classes, a folder a class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as bound

import torch

from robench.core import registry
from robench.core.specs import Spec
from robench.data import _image_files
from robench.data import preprocessing as preprocessings
from robench.data._base import Facts, Images, check_split, described, find
from robench.data._names import imagenet_classes, synsets, synsets_of
from robench.data.class_subset import Subset


@dataclass(frozen=True)
class Variant:
    """What is the same of every copy of such a data set.

    Attributes:
        synsets: of its classes.
        images: how many there are.
        places: where its folder may be.
    """

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
    """ImageNet-A, 7,500 natural images of 200 of ImageNet's classes that classifiers fail on.

    Hendrycks et al. 2021, "Natural Adversarial Examples", arXiv 1907.07174. As in the paper only the logits of the 200
    classes count: labels are 0 .. 199, in the order of the synsets, and a network of the thousand is cut down to them.

    The first picture of every class comes first, then every second one, and so on; an id is the position.

    Args:
        data_dir: the folder that holds `imagenet-a`, with a folder a class, named by its synset.
        samples: the first so many; None for all.
        preprocessing: see `robench.data.preprocessing`; "own" for what the defense says of itself.
        partial: take what is there, though pictures or classes are missing.

    Raises:
        UsageError: for another split or preprocessing.
        ResourceError: when pictures or classes are missing or damaged, with their number.
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
    """ImageNet-R, 30,000 renditions (art, cartoons, toys, ...) of 200 of ImageNet's classes.

    Hendrycks et al. 2021, "The Many Faces of Robustness", arXiv 2006.16241. Else as `imagenet-a`.
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
    """ImageNet-Sketch, 50,889 drawings of all of ImageNet's thousand classes.

    Wang et al. 2019, "Learning Robust Global Representations by Penalizing Local Predictive Power",
    arXiv 1905.13549. Else as `imagenet-a`, but that all classes count.
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
    name = str(Spec(kind, {"preprocessing": preprocessing} | ({"partial": True} if partial else {})))
    check_split(name, split, ("test",))
    folder = find(name, data_dir, variant.places, variant.facts)
    found = _image_files.list_classes(folder, name)
    _image_files.check_complete(found, variant.synsets(), variant.images, folder, name, partial)
    rows = _image_files.labelled(found, variant.synsets())[:samples]
    x = _image_files.decode(enumerate(file for _, file in rows), len(rows), preprocessing, name)
    y = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    indices = tuple(synsets().index(each) for each in variant.synsets())
    words = tuple(imagenet_classes()[k] for k in indices)
    among = Subset(indices, len(synsets())) if len(indices) < len(synsets()) else None
    return Images(name, split, x, y, torch.arange(len(x)), words, among)
