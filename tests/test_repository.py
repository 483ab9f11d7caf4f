"""Repository files: workflows, the action, the citation, and the list of documentation pages."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from robench.cli.main import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    ROOT / "action.yml",
]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_commands_in_workflows_exist(path):
    yaml.safe_load(path.read_text())
    for name in re.findall(r"\brobench (\w+)", " ".join(re.findall(r"run: (?:\|\n)?(.*)", path.read_text()))):
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0, name


def test_the_image_gets_all_that_the_wheel_is_built_from():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", PROJECT["readme"], "LICENSE"}
    assert all((ROOT / name).exists() for name in needed)
    assert not needed & {*(ROOT / ".dockerignore").read_text().split()}


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]


def test_every_page_of_the_documents_is_listed():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE))
    docs = ROOT / "docs"
    assert listed == {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}


@pytest.mark.parametrize(
    "path", [p for p in WORKFLOWS if "uses:" in p.read_text()], ids=lambda path: path.name
)
def test_actions_of_others_are_named_by_commit(path):
    used = re.findall(r"uses: *([^\s#]+)", path.read_text())
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used)


def test_the_workflow_of_the_check_page_gives_inputs_that_the_action_has():
    (text,) = re.findall(
        r'```yaml title="[^"]+"\n(.*?)```', (ROOT / "docs" / "check.md").read_text(), re.DOTALL
    )
    steps = yaml.safe_load(text)["jobs"]["check"]["steps"]
    (step,) = [step for step in steps if step.get("uses", "").startswith("OWNER/robench@")]
    assert set(step["with"]) <= set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])
