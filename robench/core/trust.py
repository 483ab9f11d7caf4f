"""Trust in names that are read from files.

A record, card, suite, protocol or baseline may come from a stranger, so a name read from one may only refer to a
shipped or registered card, attack or dataset. A name that runs code, downloads a model or opens another file is
accepted only if the user typed it or passes `--trust`.

Strings read from such a file are `Written`: they carry the file's name, and so do strings derived from them. Call
`admit` before loading anything by name. A plain string is a name that the user typed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from robench.core.errors import UsageError

Value = TypeVar("Value")


class Written(str):
    """A string that was read from a file.

    Attributes:
        file: the file it was read from, for messages.
    """

    file: str

    def __new__(cls, text: str, file: str = "a file") -> "Written":
        string = super().__new__(cls, text)
        string.file = file
        return string


class Untrusted(UsageError):
    """A file names something that may only be loaded if the user trusts the file."""


class _Trust:
    def __init__(self, note: Callable[[str], object]):
        self._note = note
        self._noted: set[str] = set()

    def note(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            self._note(line)


_trust: ContextVar[_Trust | None] = ContextVar("trust", default=None)


@contextmanager
def trusting(note: Callable[[str], object] = lambda line: None) -> Iterator[None]:
    """Inside the block, allow loading of anything that files name, as `--trust` does.

    Args:
        note: called once with a line about each name before it is loaded.
    """
    token = _trust.set(_Trust(note))
    try:
        yield
    finally:
        _trust.reset(token)


def is_trusting() -> bool:
    """Whether this is inside a block of `trusting`."""
    return _trust.get() is not None


def written(value: Value, file: str) -> Value:
    """`value` with all its strings marked as `Written`, including those in collections and values of mappings."""
    marked: Any = value
    if isinstance(value, str):
        marked = Written(value, file)
    elif isinstance(value, Mapping):
        marked = {key: written(item, file) for key, item in value.items()}
    elif isinstance(value, list | tuple | set | frozenset):
        marked = type(value)(written(item, file) for item in value)
    return marked


def like(name: str, value: Value) -> Value:
    """Mark `value`, which was derived from `name`, as `written` if `name` was read from a file."""
    return written(value, name.file) if isinstance(name, Written) else value


def _keeping(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: like(self, method(self, *args, **kwargs))


# Strings derived from what was read from a file count as read from that file.
_DERIVING = (
    "__add__ __getitem__ __mod__ capitalize casefold expandtabs format join lower lstrip partition removeprefix "
    "removesuffix replace rpartition rsplit rstrip split splitlines strip swapcase title translate upper"
)
for _name in _DERIVING.split():
    setattr(Written, _name, _keeping(getattr(str, _name)))


def admit(name: object, does: str) -> None:
    """Check that a name was typed by the user or is trusted; call this before loading anything by name.

    Args:
        name: as written in the file or on the command line.
        does: what loading it does, completing the sentence "FILE names NAME, which ...".

    Raises:
        Untrusted: if it was read from a file and `--trust` is not given.
    """
    if not isinstance(name, Written):
        return
    line = f'{name.file} names "{name}", which {does}'
    trust = _trust.get()
    if trust is None:
        raise Untrusted(f"{line}: pass the name on the command line if you trust it, or add --trust")
    trust.note(f"trusted: {line}")
