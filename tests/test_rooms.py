"""The architecture: which package may import which, sizes of files and signatures, and old module names."""

import ast
import importlib
import sys
import warnings
from pathlib import Path

import pytest

from robench import _moved
from tests.processes import Process, script

HOUSE = Path(_moved.__file__).parent
# A module may only import from its own package and from packages earlier in this list.
FLOORS = """_moved core corruption threats attacks data statistics catalog defenses canonical engine records training
    certification evaluation reports verification diagnosis pytest_plugin cli __main__""".split()  # noqa: SIM905
# Files that are too long; no others may be added.
TOO_LONG: set[str] = set()
# Functions with more than eight arguments; no others may be added. These are public and take them by keyword.
LONG_SIGNATURES = {
    "robench.defenses._base.Defense.__init__",
    "robench.evaluation.attack.attack",
    "robench.training.trainer.train",
}
MODULES = {
    ".".join(("robench", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in HOUSE.rglob("*.py")
    if "_content" not in path.parts
}


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def statements(node: ast.AST) -> list[ast.AST]:
    """The statements right inside a node: expressions, which are most of a file, hold neither imports nor functions."""
    kinds = (ast.stmt, ast.excepthandler, ast.match_case)
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, kinds)]


def imports(path: Path) -> set[str]:
    """The modules of robench that a file imports anywhere, except for type annotations only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{each.name}" for each in node.names}
            found.update(name if name in MODULES else node.module for name in whole)
        for child in statements(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name.split(".")[0] == "robench"}


def test_imports_point_downward():
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in imports(path)
        if room(module) and room(other) and FLOORS.index(room(other)) > FLOORS.index(room(module))
    ]
    assert not upward
    assert {room(module) for module in MODULES} - {""} == set(FLOORS)


def test_the_root_has_exactly_six_modules():
    assert len(list(HOUSE.glob("*.py"))) <= 6


def test_files_are_short():
    lines = {module: path.read_text().count("\n") for module, path in MODULES.items()}
    assert {module for module, count in lines.items() if count > 400} == TOO_LONG


def signatures(module: str, path: Path) -> dict[str, int]:
    """The number of arguments of each function, except commands and registered builders: theirs are settings."""
    counts: dict[str, int] = {}

    def visit(node: ast.AST, name: str) -> None:
        decorators = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
        if any(".register(" in each or ".command(" in each for each in decorators):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}"
        if isinstance(node, ast.FunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            counts[name] = len([each for each in every if each.arg not in ("self", "cls")])
        for child in statements(node):
            visit(child, name)

    visit(ast.parse(path.read_text()), module)
    return counts


def test_functions_take_eight_arguments_at_most():
    counts = {name: n for module, path in MODULES.items() for name, n in signatures(module, path).items()}
    assert {name for name, count in counts.items() if count > 8} <= LONG_SIGNATURES


def test_tests_mirror_the_packages():
    rooms = {path.name for path in HOUSE.iterdir() if (path / "__init__.py").exists()}
    tests = {path.name for path in Path(__file__).parent.iterdir() if (path / "__init__.py").exists()}
    assert tests - rooms == {"perf"} and rooms == tests - {"perf"}


def test_every_old_module_name_works():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for old, new in {**_moved.MOVED, **_moved.PACKAGES}.items():
            sys.modules.pop(f"robench.{old}", None)
            module = importlib.import_module(f"robench.{old}")
            assert f"robench.{new}" in MODULES
            if old in _moved.MOVED and not any(name.rpartition(".")[0] == old for name in _moved.NAMES):
                assert module is importlib.import_module(f"robench.{new}")
            assert f"robench.{old} is now robench.{new}" in {str(each.message) for each in caught}


@pytest.mark.parametrize("old", _moved.NAMES)
def test_old_names_refer_to_the_new_objects(old):
    home, _, name = old.rpartition(".")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if home in {**_moved.MOVED, **_moved.PACKAGES}:
            sys.modules.pop(f"robench.{home}", None)
        value = getattr(importlib.import_module(f"robench.{home}"), name)
    assert any("is now robench." in str(each.message) for each in caught)
    new = _moved.NAMES[old]
    assert value is getattr(
        importlib.import_module(f"robench.{new.rpartition('.')[0]}"), new.rpartition(".")[2]
    )


def test_old_imports_work_in_a_fresh_process(tmp_path):
    """In a fresh process, where nothing has been imported under its new name."""
    text = (
        "import warnings; warnings.simplefilter('always')\n"
        "from robench import registry, specs\n"
        "from robench.threat import Threat\n"
        "import robench.results.record\n"
        "from robench.results import verify, store\n"
        "from robench.transformations._base import Transformation\n"
        "from robench.engine.network import Network\n"
        "import robench.core.registry, robench.threats.threat, robench.records.store\n"
        "assert registry is robench.core.registry and Threat is robench.threats.threat.Threat\n"
        "assert store is robench.records.store and robench.results.record.Record is robench.records.record.Record\n"
    )
    code, _, err = Process(script, text, cwd=tmp_path).wait()
    assert code == 0, err
    # One warning for each name, at the line of the import.
    assert err.count("DeprecationWarning: robench.threat is now robench.threats.threat") == 1
    assert "script.py:3: DeprecationWarning: robench.threat is now" in err


def test_arguments_and_attributes_of_before_work():
    """`among` and `fit`, which are `class_subset` and `size_mode` now."""
    from robench.data import load_dataset
    from robench.data._base import Images
    from robench.data.class_subset import Subset
    from robench.defenses import load_defense
    from robench.defenses.maep import MAEP

    images = load_dataset("digits", "test", samples=2)
    fields = (images.name, images.split, images.x, images.y, images.ids, images.classes)
    with pytest.warns(DeprecationWarning, match="among is now class_subset"):
        subset = Images(*fields, among=Subset((1,), 2)).class_subset  # pyright: ignore[reportCallIssue]
    assert subset == Subset((1,), 2)
    with pytest.warns(DeprecationWarning, match="attribute among is now class_subset"):
        assert images.among is None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.warns(DeprecationWarning, match="argument among is now class_subset"):
        assert load_defense("standard", among=None).num_classes == 10  # pyright: ignore[reportCallIssue]
    with pytest.warns(DeprecationWarning, match="argument fit is now size_mode"):
        assert MAEP(image_size=8, patch_size=4, fit="tile").size_mode == "tile"  # pyright: ignore[reportCallIssue]
