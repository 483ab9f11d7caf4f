"""Where cached files are stored; all of them can be rebuilt or downloaded again."""

import os
from pathlib import Path

VARIABLE = "ROBENCH_CACHE"


def home_cache() -> Path:
    """The default cache folder, ~/.cache/robench."""
    return Path.home() / ".cache" / "robench"


def cache_folder(kind: str) -> Path:
    """The cache folder of one kind of file, such as "checkpoints", under ROBENCH_CACHE or ~/.cache/robench."""
    return Path(os.environ.get(VARIABLE) or home_cache()).expanduser() / kind
