"""Records of runs. `robench.records(folder)` reads them into a pandas DataFrame: see `robench.records.frame`."""

import sys
from types import ModuleType
from typing import Any


class _Records(ModuleType):
    """The package, which can be called as the function of its name in the Python interface."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from robench.records.frame import frame

        return frame(*arguments, **named)


sys.modules[__name__].__class__ = _Records
