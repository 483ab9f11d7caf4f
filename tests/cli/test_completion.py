"""What shells complete: names of every kind, the last of several, and paths; and that it takes no torch."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.cli.test_startup import SLOW

COMMAND = [sys.executable, "-m", "robench"]
# Completes words in one environment after another, and prints each exit code, output and errors, and which modules of
# SLOW were imported.
PROBE = """
import contextlib, io, json, os, sys
from robench.cli import main
slow, environments = json.loads(sys.argv[1])
ended = []
for environment in environments:
    os.environ.update(environment)
    # Completions are written as bytes.
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([])
        except SystemExit as end:
            code = end.code or 0
    out.flush()
    ended.append([code, out.buffer.getvalue().decode(), err.getvalue()])
print(json.dumps([ended, [name for name in slow if name in sys.modules]]))
"""


def environment(words: str, shell: str) -> dict[str, str]:
    """What a shell tells a program whose arguments it completes."""
    *before, last = words.split(" ")
    return {
        "_ROBENCH_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(before) if shell == "fish" else words,
        "COMP_CWORD": last if shell == "fish" else str(len(before)),
    }


NAMES = {
    "robench dia": {"diagnose"},
    "robench run --def": {"--defense"},
    "robench run --defense pgd-at": {"pgd-at", "pgd-at-digits", "pgd-at-cifar10"},
    "robench run --defense timm": {"timm:"},
    "robench run --defense mimir,pgd-at-d": {"mimir,pgd-at-digits"},
    "robench run --defense maep-digits+pgd-at-d": {"maep-digits+pgd-at-digits"},
    "robench run --attack autoattack": {"autoattack", "autoattack-plus"},
    "robench run --attack pgd,spars": {"pgd,sparse-rs"},
    "robench run --dataset cifar": {"cifar10", "cifar100"},
    "robench run --protocol digits-l": {"digits-linf", "digits-l2"},
    "robench run --knowledge bp": {"bpda"},
    "robench run --knowledge transfer:st": {"transfer:standard"},
    "robench run --threat L": {"Linf:", "L2:"},
    "robench train trades": {"trades-digits"},
    "robench table mim": {"mimir"},
    "robench list d": {"defenses", "datasets"},
    "robench show digits-linf": {"digits-linf"},
    "robench plot sc": {"scatter"},
}
FOLDERS = ["robench verify re", "robench board ", "robench run --results "]
FISH = "robench run --attack autoa"
SHELLS = ["bash", "zsh", "fish"]


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    """What is printed for words and a shell, and the script of a shell, all by one process."""
    asked = {(words, "bash"): environment(words, "bash") for words in (*NAMES, *FOLDERS)}
    asked |= {(FISH, "fish"): environment(FISH, "fish")}
    asked |= {("script", shell): {"_ROBENCH_COMPLETE": f"{shell}_source"} for shell in SHELLS}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([SLOW, list(asked.values())])],
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("completion"),
    )
    assert done.returncode == 0, done.stderr
    ended, imported = json.loads(done.stdout)
    assert imported == []
    return dict(zip(asked, ended, strict=True))


def printed(ended: list) -> list[str]:
    code, out, err = ended
    assert (code, err) == (0, "")
    return out.splitlines()


@pytest.mark.parametrize("words", NAMES)
def test_names(words, completions):
    assert {f"plain,{name}" for name in NAMES[words]} <= set(printed(completions[words, "bash"]))


@pytest.mark.parametrize("words", FOLDERS)
def test_folders_are_left_to_the_shell(words, completions):
    assert printed(completions[words, "bash"]) == [f"dir,{words.rpartition(' ')[2]}"]


def test_fish(completions):
    assert "plain,autoattack" in printed(completions[FISH, "fish"])


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell(shell, tmp_path, completions):
    lines = printed(completions["script", shell])
    assert any(f"_ROBENCH_COMPLETE={shell}_complete" in line for line in lines)
    if shutil.which(shell):
        (tmp_path / "script").write_text("\n".join(lines))
        check = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
        assert check.returncode == 0, check.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_with_its_script(tmp_path):
    (tmp_path / "robench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m robench "$@"\n')
    (tmp_path / "robench").chmod(0o755)
    source = {**os.environ, "_ROBENCH_COMPLETE": "bash_source"}
    with (tmp_path / "script").open("w") as file:
        subprocess.run(COMMAND, env=source, stdout=file, check=True)
    typed = (
        "source ./script; COMP_WORDS=(robench run --attack autoattack-p); COMP_CWORD=3; "
        '_robench_completion robench; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", typed], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["autoattack-plus"], ended.stderr
