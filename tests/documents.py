"""Plays a page of the documents as a reader would: its files are written and its commands run, in a folder."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

from robench.cli.main import main

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?[^\n]*\n(.*?)^```', re.MULTILINE | re.DOTALL)
# What is not run: it installs, or asks another host.
SKIPPED = ("pip ", "git ", "curl ")


def play(page: Path, folder: Path, monkeypatch, shorter: dict[str, str] | None = None) -> None:
    """Write every block with a title to that file, run each line of every other bash block and every Python block.

    Args:
        folder: the working folder; modules written there are forgotten at the end.
        shorter: texts to replace, so that a command does less.
    """
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    before, namespace = set(sys.modules), {"__name__": "page"}
    try:
        for language, title, body in BLOCK.findall(page.read_text()):
            for old, new in (shorter or {}).items():
                body = body.replace(old, new)
            if title:
                (folder / title).parent.mkdir(parents=True, exist_ok=True)
                (folder / title).write_text(body)
            elif language == "bash":
                for line in body.replace("\\\n", " ").splitlines():
                    run(line, folder)
            elif language == "python":
                exec(compile(body, str(page), "exec"), namespace)
    finally:
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder:
                del sys.modules[name]


def run(line: str, folder: Path) -> None:
    """Run one command; `# exit code N` behind it says how it ends."""
    command, _, comment = line.partition("#")
    expected = int(comment.rpartition(" ")[2]) if "exit code" in comment else 0
    if not command.strip() or command.startswith(SKIPPED):
        return
    words = [word for part in shlex.split(command) for word in expanded(part, folder)]
    if words[0] == "robench":
        try:
            main(words[1:])
        except SystemExit as ended:
            assert ended.code == expected, f"{command}: exit code {ended.code}"
    elif words[0] == "python":
        runpy.run_path(str(folder / words[1]), run_name="__main__")
    else:
        assert words[0] in ("pytest", "mkdir", "cp"), f"{command}: not a command of these documents"
        program = [sys.executable, "-m", "pytest"] if words[0] == "pytest" else words[:1]
        ended = subprocess.run([*program, *words[1:]], cwd=folder, capture_output=True, text=True)
        assert ended.returncode == expected, ended.stdout + ended.stderr


def expanded(word: str, folder: Path) -> list[str]:
    """The files that a pattern of the shell names; the word itself where it is none."""
    if "*" not in word:
        return [word]
    return [str(path.relative_to(folder)) for path in sorted(folder.glob(word))]
