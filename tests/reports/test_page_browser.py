"""The pages in Chromium, from disk: Playwright's own, or the one that ROBENCH_CHROMIUM names."""

import os
from pathlib import Path

import pytest

from robench.engine.outcome import ResultWarning
from robench.records.collection import collect
from robench.reports.page import write_page
from tests.fabricate import make_run
from tests.reports.test_board import WARNING, with_robust

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
axe_module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python")

# The ways into a browser leave sockets to the collector, which is Playwright's affair and none of the page's.
pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        try:
            # Root may not use the sandbox, and in most containers there is only root.
            found = playwright.chromium.launch(
                executable_path=os.environ.get("ROBENCH_CHROMIUM"), args=["--no-sandbox"]
            )
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    for name, correct, changes in (
        ("mimir-digits", 28, {}),
        ("pgd-at-digits", 12, {}),
        ("suspicious", 29, {"health": [WARNING]}),
        ("<b>bold</b>", 3, {}),
        ("mimir-digits", 30, {"knowledge": "oblivious"}),
    ):
        with_robust(make_run(place / "results", defense=name, **changes), correct)
    return write_page(collect([place / "results"]), place / "board")


@pytest.fixture
def page(chromium, board):
    """The first page; afterwards nothing may have been said on the console nor asked of a network."""
    context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(10_000)
    opened, troubles = context.new_page(), []
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
    opened.on(
        "request", lambda r: None if r.url.startswith(board.parent.as_uri()) else troubles.append(r.url)
    )
    opened.goto(board.as_uri())
    yield opened
    context.close()
    assert troubles == []


def shown(page):
    return page.locator("tbody tr:visible th a").all_inner_texts()


def test_search_and_filters_leave_the_rows_that_match(page):
    assert shown(page) == ["suspicious", "mimir-digits", "pgd-at-digits", "<b>bold</b>"]
    assert page.locator("#count").inner_text() == "5 of 5 rows, 1 under More attacks"
    page.get_by_text("More attacks (1)").click()
    assert shown(page) == ["suspicious", "mimir-digits", "pgd-at-digits", "<b>bold</b>", "mimir-digits"]
    page.get_by_label("Search").fill("DIGITS pgd")
    assert shown(page) == ["pgd-at-digits"]
    assert page.locator(".board:visible").count() == 1
    page.get_by_label("Search").fill("zero-gradients")
    assert shown(page) == ["suspicious"]
    page.get_by_label("Search").fill("nothing like it")
    assert shown(page) == [] and page.get_by_text("No row matches").is_visible()
    page.get_by_role("button", name="Show all rows").click()
    page.get_by_text("5 of 5 rows").wait_for()
    page.get_by_text("Filters and columns").click()
    page.get_by_label("Attacker knowledge").select_option("oblivious")
    assert shown(page) == ["mimir-digits"]
    assert page.url.endswith("#knowledge=oblivious")
    page.reload()
    assert shown(page) == ["mimir-digits"]
    page.get_by_text("Filters and columns").click()
    page.get_by_role("button", name="Clear").click()
    page.locator("#architecture").select_option("vit")
    assert shown(page) == ["mimir-digits", "pgd-at-digits", "mimir-digits"]


def test_headers_sort_both_ways_by_mouse_and_keyboard(page):
    first = page.locator("table").first
    head = first.get_by_role("columnheader", name="robust %")
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert shown(page)[:4] == ["<b>bold</b>", "pgd-at-digits", "mimir-digits", "suspicious"]
    first.get_by_role("button", name="defense").focus()
    page.keyboard.press("Enter")
    assert shown(page)[:4] == ["<b>bold</b>", "mimir-digits", "pgd-at-digits", "suspicious"]
    assert head.get_attribute("aria-sort") is None
    assert page.locator("#status").inner_text() == "Sorted by defense, ascending"
    first.get_by_role("button", name="rank").click()
    assert shown(page)[:4] == ["mimir-digits", "pgd-at-digits", "<b>bold</b>", "suspicious"]


def test_a_row_opens_and_its_command_is_copied(page):
    page.get_by_role("link", name="pgd-at-digits", exact=True).click()
    page.wait_for_url("**/defense/**")
    assert page.locator("h1").inner_text() == "pgd-at-digits"
    assert page.locator(".record:target").count() == 1
    page.get_by_role("button", name="Copy: robench run").click()
    page.get_by_role("status").get_by_text("Command copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("robench run --defense pgd-at-digits") and "\n" not in copied
    page.get_by_role("link", name="Leaderboard", exact=True).click()
    page.wait_for_url("**/index.html*")
    assert len(shown(page)) == 4


def test_dark_and_light_follow_the_system_until_one_is_chosen(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    assert dark != "rgb(255, 255, 255)"
    page.get_by_role("button", name="Switch to light theme").click()
    assert page.locator("#theme").inner_text() == "Switch to dark theme"
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.reload()
    assert page.evaluate(paper) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_axe_finds_no_violation_and_nothing_is_wider_than_the_screen(page, board, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    for path in (board, board.parent / "defense" / "suspicious.html"):
        page.goto(path.as_uri())
        # Without its preload, which reads style sheets again by requests that the page's policy refuses.
        found = axe_module.Axe().run(page, options={"preload": False}).response
        assert len(found["passes"]) > 10
        assert [(v["id"], [node["target"] for node in v["nodes"]]) for v in found["violations"]] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_letters_of_charts_are_as_large_on_a_phone(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    heights = [text.bounding_box()["height"] for text in page.locator(".chart text.tick:visible").all()]
    assert len(heights) > 5 and min(heights) > 11
    assert page.locator(".chart svg:visible").count() == 1


def test_long_names_of_attacks_in_warnings_stay_inside_their_card(chromium, tmp_path):
    text = f"{'apgd(steps=20)+' * 4}square(queries=100) attacked 16 of the 27 images that survive quick"
    make_run(tmp_path / "results", health=[ResultWarning("estimate", text)]).write()
    index = write_page(collect([tmp_path / "results"]), tmp_path / "board", pictures=False)
    context = chromium.new_context(viewport={"width": 360, "height": 800})
    opened = context.new_page()
    opened.goto((index.parent / "defense" / "mimir-digits.html").as_uri())
    line = opened.locator(".warnings li").first
    assert line.evaluate("e => e.scrollWidth <= e.clientWidth")
    warnings = opened.locator(".overview").first.get_by_role("columnheader", name="warnings").bounding_box()
    assert warnings["x"] + warnings["width"] <= 360
    context.close()


def test_without_javascript_every_row_is_there(chromium, board):
    context = chromium.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(board.as_uri())
    assert opened.locator("tbody tr:visible").count() == 4
    opened.get_by_text("More attacks").click()
    assert opened.locator("tbody tr:visible").count() == 5
    assert not opened.locator("#filters").is_visible()
    context.close()


def large_board(folder, count):
    """A leaderboard of `count` rows."""
    make_run(folder / "results").write()
    index = write_page(collect([folder / "results"]), folder / "board", pictures=False)
    text = index.read_text("utf-8")
    start, end = text.index('<tr class="band-'), text.index("</tbody>")
    row = text[start:end]
    rows = [row.replace("mimir-digits", f"defense-{i:04d}") for i in range(count)]
    rows[100:] = [row.replace('class="band-0', 'class="later band-0') for row in rows[100:]]
    index.write_text(text[:start] + "".join(rows) + text[end:], "utf-8")
    return index


def test_axe_finds_no_violation_on_a_page_of_500_rows(chromium, tmp_path):
    """100 of the 500 rows are shown, and axe looks at five of them: all are copies, and contrast takes long."""
    context = chromium.new_context()
    opened = context.new_page()
    opened.set_default_timeout(300_000)
    opened.goto(large_board(tmp_path, 500).as_uri())
    options = {"preload": False, "resultTypes": ["violations"]}
    found = axe_module.Axe().run(opened, {"exclude": [["tbody tr:nth-child(n+6)"]]}, options).response
    context.close()
    # Each copied row has the same anchor.
    assert [v["id"] for v in found["violations"] if not v["id"].startswith("duplicate-id")] == []


@pytest.mark.parametrize("count", [500, 5000])
def test_many_rows_are_paged_and_painted_within_two_seconds(chromium, tmp_path, count):
    index = large_board(tmp_path, count)
    context = chromium.new_context()
    opened = context.new_page()
    opened.goto(index.as_uri())
    assert opened.locator("tbody tr").count() == count
    assert len(shown(opened)) == 100
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    opened.wait_for_function(paint)
    milliseconds = opened.evaluate(paint)
    print(f"{count} rows, first contentful paint: {milliseconds:.0f} ms")
    opened.get_by_role("button", name="Next").click()
    assert shown(opened)[0] == "defense-0100"
    assert opened.get_by_text(f"Rows 101 to 200 of {count}").first.is_visible()
    opened.get_by_label("Search").fill("defense-0499")
    assert shown(opened) == ["defense-0499"]
    context.close()
    assert milliseconds < 2000


def test_tables_in_the_notes_are_not_counted_as_rows(chromium, tmp_path):
    """A randomized defense has a table of its draws there."""
    shipped = Path(__file__).resolve().parents[2] / "results" / "shipped" / "digits-linf"
    index = write_page(collect([shipped / "nim-mim-digits"]), tmp_path / "board", pictures=False)
    context = chromium.new_context()
    opened = context.new_page()
    opened.goto(index.as_uri())
    rows = opened.locator("tr[data-spec]").count()
    assert opened.locator(".notes tbody tr").count() > 0
    assert opened.locator("#count").inner_text().startswith(f"{rows} of {rows} rows")
    opened.get_by_label("Search").fill("undefined")
    assert opened.locator("#count").inner_text() == f"0 of {rows} rows"
    context.close()


def test_on_a_phone_name_accuracy_and_warning_are_in_sight(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.reload()
    row = page.locator("tbody tr").first
    assert row.locator("th, td").filter(visible=True).all_inner_texts()[0] == "suspicious"
    boxes = [row.locator(f".c-{name}").bounding_box() for name in ("defense", "robust", "warnings")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in boxes)
    assert all(box["y"] + box["height"] <= 740 for box in boxes)
    assert not page.locator("#columns").is_visible() and not row.locator(".c-clean").is_visible()


def test_on_a_phone_the_results_of_a_defense_are_readable(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.get_by_role("link", name="suspicious").first.click()
    page.wait_for_url("**/defense/**")
    row = page.locator(".overview tbody tr").first
    cells = row.locator("th, td").filter(visible=True)
    assert cells.count() == 3 and "Linf:" in cells.first.inner_text()
    assert cells.first.bounding_box()["width"] > 120
    last = cells.last.bounding_box()
    assert last["x"] + last["width"] <= 360


def test_columns_are_chosen(page):
    page.get_by_text("Filters and columns").click()
    assert page.get_by_label("clean %").is_checked()
    page.get_by_label("clean %").uncheck()
    page.get_by_label("date").check()
    row = page.locator("tbody tr").first
    assert not row.locator(".c-clean").is_visible() and row.locator(".c-date").is_visible()


def test_headers_and_names_stay_in_sight(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.reload()
    page.get_by_text("Filters and columns").click()
    for name in ("clean %", "best known %", "architecture", "date"):
        page.get_by_role("checkbox", name=name).check()
    page.evaluate("document.querySelector('.scroll').scrollLeft = 400")
    assert page.locator("tbody .c-defense").first.bounding_box()["x"] < 30
