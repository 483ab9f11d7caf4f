"""Commands that call no network import neither torch nor anything else that takes as long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("torch", "torchvision", "timm", "scipy", "sklearn", "pandas", "pyarrow", "matplotlib", "sympy")
# Runs commands one after another, and prints each one's exit code and which of SLOW it was the first to import.
PROBE = """
import contextlib, io, json, sys
from robench.cli import main
slow, commands = json.loads(sys.argv[1])
ended, seen = {}, set()
for command in commands:
    errors = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            main(command.split())
        except SystemExit as end:
            code = end.code or 0
    imported = [name for name in slow if name in sys.modules and name not in seen]
    seen.update(imported)
    ended[command] = code, imported, errors.getvalue()
print(json.dumps(ended))
"""
COMMANDS = {
    "": 0,
    "--help": 0,
    "--version": 0,
    "run --help": 0,
    "sweep --help": 0,
    "curve --help": 0,
    "transfer --help": 0,
    "diagnose --help": 0,
    "certify --help": 0,
    "challenge --help": 0,
    "list certifiers": 0,
    "show smoothing": 0,
    "list --help": 0,
    "show --help": 0,
    "train --help": 0,
    "corrupt --help": 0,
    "verify --help": 0,
    "check --help": 0,
    "board --help": 0,
    "table --help": 0,
    "plot --help": 0,
    "results": 0,
    "results --help": 0,
    "results merge --help": 0,
    "cache --help": 0,
    "doctor --help": 0,
    "doctor --quick": 0,
    "list": 0,
    "list --json": 0,
    "show mimir-digits": 0,
    "show maep": 0,
    "show autoattack": 0,
    "show unforeseen": 0,
    "show pgd": 0,
    "show digits": 0,
    "show digits-linf": 0,
    "show fog": 0,
    "show timm": 0,
    "show nosuch": 2,
    "rnu": 2,
    "run --defnse mimir": 2,
    "run --defense mimr": 2,
    "run --defense mimir --attack autoatack": 2,
    "run --defense mimir --attack pgdd(steps=3)": 2,
    "run --defense mimir --attack pgd(stepz=3)": 2,
    "show pgd(stepz=3)": 2,
    "run --defense mimir --protocol digts": 2,
    "run --defense mimir --dataset digts": 2,
    "run --defense mimir --threat Linf": 2,
    "run --defense mimir --knowledge bdpa": 2,
    "sweep steps=1,2 --defense mimr": 2,
    "curve 0:1:3 --defense mimr": 2,
    "transfer --defense mimr": 2,
    "diagnose --defense mimr": 2,
    "train nosuch": 2,
    "sweep sigma=1 --defense de3-digits": 2,
    "curve 0:1 --defense mimir": 2,
    "corrupt --dataset nosuch --output made": 2,
    "check nosuch.toml": 3,
}


SHIPPED = Path(__file__).parents[2] / "results/shipped"
RECORDS = " ".join(str(SHIPPED / name) for name in ("digits-linf", "digits-linf-0.1", "digits-blur"))
# These read records, and find no such record or table before they import a network.
MISSING = {
    "verify nosuch": 3,
    "challenge nosuch x.pt --finder me": 3,
    "table mimr": 2,
    "board --columns nosuch": 2,
}
# These read records.
BOARDS = [
    f"{start} {RECORDS}"
    for start in (
        "board --more",
        "board --format html --output site --no-pictures",
        "table mimir",
        "table purifiers --suite purifier-cheap",
    )
]


def probe(commands, folder):
    """By command: its exit code, which slow modules it was the first to import, and what it wrote to stderr."""
    process = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([SLOW, commands])],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return probe([*COMMANDS, *MISSING, *BOARDS], tmp_path_factory.mktemp("empty"))


def test_boards_and_tables_import_no_network(ended):
    for command in BOARDS:
        code, imported, err = ended[command]
        # scipy for intervals and ranks, pyarrow for samples.
        assert (code, err) == (0, "") and {*imported} <= {"scipy", "pyarrow"}, command


def test_a_run_imports_torch_and_nothing_as_large(tmp_path):
    """Cards of the digits are built from our own layers: timm and torchvision take longer to import than torch."""
    command = "run --defense mimir --attack fgsm --samples 4 --workers 1"
    code, imported, err = probe([command], tmp_path)[command]
    assert (code, imported) == (0, ["torch", "pyarrow"]), err
    code, imported, err = probe([command], tmp_path)[command]
    assert "using the saved record" in err
    assert (code, imported) == (0, ["torch", "pyarrow"])


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_slow_is_imported(command, ended):
    code, imported, err = ended[command]
    assert code == COMMANDS[command], err
    assert imported == []
    assert "Traceback" not in err


@pytest.mark.parametrize("command", MISSING)
def test_what_is_missing_is_told_before_torch_is_imported(command, ended):
    code, imported, err = ended[command]
    assert code == MISSING[command] and "Traceback" not in err and {*imported} <= {"pyarrow", "scipy"}


def test_every_command_is_among_them():
    from robench.cli.main import COMMANDS as every

    assert {f"{name} --help" for name in every} <= COMMANDS.keys()
