"""Worker processes: `python -m robench.corruption.workers`, with tasks on stdin and results on stdout.

concurrent.futures.ProcessPoolExecutor is equally fast but not used: with spawned processes it imports the caller's
script again, so a script without a main guard fails and torch is imported in each process; when killed, it leaves its
processes behind. Workers here end when their input is closed for any reason, and start the same way on every system.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any

from robench.core.errors import RobenchError, broken_package, ended

_ROOT = Path(__file__).resolve().parents[2]


class Workers:
    """A pool of processes, started on demand and ended with the block.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int):
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._local = threading.local()
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
        """Run `task.method()` in another process; task and result must be picklable.

        The future raises the exception of the method, or ResourceError if the process dies.
        """
        return self._threads.submit(self._ask, task, method)

    def _ask(self, task: object, method: str) -> Any:
        process: subprocess.Popen | None = getattr(self._local, "process", None)
        if process is None:
            process = self._local.process = _start()
            self._processes.append(process)
        assert process.stdin and process.stdout
        try:
            pickle.dump((task, method), process.stdin, protocol=5)
            process.stdin.flush()
            succeeded, answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = None if self._ended else process.wait()
            raise ended("a process that generates corrupted images", code) from error
        if succeeded:
            return answer
        raise answer


def _start() -> subprocess.Popen:
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    # One thread each, because there are as many processes as cores.
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "robench.corruption.workers"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


@cache
def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        try:
            task, method = pickle.load(requests)
        except EOFError:
            return
        try:
            _one_thread()
            answer = (True, getattr(task, method)())
        except RobenchError as error:
            answer = (False, error)
        except ImportError as error:
            answer = (False, broken_package(error))
        except Exception as error:
            # Not every exception can be pickled, but its message can.
            answer = (False, RuntimeError(f"{type(error).__name__}: {error}"))
        try:
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
        except OSError:
            # A broken pipe: the parent process has ended.
            os._exit(0)


def main() -> None:
    """Run tasks until the input is closed."""
    # Ctrl-C reaches all processes; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The library may print, and stdout is reserved for answers.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(requests, answers)


if __name__ == "__main__":
    main()
