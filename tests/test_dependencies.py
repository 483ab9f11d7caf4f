"""What is imported is declared in pyproject.toml, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
# Modules whose name differs from that of their distribution.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "axe_playwright_python": "axe-playwright-python",
    "cv2": "opencv-python",
    "imagecorruptions": "imagecorruptions-imaug",
    "markdown_it": "markdown-it-py",
    "mlflow": "mlflow-skinny",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Optional, without a suitable release on PyPI: see the comments of the extras.
UNDECLARED = {"robustbench", "autoattack"}
# Imports of robustbench and torch.utils.tensorboard, and tools that are run but not imported: plugins, linters and the
# type checker.
NOT_IMPORTED = {"geotorch", "gdown", "pyyaml", "requests", "torchdiffeq", "tqdm"} | {
    "ipykernel",
    "mkdocs-material",
    "mkdocstrings",
    "pre-commit",
    "pyright",
    "pytest-xdist",
    "tensorboard",
    "ruff",
}
# Calls such as `importlib.import_module(name)` take the module as text.
LOADERS = {"import_module", "find_spec", "needed", "importorskip"}


def modules(path: Path) -> Iterator[str]:
    """The modules that a file imports, by statement or by call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            argument = node.args[0]
            if name in LOADERS and isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


@cache
def modules_of(folder: str) -> set[str]:
    """The top-level modules that the files of a folder import."""
    return {
        module.partition(".")[0]
        for path in (ROOT / folder).rglob("*.py")
        if "_content" not in path.parts
        for module in modules(path)
    }


def imported(*folders: str) -> set[str]:
    """The distributions imported by the files of some folders, except the standard library and robench."""
    names = set().union(*map(modules_of, folders))
    # Scripts of perf/ are imported by their names.
    mine = {"robench", "tests", "perf", *UNDECLARED, *(path.stem for path in (ROOT / "perf").glob("*.py"))}
    return {
        canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in names - sys.stdlib_module_names - mine
    }


def declared() -> dict[str, set[str]]:
    """The distributions of each extra; the empty name is for those that are always installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {
        extra: {str(canonicalize_name(Requirement(text).name)) for text in texts} - {"robench"}
        for extra, texts in groups.items()
    }
    # An extra may include others: `robench[onnx]`.
    for extra, texts in groups.items():
        for other in re.findall(r"robench\[(.*?)\]", " ".join(texts)):
            found[extra] |= {name for part in other.split(",") for name in found[part]}
    return found


def test_the_package_declares_exactly_its_imports():
    groups = declared()
    optional = {
        name
        for extra, names in groups.items()
        if extra not in ("", "test", "dev", "browser")
        for name in names
    }
    optional -= groups[""]
    # pytest imports the plugin, and nothing else does.
    needed = imported("robench") - {"pytest"}
    assert needed - optional == groups[""]
    assert optional - NOT_IMPORTED <= needed


def test_the_tests_declare_exactly_their_imports():
    groups = declared()
    needed = imported("tests", "perf")
    assert needed <= set.union(*groups.values())
    only = (groups["test"] | groups["dev"] | groups["browser"]) - NOT_IMPORTED
    assert only <= needed | imported("robench")


def test_corruptions_and_diffusion_need_no_extra():
    groups = declared()
    assert {"imagecorruptions-imaug", "numba", "opencv-python", "diffusers", "peft"} <= groups[""]
    # Commands that name these extras still install.
    assert not (groups["corruptions"] | groups["diffusion"] | groups["lora"])


def test_an_undeclared_import_is_detected(tmp_path):
    (tmp_path / "file.py").write_text("import pandas as pd\nfrom torch import nn\nneeded('onnx.helper', 1)\n")
    assert list(modules(tmp_path / "file.py")) == ["pandas", "torch", "onnx.helper"]
