"""The tutorials' commands, run as they are printed, and the examples."""

import inspect
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

from robench import catalog
from robench.catalog import Suite
from tests.documents import play

ROOT = Path(__file__).parents[1]
SHORT = {
    "quick": ["apgd(steps=3)"],
    "autoattack": ["apgd(steps=5)", "square(queries=20)"],
    "pgd-20": ["pgd(steps=4)"],
}
PAGES = ["check.md", "tutorials/student.md", "tutorials/reviewer.md", "tutorials/host.md"]
# Long even with short suites.
LONG = ("check.md", "tutorials/reviewer.md")


@pytest.fixture
def short_suites(monkeypatch):
    """Suites of a few steps under their usual names: the pages say the same of them."""
    for name, specs in SHORT.items():
        monkeypatch.setitem(catalog.suites(), name, Suite(name, specs))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in LONG])
def test_the_commands_of_a_page_run_in_order(page, short_suites, tmp_path, monkeypatch):
    play(ROOT / "docs" / page, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_with_whole_suites(page, tmp_path, monkeypatch):
    play(ROOT / "docs" / page, tmp_path, monkeypatch)


def test_the_purifier_example_is_broken_by_bpda(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "purifier.py"))["main"](samples=10, attack="pgd(steps=5)")
    lines = dict(line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert "zero-gradients" in lines["full"]
    assert float(lines["bpda"].split("%")[0]) < float(lines["full"].split("%")[0])


def test_the_paper_table_example_prints_latex(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "examples" / "paper_table.py"))["main"]
    main(samples=5, attacks=("fgsm", "pgd(steps=2)"))
    out = capsys.readouterr().out
    assert r"\begin{tabular}{lrrr}" in out and "mimir-digits" in out and out.count(r"\\") >= 4
    assert not re.search(r"(?<!\\)[%_]", out)  # A bare % hides the rest of its line from LaTeX.


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert "data:image/png;base64," in shown[0] and "mimir-digits" in shown[-1]
    assert any("VERIFIED" in output.get("text", "") for output in outputs)


SHOWN = re.findall(r"^::: ([\w.]+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", SHOWN)
def test_the_api_page_describes_arguments_by_their_names(name):
    """The page is built with warnings as errors, and several names on one line are such a warning."""
    item = pkgutil.resolve_name(name)
    methods = inspect.getmembers(item, inspect.isfunction) if inspect.isclass(item) else [(name, item)]
    for called, function in methods:
        if not function.__module__.startswith("robench."):
            continue
        described = re.search(r"^ *Args:\n((?: {4,}.*\n|\n)+)", inspect.getdoc(function) or "", re.MULTILINE)
        names = re.findall(r"^ {4}(\S.*?):(?: |$)", described[1], re.MULTILINE) if described else []
        unknown = {each.lstrip("*") for each in names} - set(inspect.signature(function).parameters)
        assert not unknown, f"{called}: {unknown}"
