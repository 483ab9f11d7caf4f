"""The train split of `imagenet`, which is decoded while it is used: from folders or from parquet files."""

import torch

from robench.core.errors import ResourceError, UsageError
from robench.data import _image_files, _parquet
from robench.data._base import Facts, Images, find
from robench.data._names import imagenet_classes, synsets
from robench.data._streamed_pictures import Folder, Parquet, Pictures, list_folder
from robench.data.parquet import files_by_part

# Its name on Hugging Face.
HUB = "imagenet-1k"
TRAIN = Facts(
    "imagenet/train/<synset>/<picture>, train/<synset>/..., or imagenet-1k/data/train-*.parquet",
    "https://image-net.org or https://huggingface.co/datasets/ILSVRC/imagenet-1k",
)


def load(name: str, data_dir: str | None, preprocessing: str, samples: int | None, ids: str = "") -> Images:
    """Training images of ImageNet; any number of them, of any of the 1,000 synsets.

    An id is the position. Of folders, the order alternates between classes; of parquet files, it is that of the rows.

    Args:
        name: canonical spec of the dataset.
        data_dir, preprocessing, samples, ids: as of `imagenet`; `ids` must be empty.

    Raises:
        UsageError: if `ids` is given.
        ResourceError: if files are missing or damaged, or a folder is not a synset.
    """
    if ids:
        raise UsageError(f"{name}: ids are those of validation images: omit them for the train split")
    place = find(name, data_dir, ("imagenet/train", "train", HUB), TRAIN)
    if place.name == HUB:
        files = files_by_part(place).get("train", [])
        if not files:
            raise ResourceError(f"{place} contains no train-*.parquet: get the train part of {TRAIN.source}")
        table = _parquet.open_table(files, name)
        source, labels = Parquet(table), torch.from_numpy(table.labels)
    else:
        source = list_folder(place, name)
        labels = _labels(source, name)
    x = Pictures(source, preprocessing, name)
    count = min(samples or len(x), len(x))
    return Images(name, "train", x.first(count), labels[:count], torch.arange(count), imagenet_classes())


def _labels(source: Folder, name: str) -> torch.Tensor:
    """The label of every row among the 1,000 classes."""
    known = {synset: k for k, synset in enumerate(synsets())}
    _image_files.check_known(source.classes, synsets(), source.folder, name, "ImageNet's 1,000 synsets")
    labels = torch.tensor([known[synset] for synset in source.classes])
    return labels[torch.from_numpy(source.labels)]
