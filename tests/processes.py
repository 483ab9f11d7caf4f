"""Processes that a test can kill, forked from the tests so that nothing is imported again."""

import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class Process:
    """A running `function(*arguments)` in folder `cwd`, with its own stdin, stdout and stderr.

    The exit status is 0, the code of a `SystemExit`, or 1 for another exception, whose traceback is on stderr.

    Args:
        environment: variables that differ from this process; None removes one.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: Any,
        cwd: Path,
        environment: Mapping[str, str | None] | None = None,
    ):
        self._out, self._err = self._file(), self._file()
        self._process = multiprocessing.get_context("fork").Process(
            target=_run, args=(function, arguments, cwd, str(self._out), str(self._err), environment or {})
        )
        with warnings.catch_warnings():
            # Of a process with several threads. Those of the tests hold no lock that the new process needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()

    def _file(self) -> Path:
        """A file that is deleted with this object. It is not kept open: what is left to the garbage collector warns."""
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        weakref.finalize(self, Path(name).unlink, missing_ok=True)
        return Path(name)

    def poll(self) -> int | None:
        """The exit status, negative for the signal that ended it; None while it runs."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> tuple[int, str, str]:
        """Wait for the process; returns exit status, stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(self._err.read_text())
        return self._process.exitcode, self._out.read_text(), self._err.read_text()


class Command(Process):
    """A running `robench ARGUMENTS`.

    Args:
        saves: keep the state of a run after every query, so that there is something to resume on any machine.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        environment: Mapping[str, str | None] | None = None,
        saves: bool = False,
    ):
        super().__init__(_command, list(arguments), saves, cwd=cwd, environment=environment)


def script(text: str, *arguments: str) -> None:
    """Run Python code as a script of its own, without the modules of robench that were imported before."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "robench"]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "robench._moved"]
    path = Path.cwd() / "script.py"
    path.write_text(text)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    exec(compile(text, str(path), "exec"), {"__name__": "__main__", "__file__": str(path)})


def _command(arguments: list[str], saves: bool) -> None:
    from robench.cli import main

    if saves:
        from robench.engine import checkpoint

        checkpoint._INTERVAL, checkpoint._RATIO = 0, 0
    sys.argv = ["robench", *arguments]
    main(arguments)


def _run(
    function: Callable[..., object],
    arguments: tuple[Any, ...],
    cwd: Path,
    out: str,
    err: str,
    environment: Mapping[str, str | None],
) -> None:
    os.chdir(cwd)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    for stream, (descriptor, path) in {"stdout": (1, out), "stderr": (2, err)}.items():
        os.dup2(os.open(path, os.O_WRONLY | os.O_TRUNC), descriptor)
        setattr(sys, stream, os.fdopen(descriptor, "w", closefd=False))
    # As in a terminal: a process that is started in the background ignores interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Warnings are for stderr again, and not for the report of the tests.
    warnings.showwarning = lambda *given: print(warnings.formatwarning(*given[:4]), file=sys.stderr)
    warnings.simplefilter("ignore")
    function(*arguments)
