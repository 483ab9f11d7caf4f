"""What a command does where it cannot print: no traceback, and the exit code of what happened."""

import contextlib
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robench import catalog
from robench.cli import main
from robench.cli.output import Output, spelled
from tests.combinations import each_once, first_only
from tests.processes import Process

RECORD = catalog.folder("result") / "shipped" / "digits-linf-0.1" / "standard-digits" / "pgd"
FEW = ["--samples", "4", "--threat", "Linf:0.1", "--workers", "1"]
PRINTING = {
    "help": ["--help"],
    "version": ["--version"],
    "run": ["run", "--defense", "pgd-at", "--attack", "fgsm", *FEW],
    "run json": ["run", "--defense", "pgd-at", "--attack", "fgsm", *FEW, "--json"],
    "list defenses": ["list", "defenses"],
    "list protocols": ["list", "protocols", "--json"],
    "list datasets": ["list", "datasets"],
    "show card": ["show", "mimir-digits"],
    "show attack": ["show", "fgsm"],
    "show record": ["show", "RECORD"],
    "verify": ["verify", "RECORD"],
    "check": ["check", "RECORD"],
    "board": ["board", "RECORD"],
    "board md": ["board", "RECORD", "--format", "md"],
    "board latex": ["board", "RECORD", "--format", "latex"],
    "board csv": ["board", "RECORD", "--format", "csv"],
    "board html": ["board", "RECORD", "--format", "html", "--no-pictures", "--output", "pages"],
    "table": ["table", "mimir", "RECORD"],
    "plot": ["plot", "scatter", "RECORD", "--output", "plot.svg"],
    "merge": ["results", "merge", "RECORD", "--into", "merged"],
    "export": ["results", "export", "RECORD", "--output", "all.zip"],
    "prune": ["results", "prune", ".", "--dry-run"],
    "cache": ["cache"],
    "doctor": ["doctor"],
}  # fmt: skip


class Raw(io.RawIOBase):
    """A disk that is full, or a pipe whose reader has gone, after some bytes."""

    def __init__(self, number, room=0):
        self.number, self.room, self.taken = number, room, b""

    def writable(self):
        return True

    def write(self, content):
        if len(self.taken) + len(content) > self.room:
            raise OSError(self.number, os.strerror(self.number))
        self.taken += bytes(content)
        return len(content)


def stream(raw, encoding="utf-8"):
    return io.TextIOWrapper(io.BufferedWriter(raw, 1), encoding=encoding, write_through=True)


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """Exit code, stdout and stderr of a command with some stdout."""

    def call(arguments, out):
        errors, folder = io.StringIO(), tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        monkeypatch.chdir(folder)
        # Pictures are drawn beside a record.
        shutil.copytree(RECORD, folder / "record")
        told = ["record" if each == "RECORD" else each for each in arguments]
        with monkeypatch.context() as patch, contextlib.redirect_stderr(errors):
            patch.setattr(sys, "stdout", out)
            with pytest.raises(SystemExit) as end:
                main(told)
        assert "Traceback" not in errors.getvalue()
        return end.value.code, errors.getvalue()

    return call


FULL = "robench: cannot write to stdout (No space left on device)"
# What stdout is, whether the command fails for it, and how its last line begins then.
STREAMS = {
    "a full disk": (lambda: stream(Raw(errno.ENOSPC)), True, FULL),
    "a disk that is soon full": (lambda: stream(Raw(errno.ENOSPC, 4)), True, FULL),
    "closed": (lambda: None, True, ""),
    # A reader who has seen enough is no failure, and hides none.
    "a pipe without a reader": (lambda: stream(Raw(errno.EPIPE)), False, ""),
}


@pytest.mark.parametrize(("name", "out"), each_once(PRINTING, STREAMS))
def test_every_command_ends_as_it_should(ended, name, out):
    # ASCII, whose spelling of a line is the most to go wrong.
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    expected, _ = ended(PRINTING[name], narrow)
    assert expected in (0, 3) if name == "doctor" else expected == 0
    narrow.flush()
    lines = narrow.buffer.getvalue().decode().splitlines()
    assert lines and lines == [line.rstrip(" ") for line in lines]
    build, fails, said = STREAMS[out]
    code, err = ended(PRINTING[name], build())
    assert code == (3 if fails else expected)
    assert not said or err.splitlines()[-1].startswith(said)


def test_a_failure_keeps_its_code_whatever_becomes_of_stdout(ended):
    for out in (stream(Raw(errno.ENOSPC)), stream(Raw(errno.EPIPE)), None):
        code, err = ended(["run", "--defense", "mimr", "--attack", "fgsm"], out)
        assert code == 2 and "did you mean mimir" in err


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("45 ± 3 % → «ok»", "ascii", "45 +- 3 % -> ?ok?"),
        ("┏━┳━┓│é…", "ascii", "+-+-+|e."),
        ("é ±", "latin-1", "é ±"),
        ("é ├", "latin-1", "é +"),
        ("é ├", "utf-8", "é ├"),
        ("\udcff", "utf-8", "?"),
        ("x → y", "no-such-encoding", "x -> y"),
    ],
)
def test_what_an_encoding_lacks_is_spelled(text, encoding, shown):
    assert spelled(text, encoding) == shown


def test_it_is_a_text_stream_like_another():
    out = Output(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert out.encoding == "ascii" and out.writable() and not out.isatty()
    assert print("é", file=out) is None and out.failure is None
    with pytest.raises(TypeError):
        out.write(b"")  # type: ignore[arg-type]
    assert Output(None).encoding == "utf-8" and not Output(None).isatty()


LIST = [sys.executable, "-m", "robench", "list", "protocols"]


@pytest.mark.parametrize(
    ("shell", "code"),
    [("{} > /dev/full", 3), ("{} >&-", 3), ("{} >&- 2>&- <&-", 3), ("{} | true; exit ${{PIPESTATUS[0]}}", 0)],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
def test_so_it_is_in_a_process_of_its_own(tmp_path, shell, code):
    command = ["bash", "-c", "ulimit -n 32; " + shell.format(" ".join(LIST))]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert len(done.stderr.splitlines()) == (code == 3 and "2>&-" not in shell)


@pytest.mark.parametrize("after", first_only(1, [0.8, 0.15, 1.5, 2.5]))
def test_an_interrupt_while_modules_load_is_one_line(tmp_path, after):
    # Not before Python itself has begun: then it is Python's.
    start = (
        "import signal, sys, runpy; import robench.core.interrupts\n"
        # Started in the background, Python ignores interrupts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('here', flush=True); sys.argv = ['robench', 'doctor']\n"
        "runpy.run_module('robench', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.splitlines()[0].startswith("robench: interrupted")
    assert len(err.splitlines()) == 1


def test_an_interrupt_between_imports_is_one_line(capfd, monkeypatch):
    import robench.cli.doctor

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(robench.cli.doctor.command, "callback", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 130
    assert capfd.readouterr().err == "robench: interrupted: run the same command again to resume\n"


def with_few_descriptors(arguments):
    resource = pytest.importorskip("resource")
    # Those of the tests are closed, so that all are there for the run.
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    main(arguments)


def test_a_run_works_with_few_file_descriptors(tmp_path):
    run = ["run", "--defense", "pgd-at-digits", "--attack", "fgsm+pgd(steps=2)", *FEW[:-1], "2"]
    code, _, err = Process(with_few_descriptors, run, cwd=tmp_path).wait()
    assert code == 0, err
