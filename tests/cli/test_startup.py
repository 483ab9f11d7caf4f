"""Commands that call no network import neither torch nor anything else that takes as long."""

import os
import subprocess
import sys

import pytest

SLOW = ("torch", "torchvision", "timm", "scipy", "sklearn", "pandas", "pyarrow", "matplotlib")
# Runs a command, and lists on the last line of stderr which of SLOW were imported.
PROBE = """
import sys
from robench.cli import main
try:
    main(sys.argv[2:])
finally:
    print([name for name in sys.argv[1].split() if name in sys.modules], file=sys.stderr)
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
    "list --help": 0,
    "show --help": 0,
    "train --help": 0,
    "corrupt --help": 0,
    "verify --help": 0,
    "check --help": 0,
    "board --help": 0,
    "table --help": 0,
    "plot --help": 0,
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
    "run --defense mimir --protocol digts": 2,
    "run --defense mimir --dataset digts": 2,
    "run --defense mimir --threat Linf": 2,
    "run --defense mimir --knowledge bdpa": 2,
    "sweep steps=1,2 --defense mimr": 2,
    "curve 0:1:3 --defense mimr": 2,
    "transfer --defense mimr": 2,
    "diagnose --defense mimr": 2,
}


def probe(arguments: list[str], folder, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, " ".join(SLOW), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_slow_is_imported(command, tmp_path):
    ended = probe(command.split(), tmp_path)
    assert ended.returncode == COMMANDS[command], ended.stderr
    assert ended.stderr.splitlines()[-1] == "[]"
    assert "Traceback" not in ended.stderr


def test_every_command_is_among_them():
    from robench.cli.main import COMMANDS as every

    assert {f"{name} --help" for name in every} <= COMMANDS.keys()
