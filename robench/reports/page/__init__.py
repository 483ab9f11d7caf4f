"""The board as a folder of HTML pages that open from disk or any static host, without network requests.

The tables are plain HTML, so they work without JavaScript, and a few hundred lines of JavaScript sort and filter them.
Table libraries did not fit: Tabulator (MIT) is 448 kB and builds tables from `div`s, simple-datatables is under the
LGPL, and List.js does not support `aria-sort`.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from robench.core.errors import ResourceError
from robench.core.formatting import count, duration, one_of
from robench.core.io import refuse_link, write_whole
from robench.core.sanitize import plain
from robench.records.collection import Collection
from robench.records.provenance import robench_version
from robench.records.record import Record
from robench.reports import certification, corruption
from robench.reports.board import SORTS, Choice, all_rows
from robench.reports.leaderboards import leaderboards
from robench.reports.page import view
from robench.reports.robustbench import claims_only
from robench.reports.run_summary import cost

if TYPE_CHECKING:
    from robench.reports.page.pictures import Picture

INDEX = "index.html"
_TEMPLATES = Path(__file__).with_name("templates")
_ASSETS = ("board.css", "board.js")
# In every page: a folder may be overwritten if its index has it.
_MARK = '<meta name="generator" content="robench board">'


def write_page(
    records: Sequence[Record],
    output: Path | str,
    *,
    sort: str = "robust",
    pictures: bool = True,
    data_dir: str | None = None,
    choice: Choice | None = None,
) -> Path:
    """Write the board of `records` to the folder `output`, and return the path of its first page.

    The same records give the same files, byte for byte. An earlier board in the folder is replaced.

    Args:
        records: any records, usually from `robench.records.collection.collect`.
        sort: the column to sort by, best first.
        pictures: whether to show adversarial examples.
        data_dir: folder of datasets with files; None shows pictures only for datasets without files.
        choice: which rows to show, with or without intervals, and published claims in separate tables.

    Raises:
        UsageError: for an unknown column, or if no row matches.
        ResourceError: when the folder has other content than a board, or cannot be written.
    """
    output = Path(output)
    one_of("column", sort, SORTS)
    _check(output)
    choice = choice or Choice()
    boards = leaderboards(records, sort, choice.only)
    certifications = records.certifications if isinstance(records, Collection) else ()
    apart = [] if choice.only else [*certification.grids(certifications), *corruption.grids(records)]
    tabs, pages = view.tabs(boards)
    drawn: dict[str, Picture] = {}
    if pictures:
        # Images need torch; a page without them does not.
        from robench.reports.page.pictures import Gallery

        gallery = Gallery(data_dir)
        drawn = {line.anchor: gallery.of(line.record) for page in pages for line in page.lines}
    environment = _environment()
    shared = {"intervals": choice.intervals, "view": view, "drawn": drawn, "version": robench_version()}
    template = environment.get_template("defense.html")
    defenses = {page.file: template.render(page=page, root="../", **shared).encode() for page in pages}
    index = environment.get_template(INDEX).render(
        tabs=tabs,
        pages=pages,
        apart=[*apart, *claims_only(choice.claims)],
        sort=sort,
        newest=max((record.finished[:10] for record in records), default=""),
        root="",
        left_out=records.left_out if isinstance(records, Collection) else (),
        **shared,
    )
    images = {picture.file: picture.png for picture in drawn.values() if picture.file}
    for name in ("pictures", "defense"):
        refuse_link(output / name)
    write_whole(output / "pictures", {name: png for name, png in images.items() if png})
    write_whole(output / "defense", defenses)
    assets = {name: (_TEMPLATES / name).read_bytes() for name in _ASSETS}
    assets["board.csv"] = all_rows(boards, Choice()).encode()
    # The index is written last, so that its links always work.
    write_whole(output, {**assets, INDEX: index.encode()})
    for folder, names in (("pictures", images), ("defense", defenses)):
        for path in (output / folder).iterdir():
            if path.suffix in (".png", ".html") and path.name not in names:
                path.unlink()
    return output / INDEX


def _check(output: Path) -> None:
    try:
        occupied = output.exists() and any(output.iterdir())
        if occupied and _MARK not in (output / INDEX).read_text("utf-8", errors="replace"):
            raise FileNotFoundError
    except OSError:
        raise ResourceError(
            f"{output} is not a folder, or has other content than a board: choose another --output"
        ) from None


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    environment.globals["mark"] = Markup(_MARK)
    environment.filters |= {"count": count, "duration": duration, "cost": cost, "breakable": _breakable}
    return environment


def _breakable(name: str) -> Markup:
    """A name that a narrow column breaks between its parts, such as arguments; a norm keeps its radius."""
    between = r"(?<=[(,+])(?! )|(?<=\):)|(?<=:)(?=[A-Za-z])|(?=@)"
    return Markup(re.sub(between, "<wbr>", str(escape(plain(name)))))


def _printable(value: Any) -> Any:
    """Remove control characters from texts of cards and records. Jinja escapes the result."""
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
