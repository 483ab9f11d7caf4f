"""Strict JSON: ambiguous or oversized input is refused, and the files of results have one form."""

import json
import math
from typing import Any

# Limits in bytes, nesting levels and digits of an integer; a record has thousands, six and ten.
LONGEST, _DEEPEST, _DIGITS = 1 << 24, 32, 19


def loads(data: bytes) -> Any:
    """Parse UTF-8 encoded JSON.

    Raises:
        ValueError: with a one-line message, if `data` is not JSON, is longer than 16 MiB, is nested more than 32 levels
            deep, repeats a key in an object, or has a number that is not finite or has more than 19 digits.
    """
    if len(data) > LONGEST:
        raise ValueError(f"it has more than {LONGEST >> 20} MiB")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        lists = (list(parent.values()) if isinstance(parent, dict) else parent for parent in level)
        level = [item for children in lists if isinstance(children, list) for item in children]
    if level:
        raise ValueError("nested too deeply")
    return value


def dumps(content: Any) -> bytes:
    """The bytes of a JSON file, ending in a newline.

    Raises:
        ValueError: if a number is not finite.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Bytes of a command line that are not UTF-8 are lone surrogates, which JSON escapes.
    return text.encode(errors="backslashreplace")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f'the key "{repeated[:40]}" is repeated in one object')
    return table


def _whole(text: str) -> int:
    if (digits := len(text.lstrip("-"))) > _DIGITS:
        raise ValueError(f"a whole number has {digits} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is not finite")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
