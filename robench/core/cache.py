"""Where the files lie that can be made or fetched again."""

import os
from pathlib import Path

VARIABLE = "ROBENCH_CACHE"


def home_cache() -> Path:
    """The folder where no variable names another: ~/.cache/robench."""
    return Path.home() / ".cache" / "robench"


def cache_folder(kind: str) -> Path:
    """The folder of one kind of files, such as "checkpoints", in the cache: ROBENCH_CACHE, or ~/.cache/robench."""
    return Path(os.environ.get(VARIABLE) or home_cache()).expanduser() / kind
