"""What is imported is declared in pyproject.toml, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
# Imported by another name than the one they are installed by; all others have one name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "axe_playwright_python": "axe-playwright-python",
    "cv2": "opencv-python",
    "imagecorruptions": "imagecorruptions-imaug",
    "markdown_it": "markdown-it-py",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Optional, and not on PyPI in a release that fits: see the comments of the extras.
UNDECLARED = {"robustbench", "autoattack"}
# What robustbench imports, and what is run and not imported: plugins, linters and the type checker.
NOT_IMPORTED = {"geotorch", "gdown", "pyyaml", "requests", "torchdiffeq", "tqdm"} | {
    "mkdocs-material",
    "mkdocstrings",
    "pre-commit",
    "pyright",
    "pytest-xdist",
    "ruff",
}
# Names that are put together of others, such as `importlib.import_module(name)`, are given as text to these.
LOADERS = {"import_module", "find_spec", "needed", "importorskip"}


def modules(path: Path) -> Iterator[str]:
    """The modules that a file imports, by a statement or by a call."""
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


def imported(*folders: str) -> set[str]:
    """The distributions that the files of some folders import, but for Python's own and robench itself."""
    names = {
        module.partition(".")[0]
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "_content" not in path.parts
        for module in modules(path)
    }
    mine = {"robench", "tests", "perf", *UNDECLARED}
    return {
        canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in names - sys.stdlib_module_names - mine
    }


def declared() -> dict[str, set[str]]:
    """The distributions that each extra names, the empty one being what is always installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {
        extra: {str(canonicalize_name(Requirement(text).name)) for text in texts} - {"robench"}
        for extra, texts in groups.items()
    }
    # An extra may take in others: `robench[onnx]`.
    for extra, texts in groups.items():
        for other in re.findall(r"robench\[(.*?)\]", " ".join(texts)):
            found[extra] |= {name for part in other.split(",") for name in found[part]}
    return found


def test_what_the_package_imports_is_what_it_declares():
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


def test_what_the_tests_import_is_what_they_declare():
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


def test_a_name_that_is_not_declared_is_seen(tmp_path):
    (tmp_path / "file.py").write_text("import pandas as pd\nfrom torch import nn\nneeded('onnx.helper', 1)\n")
    assert list(modules(tmp_path / "file.py")) == ["pandas", "torch", "onnx.helper"]
