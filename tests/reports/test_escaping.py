"""Names and texts of others, as hostile as can be, through every format: they are read, never obeyed."""

import csv
import io
import math
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from functools import cache
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from robench.cli.main import main
from robench.core.sanitize import plain, plain_lines
from robench.engine.outcome import ResultWarning
from robench.reports.board import board
from robench.reports.page import write_page
from robench.reports.run_summary import describe, run_table
from robench.reports.table import Grid, render
from robench.verification import ci_report
from robench.verification.regression import Step, Verdict
from tests.fabricate import make_run

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b[2J\x1b]8;;http://evil\x07link",
    "[bold red]rich[/bold red] [link=http://evil]x[/link] [/]",
    "a|b\n| c | d |\n\n# heading",
    "[click](javascript:alert(1)) ![x](http://evil) `code` *em* _em_ ~~gone~~ &amp; $x^2$",
    r"\input{/etc/passwd} \write18{rm} % gone & next \\ {open ^^41 ~ # $ _ \x",
    "[5pt] first",
    "*",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(A1)",
    "‮cba⁦\u200bhidden\ufeff\u061c",
    "\ud800 \ufffe \uffff \x00 \x85",
    "漢字 عربي 🙂 é ß",
    "{{ 7 * 7 }} {% raw %} <!-- ",
    "::error::x%0A::warning::y",
)
names = st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=40))
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def grid(name):
    return Grid(
        title=name,
        columns=("name", name, "clean %"),
        groups=(((name, f"{name}\n{name}", "1.00"), ("other", "b", "2.00")),),
        names=frozenset(("name", name)),
        numbers=frozenset(("clean %",)),
        best=frozenset(("clean %",)),
        notes=(name, f"note: {name}"),
    )


def harmless(text):
    """No character that moves a cursor, hides or turns the reading direction."""
    return not [
        c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in
            ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))
    ]  # fmt: skip


@given(st.text())
@example("".join(HOSTILE))
def test_plain_is_one_harmless_line_and_keeps_what_is_harmless(text):
    safe = plain(text)
    assert harmless(safe) and len(safe) == len(text) and "\n" not in safe
    assert plain(safe) == safe
    assert plain_lines(text).count("\n") == text.count("\n")
    assert all(a == b or b == "�" for a, b in zip(text, safe, strict=True))


@quick
@given(names)
def test_a_terminal_shows_them(name):
    text = render(grid(name), "text")
    assert harmless(text)
    if len(name) < 30:
        assert text.startswith(plain(name).rstrip())


@quick
@given(names)
def test_markdown_shows_them_as_words(name):
    """Read by a real parser: a table of two rows, and inside nothing but text and line breaks."""
    from markdown_it import MarkdownIt

    made = render(grid(name), "md")
    assert harmless(made)
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(made)
    assert [token.type for token in tokens].count("tr_open") == 3
    assert [token.type for token in tokens].count("td_open") == 6
    kinds = {child.type for token in tokens for child in token.children or ()}
    breaks = {
        child.content for token in tokens for child in token.children or () if child.type == "html_inline"
    }
    assert kinds <= {"text", "text_special", "html_inline"} and breaks <= {"<br>"}
    assert {token.type for token in tokens if token.level == 0} <= {
        f"{kind}_{end}" for kind in ("heading", "table", "bullet_list") for end in ("open", "close", "open")
    } | {"inline"}


@quick
@given(names | st.sampled_from(["-INFINITY", "+nan", "-1 +cmd|'/C calc'!A0", "-1 [2]+A1", "-1_0"]))
def test_csv_is_read_back_and_opens_no_formula(name):
    rows = list(csv.reader(io.StringIO(render(grid(name), "csv"))))
    assert [len(row) for row in rows] == [3, 3, 3]
    cell = rows[1][0]
    expected = " ".join(map(plain, name.split("\n")))
    assert cell in (expected, f"'{expected}")
    assert not cell.startswith(("=", "@"))
    # What may start so is a number, with an interval in brackets perhaps.
    assert not cell.startswith(("+", "-")) or float(re.sub(r"( !)?( \[[\d., -]*\])?$", "", cell)) < math.inf


def test_headings_of_csv_open_no_formula_and_marked_differences_stay_figures():
    table = Grid("t", ("", "=HYPERLINK(1)"), ((("a", "+0.00 !\n[-28.0, 28.0]"),),))
    head, row = csv.reader(io.StringIO(render(table, "csv")))
    assert head[1] == "'=HYPERLINK(1)" and row[1] == "+0.00 ! [-28.0, 28.0]"


@quick
@given(names)
def test_latex_has_nothing_but_text_in_its_cells(name):
    made = render(grid(name), "latex")
    body = [line for line in made.splitlines() if not line.startswith("%")]
    assert [line.count("&") - line.count(r"\&") for line in body if line.endswith(r"\\")] == [2, 2, 2]
    known = (
        r"textbackslash\{\}|text(asciitilde|asciicircum|less|greater|bf)|ldots|toprule|midrule|bottomrule"
        r"|(begin|end)(?=\{tabular\})|cdot|times|div|pm|sigma|\\|[&%$#_{}]"
    )
    for line in body:
        assert line.isprintable() and all(c.isascii() or "À" <= c <= "ÿ" for c in line)
        assert not line.startswith(("[", "*"))
        rest = re.sub(rf"\\({known.replace(chr(92) + '{' + chr(92) + '}', '')})", "", line)
        assert "\\" not in rest
        bare = re.sub(r"\\[&%$#_{}]", "", line)
        assert bare.count("{") == bare.count("}")
        assert not set(bare) & set("#_^~%")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        # A place where a name may break.
        if (tag, attrs) != ("wbr", []):
            self.found.append((tag, tuple(name for name, _ in attrs)))


@pytest.fixture(scope="module")
def tags(tmp_path_factory):
    """The tags of each file of a page whose record has a text in every place."""

    @cache
    def tags(text):
        root = tmp_path_factory.mktemp("page")
        run = make_run(root / "r", defense=text, protocol=text, health=[ResultWarning(text, text)])
        record = run.write(command=text)
        index = write_page([record], root / "page", pictures=False)
        pages = [index, *sorted((root / "page" / "defense").glob("*.html"))]
        parsers = [Tags() for _ in pages]
        for parser, page in zip(parsers, pages, strict=True):
            parser.feed(page.read_text("utf-8"))
        return [parser.found for parser in parsers]

    return tags


@settings(max_examples=2, deadline=None)
@given(names)
@example(HOSTILE[0])
@example(HOSTILE[1])
@example(HOSTILE[-2])
def test_a_page_has_the_tags_of_a_harmless_one(tags, name):
    assert tags(name) == tags("harmless name")


@quick
@given(names)
def test_reports_for_ci_are_still_what_they_are(name):
    verdict = Verdict(name, name, (Step("clean", False, name), Step("attack", True, name)), 1, 2, 3, 4)
    tree = ElementTree.fromstring(ci_report.junit([verdict], [0.5]))
    assert [suite.get("name") for suite in tree] == [plain(f"{name} against {name}")]
    lines = ci_report.annotations([verdict]).splitlines()
    assert len(lines) == 1 and lines[0].startswith("::error title=") and harmless(lines[0])
    assert len(ci_report.summary([verdict]).splitlines()) == 6


@quick
@given(names)
def test_a_record_is_shown_as_it_is(tmp_path_factory, name):
    record = make_run(tmp_path_factory.mktemp("r"), defense=name, health=[ResultWarning(name, name)]).record(
        command=name
    )
    for shown in (run_table([record]), describe(record), board([record])):
        console = Console(file=io.StringIO(), width=100, force_terminal=False)
        console.print(shown, markup=False)
        assert isinstance(console.file, io.StringIO) and harmless(console.file.getvalue())


@pytest.mark.parametrize("name", ["[red]x[/red]\x1b[31m", "[/]"])
@pytest.mark.parametrize("arguments", [["show"], ["list"], ["table"], ["plot"], ["run", "--defense"]])
def test_mistakes_are_told_without_obeying_them(capsys, name, arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, name])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and harmless(told) and plain(name) in told and "Traceback" not in told
