"""Output that goes to a pipe is never folded or cropped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECORD = Path(__file__).parents[2] / "results/shipped/digits-gabor/standard-digits/apgd-steps-50"
NAME = "digits-linf"


def run(*arguments, columns=""):
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    env |= {"COLUMNS": columns} if columns else {}
    command = [sys.executable, "-m", "robench", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("board", str(RECORD.parent)),
        ("show", str(RECORD)),
    ],
    ids=lambda arguments: arguments[0],
)
def test_piped_output_is_as_wide_as_its_lines(arguments):
    piped, wide = run(*arguments), run(*arguments, columns="5000")
    assert piped.splitlines() == wide.splitlines()
    assert max(map(len, piped.splitlines())) > 80
