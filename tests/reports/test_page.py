"""The pages: what they say is what the board says, and no text of a card or record becomes markup."""

import csv
import dataclasses
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from robench import catalog
from robench.catalog import Card
from robench.cli.main import main as command_line
from robench.core.errors import ResourceError, UsageError
from robench.engine.outcome import ResultWarning
from robench.records.collection import collect
from robench.records.record import Record, SuiteFacts, read_record, stable
from robench.reports import page as page_module
from robench.reports.board import NO_RANK, Choice
from robench.reports.leaderboards import leaderboards
from robench.reports.page import view, write_page
from robench.reports.table import SORTS
from tests.fabricate import make_run
from tests.reports.test_board import WARNING, with_robust

VOID = frozenset(("meta", "link", "img", "input", "wbr"))
LOADS = frozenset(("src", "srcset", "poster", "data", "action", "formaction", "background"))
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "\u202eevil\x1b[31m",
    "مرحبا/../..",
)


class Seen(HTMLParser):
    """Every element with its attributes, every text with the elements it stands in; refuses crossed tags."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.open, self.elements, self.texts = path, [], [], []
        self.feed(path.read_text("utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{self.path}: crossed </{tag}>"

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)

    def values(self, *names):
        return [value for _, attrs in self.elements for name, value in attrs.items() if name in names]


def pages(output):
    return [Seen(path) for path in (output / "index.html", *sorted((output / "defense").iterdir()))]


def rows(output):
    """The tables of the first page: title, then one list of cell texts a row."""
    text = (output / "index.html").read_text("utf-8")
    found = []
    for title, table in re.findall(r'<div class="board".*?(<h3.*?</h3>).*?(<table.*?</table>)', text, re.S):
        lines = [
            [
                " ".join(re.sub(r"<[^>]+>", " ", cell).split())
                for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)
            ]
            for row in re.findall(r"<tr.*?</tr>", table, re.S)
        ]
        found.append((re.sub(r"<[^>]+>", "", title), lines))
    return found


def main(arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        command_line(arguments)
    return stopped.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A board of four records, one of them suspicious and one oblivious."""
    place = tmp_path_factory.mktemp("page")
    results, output = place / "results", place / "board"
    for name, correct, changes in (
        ("high", 28, {}),
        ("low", 3, {}),
        ("suspicious", 29, {"health": [WARNING]}),
        ("high", 30, {"knowledge": "oblivious"}),
    ):
        with_robust(make_run(results, defense=name, **changes), correct)
    write_page(collect([results]), output)
    return results, output


def test_the_numbers_are_the_boards(made):
    rendered = [row for _, (_, *lines) in rows(made[1]) for row in lines]
    with (made[1] / "board.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    shown = [[row[0], row[1], *(float(row[i].split()[0]) for i in (2, 4, 5))] for row in rendered]
    names = ("robust", "clean", "best_known")
    assert shown == [
        [row["rank"] or NO_RANK, row["defense"], *(round(float(row[name]), 2) for name in names)]
        for row in expected
    ]
    assert len(shown) == 4


def test_what_the_attacker_knew_is_never_mixed_in_a_table(made):
    (adaptive, (_, *first)), (oblivious, (_, *second)) = rows(made[1])
    assert "knows the whole defense" in adaptive and oblivious.startswith("oblivious")
    assert [row[1].split()[0] for row in first] == ["suspicious", "high", "low"]
    assert [row[1].split()[0] for row in second] == ["high"]
    text = (made[1] / "defense" / "high.html").read_text("utf-8")
    full, weak = (text.index(f'tag {kind}"') for kind in ("strong", "weak"))
    assert full < text.index("93.33", full) < weak < text.index(">100.00<", weak)


def test_a_suspicious_row_has_no_rank_and_its_warning_in_words(made):
    (_, (_, suspicious, *_)), _ = rows(made[1])
    assert suspicious[0] == NO_RANK
    assert suspicious[3] == "⚠ not ranked: zero-gradients zero-gradients : 7 of 30 gradients are zero"
    assert "7 of 30 gradients" in (made[1] / "defense" / "suspicious.html").read_text("utf-8")


def test_the_bars_are_drawn_to_scale(made):
    elements = Seen(made[1] / "index.html").elements
    ranges = [attrs for tag, attrs in elements if tag == "rect" and attrs["class"] == "range"]
    records = {
        record.job.defense.name: record for record in collect([made[0]]) if record.job.knowledge == "full"
    }
    low, high = records["suspicious"].robust_accuracy.interval
    assert float(ranges[0]["x"]) == pytest.approx(100 * low, abs=0.006)
    assert float(ranges[0]["width"]) == pytest.approx(100 * (high - low), abs=0.011)


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(made):
    output = made[1]
    for page in pages(output):
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        for name in page.values("aria-labelledby", "for"):
            assert set(name.split()) <= set(ids)
        for link in page.values("href"):
            if link.startswith("https://arxiv.org/abs/"):
                continue
            file, _, anchor = link.partition("#")
            target = (page.path.parent / file).resolve() if file else page.path
            assert target.is_file() and target.is_relative_to(output)
            assert not anchor or f'id="{anchor}"' in target.read_text("utf-8")
        for tag, attrs in page.elements:
            for name in LOADS & attrs.keys():
                assert (page.path.parent / attrs[name]).is_file(), (tag, attrs)
            assert not [name for name in attrs if name.startswith("on")]
    for asset in ("board.css", "board.js"):
        assert not re.search(r"https?:|url\(|import\b|fetch|XMLHttp", (output / asset).read_text("utf-8"))


def test_a_long_name_breaks_between_its_parts():
    shown = page_module._environment().from_string("{{ name | breakable }}")
    name = 'de3-digits(sigma=140, statistics="input")+<b>'
    assert shown.render(name=name) == (
        "de3-digits(<wbr>sigma=140, statistics=&#34;input&#34;)+<wbr>&lt;b&gt;"
    )
    assert shown.render(name="pgd(eot=5)@transfer:standard") == "pgd(<wbr>eot=5)<wbr>@transfer:<wbr>standard"
    assert shown.render(name="fog(x=1):0.4, Linf:0.1") == "fog(<wbr>x=1):<wbr>0.4, Linf:0.1"


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_records_and_cards_stay_texts(tmp_path, monkeypatch, text):
    card = Card(
        text, "vit", "digits", family=text, download_page=text, paper=text, license=text, description=text,
        claims=[{"clean": 1, "robust": 1, "threat": "Linf:0.04", "attack": text, "source": text, "note": text}],
    )  # fmt: skip
    monkeypatch.setattr(catalog, "cards", lambda: {text: card})
    run = make_run(tmp_path / "a", defense=text, protocol=text, health=[ResultWarning(text, text)])
    run.write(command=text)
    plain = make_run(
        tmp_path / "b", defense="plain", protocol="plain", health=[ResultWarning("code", "text")]
    )
    plain.write()
    write_page(collect([tmp_path / "a"]), tmp_path / "hostile", pictures=False)
    write_page(collect([tmp_path / "b"]), tmp_path / "harmless", pictures=False)
    (index, page), (ordinary, _) = pages(tmp_path / "hostile"), pages(tmp_path / "harmless")
    # The family of a card adds one choice and one claim a column, so elements are compared by kind.
    kinds = {tag for tag, _ in index.elements}
    assert kinds - {"wbr"} == {tag for tag, _ in ordinary.elements}
    assert not {tag for tag, _ in page.elements} & {"img", "iframe", "object", "form"}
    assert [attrs for tag, attrs in page.elements if tag == "script"] == [{"src": "../board.js"}]
    shown = re.sub(r"[\x00-\x1f\u202a-\u202e]", "�", text)
    for seen in (index, page):
        assert any(shown in words for words in seen.texts)
        assert not [value for value in seen.values("href", "src") if ":" in value]
        assert not re.search(r"[\x1b\u202e]", seen.path.read_text("utf-8"))
        assert not [attrs for _, attrs in seen.elements if any(name.startswith("on") for name in attrs)]


def test_names_that_a_disk_takes_for_one_have_pages_of_their_own(tmp_path):
    names = ("a b", "a/b", "A-B", "...")
    for i, name in enumerate(names):
        make_run(
            tmp_path / "r", draw=i, defense=name, suite=make_run(tmp_path, draw=i).job.suite, seed=i
        ).write()
    write_page(collect([tmp_path / "r"]), tmp_path / "board", pictures=False)
    files = [path.name.lower() for path in (tmp_path / "board" / "defense").iterdir()]
    assert len(set(files)) == len(names)


def test_the_same_records_give_the_same_bytes_and_old_pages_go(tmp_path):
    results, output = tmp_path / "results", tmp_path / "board"
    for name in ("high", "low"):
        make_run(results, defense=name).write()
    write_page(collect([results]), output)
    before = {path: path.read_bytes() for path in output.rglob("*.*")}
    write_page(collect([results]), output)
    assert {path: path.read_bytes() for path in output.rglob("*.*")} == before
    write_page(collect([results / "digits-linf" / "low"]), output)
    assert [path.name for path in (output / "defense").iterdir()] == ["low.html"]


def test_without_records_the_page_says_how_to_make_one(tmp_path):
    (tmp_path / "results").mkdir()
    index = write_page(collect([tmp_path / "results"]), tmp_path / "board")
    assert "robench run --defense mimir --attack autoattack" in index.read_text("utf-8")
    Seen(index)


def test_unreadable_records_are_named(tmp_path):
    run = make_run(tmp_path / "results")
    run.write()
    (run.folder / "record.json").write_text('{"schema": 1')
    index = write_page(collect([tmp_path / "results"]), tmp_path / "board")
    assert "record.json: truncated or not JSON" in index.read_text("utf-8")


def test_a_folder_of_something_else_is_left_alone(tmp_path, run):
    run.write()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<p>mine")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file"):
        with pytest.raises(ResourceError, match="has other content than a board: choose another --output"):
            write_page(collect([tmp_path]), tmp_path / name)
    assert (tmp_path / "mine" / "index.html").read_text() == "<p>mine"
    with pytest.raises(UsageError, match='unknown column "height"'):
        write_page(collect([tmp_path]), tmp_path / "board", sort="height")


def test_another_column_first_and_no_intervals(tmp_path):
    for name, correct in (("b", 20), ("a", 10)):
        with_robust(make_run(tmp_path / "r", defense=name), correct)
    write_page(collect([tmp_path / "r"]), tmp_path / "board", sort="defense", choice=Choice(intervals=False))
    ((_, (_, *lines)),) = rows(tmp_path / "board")
    assert [line[1].split()[0] for line in lines] == ["a", "b"]
    assert lines[0][2] == "33.33"
    heads = [attrs for tag, attrs in Seen(tmp_path / "board" / "index.html").elements if "aria-sort" in attrs]
    assert [(attrs["aria-sort"], attrs["data-kind"]) for attrs in heads] == [("ascending", "text")]


# No card of these claims anything, and the number of images stands above each table.
@pytest.mark.parametrize("column", sorted({*SORTS} - {"claimed", "n"}))
def test_the_page_marks_the_column_that_comes_first(tmp_path, column):
    make_run(tmp_path / "r", defense="a").write()
    write_page(collect([tmp_path / "r"]), tmp_path / "board", sort=column)
    heads = [attrs for tag, attrs in Seen(tmp_path / "board" / "index.html").elements if "aria-sort" in attrs]
    assert len(heads) == 1


def test_a_command_of_the_page_makes_the_record_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--attack",
        "fgsm+square(queries=20)",
        "--threat",
        "Linf:0.1",
        "--samples",
        "8",
        "--device",
        "cpu",
    ]
    assert main(["run", "--defense", "pgd-at-digits", "--seed", "3", *arguments]) == 0
    assert main(["board", "--format", "html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 records: board/index.html"
    (page,) = (tmp_path / "board" / "defense").iterdir()
    again, check = [text for text in Seen(page).texts if text.startswith("robench ")][:2]
    (first,) = collect(["results"])
    Path("results").rename("before")
    assert main([*shlex.split(again)[1:], "--device", "cpu"]) == 0
    (second,) = collect(["results"])
    assert stable(second.to_dict()) == stable(first.to_dict())
    assert read_record(shlex.split(check)[-1]) == second
    picture = next(attrs for tag, attrs in Seen(page).elements if tag == "img")
    assert (tmp_path / "board" / "defense" / picture["src"]).read_bytes().startswith(b"\x89PNG")
    assert "classified as" in picture["alt"]


@pytest.mark.parametrize(
    ("changes", "extra", "expected"),
    [
        ({}, {}, "--attack autoattack --dataset"),
        (
            {"half_width": 0.5},
            {},
            "--attack autoattack --dataset digits --threat Linf:0.04 --samples 30 --estimate 0.5",
        ),
        ({}, {"proven": {"by": "crown", "images": 3}}, "--samples 30 --certify-first crown --precision"),
    ],
)
def test_the_command_of_a_row_names_its_estimate_and_its_certifier(tmp_path, changes, extra, expected):
    run = make_run(tmp_path, suite=SuiteFacts("autoattack", ("apgd", "square")))
    record = run.record()
    suite = SuiteFacts("autoattack (estimate)", record.job.suite.attacks) if changes else record.job.suite
    job = dataclasses.replace(record.job, suite=suite, **changes)
    assert expected in view.reproduce(dataclasses.replace(record, job=job, extra=record.extra | extra))


def test_rows_that_no_command_reproduces_are_only_verified(tmp_path):
    record = make_run(tmp_path).record()
    facts = dataclasses.replace(record.job.defense, name="model:Net")
    own = dataclasses.replace(record.job.dataset, name="npz:images.npz")
    submitted = SuiteFacts("submitted", ('submitted(finder="me", sha256="0123456789abcdef")',))
    for changes in ({"defense": facts}, {"dataset": own}, {"suite": submitted}):
        changed = dataclasses.replace(record, job=dataclasses.replace(record.job, **changes))
        assert view.reproduce(changed) == ""
        assert ("--defense python:MODULE.FUNCTION" in view.verify(changed)) == ("defense" in changes)


def test_the_command_of_a_submission_is_for_the_images_of_the_board(tmp_path):
    record = make_run(tmp_path, suite=SuiteFacts("pgd(steps=40)", ("pgd(steps=40)",))).record()
    command = view.submission(record)
    assert command.startswith(
        "robench run --defense python:my_module.build --attack 'pgd(steps=40)' --dataset"
    )
    assert command.endswith("--threat Linf:0.04 --samples 30")
    job = dataclasses.replace(record.job, threat="Linf:0.13", n=100)
    assert view.submission(dataclasses.replace(record, job=job)).endswith("--protocol digits-linf")


def test_a_security_curve_is_of_one_network_and_not_of_estimates(tmp_path, monkeypatch):
    def charts(**second):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        make_run(root).write()
        other = make_run(root, threat="Linf:0.08", protocol="other")
        facts = dataclasses.replace(other.job.defense, **second.pop("defense", {}))
        job = dataclasses.replace(other.job, defense=facts, **second)
        dataclasses.replace(other, job=job).write()
        _, pages = view.tabs(leaderboards(collect([root])))
        return [len(page.curves) for page in pages]

    assert charts() == [1]
    assert charts(defense={"checkpoint_sha256": "c" * 64}) == [0]
    monkeypatch.setattr(Record, "is_estimate", property(lambda record: record.job.threat == "Linf:0.08"))
    assert charts() == [0]


def test_a_row_is_ranked_among_the_rows_of_its_group_and_two_seeds_are_told_apart(tmp_path):
    for seed, defense in ((0, "mimir-digits"), (1, "mimir-digits"), (0, "pgd-at-digits")):
        make_run(tmp_path, seed=seed, defense=defense).write()
    _, pages = view.tabs(leaderboards(collect([tmp_path]), only=["mimir-digits"]))
    lines = [line for page in pages for line in page.lines]
    assert {line.row.peers for line in lines} == {3}
    assert sorted(line.suite for line in lines) == ["autoattack", "autoattack (seed 1)"]


def test_options_of_pages_need_the_pages(tmp_path, capsys):
    assert main(["board", str(tmp_path), "--output", "x"]) == 2
    assert "apply only to --format html" in capsys.readouterr().err


def test_architectures_are_builders_and_loaders(tmp_path):
    for name, expected in (
        ("mimir-digits", ("mimir", "vit")),
        ("timm:resnet50", ("mimir", "timm")),
        ("nobody's", ("mimir", "")),
    ):
        assert view.kinds(make_run(tmp_path, defense=name).record()) == expected


def test_the_citation_keeps_its_lines(made):
    (citation,) = [text for text in Seen(made[1] / "index.html").texts if text.startswith("@software")]
    assert citation == view.citation(re.search(r"version = \{(.+?)\}", citation)[1])
    assert "\n  title = {" in citation and "\ufffd" not in citation


def test_a_defense_at_several_radii_has_a_security_curve(tmp_path):
    """The points of the curve fall from left to right, and start with clean accuracy."""
    shipped = Path(__file__).parents[2] / "results" / "shipped"
    folders = [
        shipped / protocol / "maep-digits" / "autoattack" for protocol in ("digits-linf", "digits-linf-0.1")
    ]
    write_page(collect(folders), tmp_path / "board", pictures=False)
    (page,) = (tmp_path / "board" / "defense").iterdir()
    seen = Seen(page)
    assert any("Security curve of maep-digits: digits, Linf, 100 images" in text for text in seen.texts)
    # One drawing for wide screens and one for narrow ones.
    wide, narrow = (attrs["points"] for tag, attrs in seen.elements if tag == "polyline")
    for line in (wide, narrow):
        points = [tuple(map(float, point.split(","))) for point in line.split()]
        assert len(points) == 3 and points == sorted(points)
        # The y axis points down.
        assert [y for _, y in points] == sorted(y for _, y in points)
