"""Commands of robench in processes that a test can kill, forked from one with all imports done."""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "timm", "robench.cli.main", "robench.evaluation.run", __name__])


class Command:
    """A running `robench ARGUMENTS` in folder `cwd`.

    Args:
        environment: variables beside those of this process.
        saves: keep the state of a run after every question, so that there is something to resume on any machine.
    """

    def __init__(
        self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, saves: bool = False
    ):
        self._out, self._err = (tempfile.NamedTemporaryFile() for _ in range(2))  # noqa: SIM115
        self._process = _CONTEXT.Process(
            target=_run,
            args=(arguments, str(cwd), self._out.name, self._err.name, dict(environment or {}), saves),
        )
        self._process.start()

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
            raise TimeoutError(Path(self._err.name).read_text())
        return self._process.exitcode, Path(self._out.name).read_text(), Path(self._err.name).read_text()


def _run(
    arguments: tuple[str, ...], cwd: str, out: str, err: str, environment: dict[str, str], saves: bool
) -> None:
    os.chdir(cwd)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_TRUNC), descriptor)
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})
    import torch

    torch.set_num_threads(1)
    if saves:
        from robench.engine import checkpoint

        checkpoint._INTERVAL, checkpoint._RATIO = 0, 0
    from robench.cli import main

    sys.argv = ["robench", *arguments]
    main(list(arguments))
