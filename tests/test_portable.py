"""robench on a system without fcntl, fork and resource limits and with few signals, like Windows."""

from tests.processes import Process, script

SCRIPT = """
import os, signal, sys
# Other packages import these modules on Linux, so they are loaded before the modules are hidden.
import asyncio, huggingface_hub, matplotlib.pyplot, multiprocessing, PIL.Image, pyarrow.parquet, rich.console
import multiprocessing.popen_fork, shutil, sklearn.datasets, subprocess, timm, torch, torchvision, types

for module in (multiprocessing.popen_fork, subprocess):
    module.signal = types.SimpleNamespace(**vars(signal))
# As shutil finds out when it is imported there.
shutil._use_fd_functions = False

HIDDEN = "fcntl", "grp", "pwd", "resource", "termios", "tty"

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [*HIDDEN, *(name for name in sys.modules if name.partition(".")[0] in ("filelock", "robench"))]:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Finder())
for name in (
    "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fchmod", "fork", "forkpty", "getuid", "geteuid", "killpg", "pread",
    "pwrite", "register_at_fork", "sched_getaffinity", "setsid", "sysconf",
):
    delattr(os, name)
for name in ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "alarm", "pthread_kill"):
    delattr(signal, name)

import warnings
warnings.filterwarnings("ignore", "only soft file lock")
import robench
from robench.cli.main import main
"""
ATTACK = """
if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.rand(32, 3, 8, 8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    y = model(x).argmax(1)
    outcome = robench.attack("pgd(steps=3)", model, x, y, threat="Linf:0.03")
    assert 0 <= outcome.robust_accuracy < 1
    from robench.engine.workers import start_method
    assert start_method(torch.device("cpu"), model) == "spawn"
    main(["run", "--defense", "pgd-at-digits", "--attack", "pgd(steps=2)", "--samples", "8", "--workers", "1",
          "--results", "results"])
"""


def test_an_attack_and_a_run_without_posix_modules(tmp_path):
    code, _, err = Process(script, SCRIPT + ATTACK, cwd=tmp_path).wait()
    assert code == 0, err
    (record,) = (tmp_path / "results").rglob("record.json")
    assert not list(tmp_path.rglob("*.lock")) and record.stat().st_size > 1000
