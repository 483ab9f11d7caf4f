"""Merge the shares of unfinished runs, which `robench run --share` has left on several machines."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from robench.core import strict_json
from robench.core.errors import ResourceError
from robench.core.io import Damaged, claim, is_claimed, read_ordinary, read_sealed, refuse_link, write_whole
from robench.records import record as record_file
from robench.records.store import PARTIAL

# The files of `robench.engine.checkpoint`, which imports torch.
_ORIGIN, _STATE = "origin", "state"
_SHARE = re.compile(r"share-\d+-of-(\d+)")
_EXAMPLES = "found-*.safetensors"


def merge_shares(source: Path, into: Path) -> Iterator[tuple[str, Path, Path, str]]:
    """Copy the shares of unfinished runs under a folder of results to the same places under another.

    Yields:
        What happened ("share", "same" or "damaged"), the share or run, its new place, and the reason if it is damaged.
    """
    for origin in sorted(source.rglob(f"{PARTIAL}/{_ORIGIN}")):
        run = origin.parent
        place = into / run.relative_to(source)
        if place.resolve() == run.resolve():
            continue
        try:
            _refuse_links(run, origin)
            begun = _origin(origin)
            count = begun["shares"]
            if not count:
                continue
            if (place.parent / record_file.FILE).is_file():
                yield "same", run, place, ""
                continue
            with claim(place.parent):
                _begin(place, begun, origin)
        except (Damaged, ResourceError) as error:
            yield "damaged", run, place, str(error)
            continue
        for share in sorted(run.glob(f"share-*-of-{count}")):
            if _SHARE.fullmatch(share.name) and (share / _STATE).is_file():
                try:
                    yield _copy(share, place), share, place / share.name, ""
                except (Damaged, ResourceError) as error:
                    yield "damaged", share, place / share.name, str(error)


def _begin(place: Path, begun: dict[str, Any], origin: Path) -> None:
    """Begin the run in its new place, if it is not there yet.

    Raises:
        ResourceError: if another run or another split is there.
    """
    refuse_link(place)
    if not (place / _ORIGIN).is_file():
        write_whole(place, {_ORIGIN: read_ordinary(origin)})
        return
    there = _origin(place / _ORIGIN)
    if (there["origin"], there["shares"]) != (begun["origin"], begun["shares"]):
        raise ResourceError(f"{place} is of another run, or of another number of shares")
    if not there["deal"]:
        write_whole(place, {_ORIGIN: read_ordinary(origin)})
    elif begun["deal"] and begun["deal"] != there["deal"]:
        raise ResourceError(f"{place} deals the images differently, as on another kind of processor")


def _copy(share: Path, place: Path) -> str:
    """Copy a share, unless the one that is there is as far; "same" if nothing was copied."""
    if is_claimed(share):
        raise ResourceError("it is running: wait until it has finished")
    target = place / share.name
    with claim(target):
        _refuse_links(share, share / _STATE)
        finished = _finished(share)
        if (target / _STATE).is_file() and _finished(target) >= finished:
            return "same"
        # The state makes the examples valid.
        examples = sorted(share.glob(_EXAMPLES))
        _refuse_links(*examples)
        files = {path.name: read_ordinary(path) for path in examples}
        write_whole(target, {**files, _STATE: read_ordinary(share / _STATE)})
    return "share"


def _refuse_links(*paths: Path) -> None:
    """Refuse symbolic links, through which a folder from elsewhere could name any file of this machine."""
    for path in paths:
        if path.is_symlink():
            raise Damaged(f"{path.name} is a symbolic link")


def _origin(file: Path) -> dict[str, Any]:
    """What a run has written when it began, with the number of its shares, 0 for none.

    Raises:
        Damaged: if the file is damaged, or something else.
    """
    try:
        begun = strict_json.loads(read_sealed(file))
        shares, deal = begun.get("shares") or 0, begun.get("deal") or []
        if not isinstance(shares, int) or not isinstance(deal, list):
            raise ValueError
        if shares and not all(share in range(shares) for share in deal):
            raise ValueError
        return {**begun, "origin": begun["origin"], "shares": shares, "deal": deal}
    except (ValueError, KeyError, AttributeError) as error:
        raise Damaged(f"{file.name} is not the beginning of a run") from error


def _finished(share: Path) -> int:
    """The number of attacks that a share has finished.

    Raises:
        Damaged: if the state is damaged, or something else.
    """
    content = read_sealed(share / _STATE)
    length = int.from_bytes(content[:8], "little")
    with suppress(ValueError):
        match strict_json.loads(content[8 : 8 + length]):
            case {"facts": {"costs": [*costs]}}:
                return len(costs)
    raise Damaged(f"{_STATE} is not the state of a share")
