"""What is installed, what is missing and how to get it: `robench doctor`."""

import importlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robench.catalog import Card, cards
from robench.core.cache import cache_folder
from robench.core.errors import RobenchError, one_line
from robench.core.formatting import install, size
from robench.core.sanitize import plain
from robench.corruption.cache import Cache
from robench.corruption.make import library
from robench.data import load_dataset
from robench.records.provenance import device_name, git_state, installed_version, robench_version

OK, WARN, MISSING = "ok", "warn", "missing"
_PYTHON = "3.11"
_FREE = 1.0  # GiB: records and certificates of many runs, with a partial run beside them
# What is installed on demand: package -> its extra and what needs it.
_EXTRAS = {
    "pyautoattack": ("reference", "the suite autoattack-reference"),
    "onnx": ("onnx", "defenses from ONNX files"),
    "torchdiffeq": ("robustbench", "some of RobustBench's models"),
    "ray": ("ray", "robench run --engine ray"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "tensorboard": ("tensorboard", "logging to TensorBoard"),
    "mlflow-skinny": ("mlflow", "logging to MLflow"),
    "mkdocs-material": ("docs", "building the documents"),
    "playwright": ("browser", "browser tests of the pages"),
}
# Dependencies that only some commands need: what does not work without them.
_PURPOSES = {
    "imagecorruptions-imaug": "ImageNet-C's corruptions",
    "numba": "ImageNet-C's corruptions",
    "opencv-python": "ImageNet-C's corruptions",
    "diffusers": "diffusion purifiers",
    "peft": "training MAEP",
    "pandas": "robench.records",
    "matplotlib": "plots",
    "jsonschema": "records",
    "pyarrow": "records",
    "scikit-learn": "the digits",
}
# Modules with another name than their package.
_MODULES = {
    "imagecorruptions-imaug": "imagecorruptions",
    "opencv-python": "cv2",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
# How to mend a package that cannot be imported, where another installation may not help.
_OPENCV = (
    "install the libraries of the system that OpenCV needs (Debian: apt-get install libgl1 libglib2.0-0)"
)
_MENDS = {
    "imagecorruptions-imaug": _OPENCV,
    "opencv-python": _OPENCV,
    "torchvision": "install torch and torchvision again, both from the same index",
}
_STYLES = {OK: "green", WARN: "yellow", MISSING: "red"}
_SLOW = ("devices", "digits", "cifar10", "checkpoints")
_CIFAR_FILES = ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6)))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what, "torch" say.
        status: "ok", "warn" (things work, less well) or "missing" (something will not work).
        detail: what was found.
        mend: what to do about it; empty when nothing needs doing.
    """

    name: str
    status: str
    detail: str
    mend: str = ""


def examine(
    results_dir: Path | str, data_dir: Path | str | None = None, quick: bool = False
) -> list[Finding]:
    """Look at everything a run needs; nothing is downloaded and no network is called.

    Args:
        results_dir: where records would be written, a folder or a URL; it need not exist.
        data_dir: where datasets with files lie; None for where they are looked for by default.
        quick: leave out what takes torch or reads large files: devices, images and checkpoints.
    """
    probes: dict[str, Callable[[], Iterator[Finding]]] = {
        "system": _system,
        "dependencies": lambda: _software(imports=not quick),
        "devices": _devices,
        "digits": _digits,
        "cifar10": lambda: _cifar10(data_dir),
        "checkpoints": _checkpoints,
        "corruptions": _corruptions,
        "results": lambda: _disk(results_dir),
    }
    if quick:
        probes = {name: probe for name, probe in probes.items() if name not in _SLOW}
    return [item for name, probe in probes.items() for item in _survived(name, probe)]


def _survived(name: str, probe: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a probe, and what stopped it: a broken installation can raise anything."""
    try:
        yield from probe()
    except Exception as error:
        yield Finding(name, MISSING, f"cannot be examined ({_what(error)})", "mend what is missing above")


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def report(findings: list[Finding]) -> RenderableType:
    """The findings as a table of at most 80 columns, the mends beneath what they mend."""
    grid = Table(box=box.SIMPLE_HEAD, show_header=False, show_edge=False, pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold", ratio=1)
    for item in findings:
        detail = Text(plain(item.detail))
        if item.mend:
            detail.append(f"\n{plain(item.mend)}", style="bold")
        grid.add_row(Text(item.status, style=_STYLES[item.status]), Text(plain(item.name)), detail)
    wrong = [item for item in findings if item.status != OK]
    optional = sum(item.status == OK and bool(item.mend) for item in findings)
    need = f"{len(wrong)} of {len(findings)} need attention"
    verdict = need if wrong else "everything required is installed"
    if optional:
        verdict += f"; {optional} optional package{'s are' if optional > 1 else ' is'} not installed"
    return Group(grid, Text(), Text(verdict, style="bold"))


def _system() -> Iterator[Finding]:
    name = {"Darwin": "macOS"}.get(system := platform.system(), system)
    detail = f"{name} {platform.release()}"
    if name == "Linux":
        yield Finding("system", OK, f"{detail}, which is tested")
    elif name in ("macOS", "Windows"):
        yield Finding("system", OK, f"{detail}, supported but not tested: Linux is")
    else:
        mend = "use Linux, macOS or Windows"
        yield Finding("system", WARN, f"{detail}, on which robench was never run", mend)


def _software(imports: bool = False) -> Iterator[Finding]:
    yield _bound("python", platform.python_version(), f">={_PYTHON}", "install a newer Python")
    state = git_state()
    commit = "" if state is None else f", commit {str(state['commit'])[:10]}{'*' if state['dirty'] else ''}"
    yield Finding("robench", OK, robench_version() + commit)
    try:
        declared = [Requirement(text) for text in requires("robench") or ()]
    except PackageNotFoundError:
        yield Finding("dependencies", WARN, "robench itself is not installed", "pip install .")
        return
    for need in declared:
        if need.marker is None:
            version, purpose = installed_version(need.name), _PURPOSES.get(need.name, "everything")
            found = _bound(need.name, version, str(need.specifier), f'pip install "{need}"', purpose)
            yield _imported(found, need) if imports and found.status == OK else found
    for package, (extra, purpose) in _EXTRAS.items():
        version = installed_version(package)
        mend = "" if version else install(extra)
        yield Finding(package, OK, version or f"not installed; optional, for {purpose}", mend)


def _bound(name: str, version: str | None, bound: str, mend: str, purpose: str = "everything") -> Finding:
    if version is None:
        return Finding(name, MISSING, f"not installed, {bound} is needed for {purpose}", mend)
    # A development release is good enough for a bound it lies above.
    if not Requirement(f"x{bound}").specifier.contains(version, prereleases=True):
        return Finding(name, MISSING, f"{version}, {bound} is needed", mend)
    return Finding(name, OK, f"{version} ({bound})" if bound else version)


def _imported(found: Finding, need: Requirement) -> Finding:
    """The finding about an installed package, after its import: wheels that do not fit together fail only then."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(_module(need.name))
    except Exception as error:
        mend = _MENDS.get(need.name, f'pip install --force-reinstall "{need}"')
        detail = f"{found.detail} cannot be imported ({_what(error)})"
        return replace(found, status=MISSING, detail=detail, mend=mend)
    return found


def _module(package: str) -> str:
    return _MODULES.get(package.lower(), package.lower().replace("-", "_"))


def _devices() -> Iterator[Finding]:
    import torch

    cores = os.cpu_count() or 1
    yield Finding("cpu", OK, f"{device_name('cpu').removeprefix('cpu: ')} on {cores} cores")
    if not torch.cuda.is_available():
        yield Finding("cuda", OK, "no GPU that torch can use: runs go to the CPU")
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        yield Finding(f"cuda:{i}", OK, f"{torch.cuda.get_device_name(i)}, {memory:.0f} GiB")


def _digits() -> Iterator[Finding]:
    try:
        images = load_dataset("digits")
    except RobenchError as error:
        yield Finding("digits", MISSING, str(error), "pip install --force-reinstall scikit-learn")
        return
    yield Finding("digits", OK, f"{len(images):,} test images, with scikit-learn")


def _cifar10(data_dir: Path | str | None) -> Iterator[Finding]:
    from robench.data import cifar10

    root = Path(data_dir).expanduser() if data_dir else cifar10.default_root()
    folder = root / cifar10.FOLDER
    lost = [name for name in _CIFAR_FILES if not (folder / name).is_file()]
    if not lost:
        yield Finding("cifar10", OK, f"found in {root}")
        return
    detail = f"{folder} lacks {', '.join(lost)}" if len(lost) < len(_CIFAR_FILES) else f"not in {root}"
    mend = "robench run --protocol cifar10-linf downloads it; or give its folder with --data-dir"
    yield Finding("cifar10", WARN, detail, mend)


def _corruptions() -> Iterator[Finding]:
    """The library that makes corrupted images, and the room that those kept take."""
    try:
        made_by = library()
    except RobenchError as error:
        mend = str(error).partition(": ")[2]
        yield Finding("corruptions", WARN, "not installed: only corruptions need it", mend)
        return
    try:
        cache = Cache()
    except RobenchError as error:
        yield Finding("corruptions", WARN, str(error), "correct it, or unset it")
        return
    held = f"{size(cache.usage()[1])} of at most {size(cache.limit)} kept in {cache.folder}"
    yield Finding("corruptions", OK, f"{made_by}, {held}; robench cache --clear removes them")


def _checkpoints() -> Iterator[Finding]:
    for card in cards().values():
        if not card.download_page and (card.checkpoint or not card.recipe):
            yield _checkpoint(card)


def _checkpoint(card: Card) -> Finding:
    from robench.defenses._checkpoints import sha256_of, split_location

    name, where = f"card {card.name}", card.checkpoint
    if not where:
        return Finding(name, OK, "brings its own weights, or needs none")
    if "://" in where:
        return Finding(name, OK, f"fetched from {where} on first use")
    path = card.path.parent / split_location(where, card.path.parent)[0]
    mend = f"robench train {card.name} makes it again" if card.recipe else "restore the file"
    if not path.is_file():
        return Finding(name, MISSING, f"{path} is not there", mend)
    try:
        digest = sha256_of(path)
    except (OSError, RobenchError) as error:
        return Finding(name, MISSING, f"{path}: {error}", mend)
    if digest != card.sha256:
        return Finding(name, MISSING, f"{path} has sha256 {digest[:12]}, not {card.sha256[:12]}", mend)
    return Finding(name, OK, f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB, sha256 as the card says")


def _disk(results_dir: Path | str) -> Iterator[Finding]:
    mend = "give a folder you may write with --results"
    if "://" in str(results_dir):
        # Records of a URL are written to its copy here first.
        results_dir = cache_folder("remote")
    results = Path(results_dir)
    # The nearest folder that is there: a run makes the rest.
    place = next(folder for folder in (results.absolute(), *results.absolute().parents) if folder.exists())
    try:
        # Asking the disk, since permission bits tell root nothing and miss read-only mounts.
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Finding("results", MISSING, f"{place} cannot be written: {error.strerror or error}", mend)
        return
    yield Finding("results", OK, f"{results} can be written")
    free = shutil.disk_usage(place).free / 2**30
    low = free < _FREE
    mend = "free some, or give another disk with --results" if low else ""
    yield Finding("free disk", WARN if low else OK, f"{free:.1f} GiB at {place}", mend)
