"""Names that come out of a file, and whether a person trusts them.

A record, card, suite, protocol or baseline may come from a stranger, so a name read from one means a shipped or
registered card, attack or data set and nothing else. Anything that runs code, fetches a model or opens another file
counts only when a person typed it, or passes `--trust`.

The strings of such a file are `Written`: they know their file, and so do the pieces that are cut out of them. Whoever
is about to load something that a name stands for calls `admit` first. A plain string is a name that a person typed.
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
        file: where it was read, for messages.
    """

    file: str

    def __new__(cls, text: str, file: str = "a file") -> "Written":
        made = super().__new__(cls, text)
        made.file = file
        return made


class Untrusted(UsageError):
    """A file names something that may not be loaded on its word alone."""


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
    """Load whatever files name while the block runs, as `--trust` does.

    Args:
        note: called with one line for each name before it is loaded.
    """
    token = _trust.set(_Trust(note))
    try:
        yield
    finally:
        _trust.reset(token)


def written(value: Value, file: str) -> Value:
    """`value` with every string inside it, in lists, tuples and the values of mappings too, as `Written`."""
    made: Any = value
    if isinstance(value, str):
        made = Written(value, file)
    elif isinstance(value, Mapping):
        made = {key: written(each, file) for key, each in value.items()}
    elif isinstance(value, list | tuple | set | frozenset):
        made = type(value)(written(each, file) for each in value)
    return made


def like(name: str, value: Value) -> Value:
    """`value`, which was made from `name`: as `written` if `name` was read from a file, else unchanged."""
    return written(value, name.file) if isinstance(name, Written) else value


def _keeping(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *given, **named: like(self, method(self, *given, **named))


# A piece of what was read from a file was read from that file, too.
_CUTTING = (
    "__add__ __getitem__ __mod__ capitalize casefold expandtabs format join lower lstrip partition removeprefix "
    "removesuffix replace rpartition rsplit rstrip split splitlines strip swapcase title translate upper"
)
for _name in _CUTTING.split():
    setattr(Written, _name, _keeping(getattr(str, _name)))


def admit(name: object, does: str) -> None:
    """Let a name through that a person typed, or that a person trusts; call it before anything is loaded.

    Args:
        name: as it stands in the file, or on the command line.
        does: what loading it does, to complete the sentence "FILE names NAME, which ...".

    Raises:
        Untrusted: when it was read from a file and `--trust` is not given.
    """
    if not isinstance(name, Written):
        return
    line = f'{name.file} names "{name}", which {does}'
    trust = _trust.get()
    if trust is None:
        raise Untrusted(f"{line}: give the name yourself if you trust it, or add --trust")
    trust.note(f"trusting {line}")
