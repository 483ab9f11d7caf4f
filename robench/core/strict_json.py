"""JSON from others, read strictly: what two readers could take for two things, or takes too long, is refused."""

import json
import math
from typing import Any

# Bytes, levels of nesting and digits of a whole number: a record has thousands, six and ten.
LONGEST, _DEEPEST, _DIGITS = 1 << 24, 32, 19


def loads(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: in one line, for what is no JSON, is longer than 16 MiB, is nested more than 32 levels deep, has a
            key twice in one object, or a number that is not finite or has more than 19 digits.
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
        raise ValueError(f"no UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for each in level for item in _inside(each)]
    if level:
        raise ValueError("nested too deeply")
    return value


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{twice[:40]}" stands twice in one object')
    return found


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > _DIGITS:
        raise ValueError(f"a whole number has {len(text.lstrip('-'))} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is not finite")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
