"""Processes that do tasks: `python -m robench.corruption.workers`, spoken to over its standard input and output.

Not concurrent.futures.ProcessPoolExecutor, which is as fast: spawned, it imports the caller's script again, so an
unguarded script fails and one that imports torch does so in each process; killed, it leaves its processes behind.
These end when their input does, however that comes about, and start in the same way on every system.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from robench.core.errors import ResourceError, RobenchError

_ROOT = Path(__file__).resolve().parents[2]


class Workers:
    """So many processes, started when there is work for them and ended with the block.

    Args:
        count: of processes.
    """

    def __init__(self, count: int):
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._own = threading.local()
        self._processes: list[subprocess.Popen] = []
        self._ended = False

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()

    def submit(self, task: object, method: str) -> Future:
        """What `task.method()` gives in another process; both must be picklable.

        The future raises what the method raised, and ResourceError when the process dies.
        """
        return self._threads.submit(self._ask, task, method)

    def _ask(self, task: object, method: str) -> Any:
        process: subprocess.Popen | None = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = _start()
            self._processes.append(process)
        assert process.stdin and process.stdout
        try:
            pickle.dump((task, method), process.stdin, protocol=5)
            process.stdin.flush()
            held, answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = None if self._ended else process.wait()
            raise ResourceError(
                f"a process that makes corrupted images ended (exit code {code}), most likely for want of memory: "
                "repeat the command with fewer --workers; what was saved before is intact"
            ) from error
        if held:
            return answer
        raise answer


def _start() -> subprocess.Popen:
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    # One thread each: there are as many processes as there are cores.
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "robench.corruption.workers"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _serve(asked: IO[bytes], told: IO[bytes]) -> None:
    import cv2

    cv2.setNumThreads(1)
    while True:
        try:
            task, method = pickle.load(asked)
        except EOFError:
            return
        try:
            answer = (True, getattr(task, method)())
        except RobenchError as error:
            answer = (False, error)
        except Exception as error:
            # Not every exception can be pickled; what it said can.
            answer = (False, RuntimeError(f"{type(error).__name__}: {error}"))
        try:
            pickle.dump(answer, told, protocol=5)
            told.flush()
        except OSError:
            # A broken pipe: the other process is gone, and what is left in the buffer with it.
            os._exit(0)


def main() -> None:
    """Do tasks until there are no more."""
    # An interrupt from the keyboard goes to all processes alike; whoever started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The library prints to stdout here and there, which is for answers alone.
    asked, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(asked, told)


if __name__ == "__main__":
    main()
