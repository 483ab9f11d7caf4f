"""The origin of a result: robench's version and commit, the machine, the libraries."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CHECKOUT = Path(__file__).resolve().parents[2]
_LIBRARIES = ("torch", "torchvision", "timm", "numpy")
# The files that decide a result. A new file in results or docs does not make a commit dirty.
_DECISIVE = ("robench", "attacks", "defenses", "benchmark", "pyproject.toml")


def robench_version() -> str:
    """The installed version; "0" in a checkout that is not installed."""
    return installed_version("robench") or "0"


@cache
def release() -> str:
    """The version and a digest of the package's sources, so that an edited checkout counts as another release."""
    root = _CHECKOUT / "robench"
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return f"{robench_version()} ({digest.hexdigest()[:8]})"


def conditions(device: "torch.device") -> dict[str, str]:
    """What must be unchanged to resume an interrupted run, because it affects bits or the saved state."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"robench": release(), "torch": str(torch.__version__), "device": name}


@cache
def installed_version(package: str) -> str | None:
    """The version of an installed package, or None. Nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(checkout: Path = _CHECKOUT) -> dict[str, str | bool] | None:
    """Commit and dirty flag of the checkout that robench is imported from; None for an installed wheel.

    The flag is set when code, suites, cards or protocols differ from the commit.
    """
    top = _git(checkout, "rev-parse", "--show-toplevel")
    # An installed wheel may be inside another repository, which is not a checkout of robench.
    if not top or Path(top).resolve() != checkout.resolve():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--", *_DECISIVE)
    return {"commit": commit, "dirty": bool(changes)} if commit and changes is not None else None


def _git(checkout: Path, *arguments: str) -> str | None:
    # Otherwise git status would take the index lock and disturb other git commands.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(checkout), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def platform_facts() -> dict[str, str]:
    """Operating system, Python and the libraries whose versions can change a logit."""
    facts = {"system": platform.platform(), "python": platform.python_version()}
    return facts | {name: installed_version(name) or "missing" for name in _LIBRARIES}


def device_name(device: "torch.device | str") -> str:
    """A description of a device: "cpu: AMD EPYC 7R13, 2 threads" or "cuda: NVIDIA H200"."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu: {_processor()}, {torch.get_num_threads()} threads"
    return str(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
