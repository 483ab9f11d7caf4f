"""Output that goes to a pipe is never folded or cropped."""

import shutil
from pathlib import Path

import pytest

from robench.catalog import protocols
from tests.combinations import first_only
from tests.processes import Command

RECORD = Path(__file__).parents[2] / "results/shipped/digits-gabor/standard-digits/apgd-steps-50"


def run(*arguments, cwd, columns=None):
    code, out, err = Command(*arguments, cwd=cwd, environment={"COLUMNS": columns}).wait()
    assert code == 0, err
    return out


@pytest.mark.parametrize("command", first_only(2, ["board", "show", "verify", "doctor"]))
def test_piped_output_is_as_wide_as_its_lines(tmp_path, command):
    # A copy: `show` draws a picture beside the record.
    record = tmp_path / RECORD.parent.name / RECORD.name
    shutil.copytree(RECORD, record)
    places = {"board": [str(record.parent)], "doctor": ["--quick"]}
    arguments = (command, *places.get(command, [str(record)]))
    piped, wide = run(*arguments, cwd=tmp_path), run(*arguments, cwd=tmp_path, columns="5000")
    assert piped.splitlines() == wide.splitlines()
    assert max(map(len, piped.splitlines())) > 80


def test_a_narrow_list_breaks_no_name(tmp_path):
    words = " ".join(run("list", "protocols", cwd=tmp_path, columns="80").split())
    for protocol in protocols().values():
        assert protocol.description in words
        if protocol.threat:
            assert (
                f"dataset {protocol.dataset}; threat {protocol.threat}; samples {protocol.samples:,}" in words
            )
