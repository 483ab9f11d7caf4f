"""Standard output and error as they are: a terminal of few characters, a full disk, a pipe whose reader has gone.

A command must not fail in the middle because it cannot print. What a terminal cannot show is spelled in ASCII; what
cannot be written is dropped, and `failure` says why, so that the exit code can.
"""

import codecs
import errno
import io
import os
import unicodedata
from contextlib import suppress
from typing import TextIO

_SPELLED = {"…": ".", "±": "+-", "–": "-", "—": "-", "−": "-", "→": "->", "×": "x", "≤": "<=", "≥": ">=", "•": "*",
            "·": ".", "ε": "eps", "“": '"', "”": '"', "‘": "'", "’": "'"}  # fmt: skip
_LEVEL, _UPRIGHT = "─━┄┅┈┉╌╍═╴╶╸╺", "│┃┆┇┊┋╎╏║╵╷╹╻"


class Output(io.TextIOBase):
    """A text stream that takes everything, whatever becomes of it.

    Args:
        stream: what is written to; None for a closed one.

    Attributes:
        failure: why something could not be written, or None. A reader who has gone is no failure.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self._lost = False
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() takes str, not {type(text).__name__}")
        if text and not self._lost:
            try:
                if self._stream is None or self._stream.closed:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                self._stream.write(spelled(text, self.encoding))
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and not self._lost and not self._stream.closed:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def _lose(self, error: OSError) -> None:
        self._lost = True
        if not isinstance(error, BrokenPipeError):
            self.failure = error
        # What the stream still holds must not fail once more when Python ends.
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)


def spelled(text: str, encoding: str) -> str:
    """`text` with what the encoding lacks spelled in ASCII."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, _HANDLER).decode(encoding)
    except LookupError:
        return text.encode("ascii", _HANDLER).decode("ascii")
    return text


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    if character in _SPELLED:
        return _SPELLED[character]
    if "\u2500" <= character <= "\u257f":
        return "-" if character in _LEVEL else "|" if character in _UPRIGHT else "+"
    if "\u2580" <= character <= "\u259f":
        return "#"
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


_HANDLER = "robench-spell"
codecs.register_error(_HANDLER, _spell)


def open_standard_streams() -> None:
    """Put the null device where standard input, output or error is closed, or the next file opened would be it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
