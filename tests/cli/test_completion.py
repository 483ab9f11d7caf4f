"""What shells complete: names of every kind, the last of several, and paths; and that it takes no torch."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.cli.test_startup import SLOW

COMMAND = [sys.executable, "-m", "robench"]
# Completes the words that the environment names, and prints to stderr which modules of SLOW were imported.
PROBE = """
import sys
from robench.cli import main
try:
    main([])
finally:
    print([name for name in sys.argv[1].split() if name in sys.modules], file=sys.stderr)
"""


def completions(words: str, tmp_path, shell: str = "bash") -> list[str]:
    *before, last = words.split(" ")
    environment = {
        "_ROBENCH_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(before) if shell == "fish" else words,
        "COMP_CWORD": last if shell == "fish" else str(len(before)),
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, " ".join(SLOW)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 0 and ended.stderr.splitlines() == ["[]"], ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("robench dia", {"diagnose"}),
        ("robench run --def", {"--defense"}),
        ("robench run --defense pgd-at", {"pgd-at", "pgd-at-digits", "pgd-at-cifar10"}),
        ("robench run --defense timm", {"timm:"}),
        ("robench run --defense mimir,pgd-at-d", {"mimir,pgd-at-digits"}),
        ("robench run --defense maep-digits+pgd-at-d", {"maep-digits+pgd-at-digits"}),
        ("robench run --attack autoattack", {"autoattack", "autoattack-plus"}),
        ("robench run --attack pgd,spars", {"pgd,sparse-rs"}),
        ("robench run --dataset cifar", {"cifar10", "cifar100"}),
        ("robench run --protocol digits-l", {"digits-linf", "digits-l2"}),
        ("robench run --knowledge bp", {"bpda"}),
        ("robench run --knowledge transfer:st", {"transfer:standard"}),
        ("robench run --threat L", {"Linf:", "L2:"}),
        ("robench train trades", {"trades-digits"}),
        ("robench table mim", {"mimir"}),
        ("robench list d", {"defenses", "datasets"}),
        ("robench show digits-linf", {"digits-linf"}),
        ("robench plot sc", {"scatter"}),
    ],
)
def test_names(words, names, tmp_path):
    assert {f"plain,{name}" for name in names} <= set(completions(words, tmp_path))


@pytest.mark.parametrize("words", ["robench verify re", "robench board ", "robench run --results "])
def test_folders_are_left_to_the_shell(words, tmp_path):
    assert completions(words, tmp_path) == [f"dir,{words.rpartition(' ')[2]}"]


def test_fish(tmp_path):
    assert "plain,autoattack" in completions("robench run --attack autoa", tmp_path, "fish")


def script(shell: str) -> str:
    ended = subprocess.run(
        COMMAND, env={**os.environ, "_ROBENCH_COMPLETE": f"{shell}_source"}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell, tmp_path):
    text = script(shell)
    assert f"_ROBENCH_COMPLETE={shell}_complete" in text
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        check = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
        assert check.returncode == 0, check.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_with_its_script(tmp_path):
    (tmp_path / "robench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m robench "$@"\n')
    (tmp_path / "robench").chmod(0o755)
    (tmp_path / "script").write_text(script("bash"))
    typed = (
        "source ./script; COMP_WORDS=(robench run --attack autoattack-p); COMP_CWORD=3; "
        '_robench_completion robench; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", typed], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["autoattack-plus"], ended.stderr
