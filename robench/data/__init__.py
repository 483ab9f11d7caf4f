"""Datasets: images in canonical order, float32 in [0, 1]; see `load_dataset`."""

import inspect
from typing import TYPE_CHECKING

from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.lazy import lazily
from robench.core.trust import admit

if TYPE_CHECKING:
    from robench.data._base import Images

__all__ = ["Images", "load_dataset", "needs_files"]

__getattr__ = lazily(__name__, {"Images": "_base"})

# Arguments of `load_dataset`, which a spec may not set.
_OURS = ("split", "data_dir", "samples", "path")


def needs_files(name: str) -> bool:
    """Whether a dataset needs files on disk; True for a name that is not registered."""
    base = specs.parse(name).name.partition(":")[0]
    return base not in registry.datasets or registry.datasets.describe(base).facts.get("needs_files", True)


def load_dataset(
    name: str | specs.Spec, split: str = "test", samples: int | None = None, data_dir: str | None = None
) -> "Images":
    """Load the first `samples` images of a split, in canonical order.

    Args:
        name: a dataset ("cifar10"), with arguments as in `cifar10-c(corruption="fog", severity=3)` or a path as in
            `folder:my images`; `robench list datasets` lists all.
        split: "train" or "test".
        samples: number of images; None for all.
        data_dir: folder of the files; None for ROBENCH_DATA or ~/.cache/robench, and for the current folder of a path.

    Raises:
        UsageError: for an unknown name, argument or split, or more images than available.
        Untrusted: for a path that comes from a file, such as a record, unless files are trusted (`--trust`).
        ResourceError: if the files are missing, damaged or unreadable.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"{samples} images of {name} requested: expected at least 1")
    spec = specs.parse(name)
    if ":" in spec.name:
        admit(spec.name, "is a path of files here")
    base, _, path = spec.name.partition(":")
    builder = registry.datasets.get(base)
    known = specs.defaults(builder)
    for key in spec.arguments:
        if key in _OURS:
            raise UsageError(f"{name}: {key} is not an argument of a dataset: omit it")
    if bool(path) != (known.get("path") is inspect.Parameter.empty):
        raise UsageError(f"{base} needs a path: write {base}:PATH" if not path else f"{base} takes no path")
    arguments = {"split": split, "data_dir": data_dir, **spec.arguments}
    arguments |= {"samples": samples} if "samples" in known else {}
    arguments |= {"path": path} if path else {}
    specs.canonical(specs.Spec(base, arguments), builder)
    images: Images = builder(**arguments)
    if samples is None:
        return images
    if samples > len(images):
        raise UsageError(
            f"{samples} images of {name} requested, but its {split} split has {len(images)}: use --samples "
            f"{len(images)} or fewer"
        )
    return images.first(samples)
