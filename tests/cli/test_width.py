"""Output that goes to a pipe is never folded or cropped."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECORD = Path(__file__).parents[2] / "results/shipped/digits-gabor/standard-digits/apgd-steps-50"


def run(*arguments, columns=""):
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    env |= {"COLUMNS": columns} if columns else {}
    command = [sys.executable, "-m", "robench", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", ["board", "show", "verify", "doctor"])
def test_piped_output_is_as_wide_as_its_lines(tmp_path, command):
    # A copy: `show` draws a picture beside the record.
    record = tmp_path / RECORD.parent.name / RECORD.name
    shutil.copytree(RECORD, record)
    places = {"board": [str(record.parent)], "doctor": ["--quick"]}
    arguments = (command, *places.get(command, [str(record)]))
    piped, wide = run(*arguments), run(*arguments, columns="5000")
    assert piped.splitlines() == wide.splitlines()
    assert max(map(len, piped.splitlines())) > 80
