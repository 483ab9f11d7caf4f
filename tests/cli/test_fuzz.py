"""Random mistakes: whatever is typed or read, the answer is a result or one line with the right exit code."""

import contextlib
import io
import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robench import catalog
from robench.catalog import find_suite
from robench.cli import main
from robench.cli.main import COMMANDS
from robench.core import specs
from robench.core.errors import RobenchError
from robench.defenses import find_card
from robench.threats.threat import Threat
from robench.verification.baselines import read_baselines

MANY = int(os.environ.get("ROBENCH_FUZZ", "2000"))
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def few(examples: int):
    """A few examples in the fast tests; the slow test runs `MANY` of the same."""
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=QUIET)


def many():
    return settings(max_examples=MANY, deadline=None, suppress_health_check=QUIET)


# -- texts that look like specs ---------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "pgd",
        "apgd",
        "autoattack",
        "Linf",
        "L2",
        "fog",
        "mimir",
        "pgd-at-digits",
        "steps",
        "eps",
        "e9",
        "nan",
        "inf",
        "None",
        "True",
        "8/255",
        "1/0",
        "0",
        "-1",
        "1e-400",
        "10**9",
        "0x7f",
        "9" * 400,
        "\0",
        "\n",
        "é",
        "\ud800",
        "a" * 300,
    ]
)
MARKS = st.sampled_from([*"()[]{}=:,+-*/.'\"\\ @#%~", "://", "..", "=="])
TEXTS = st.lists(WORDS | MARKS | st.text(max_size=3), max_size=12).map("".join)


def parsers(text: str) -> None:
    for parse in (specs.parse, specs.split, Threat.parse, find_suite, find_card, catalog.find_protocol):
        with contextlib.suppress(RobenchError):
            parse(text)


@few(150)
@given(TEXTS)
def test_any_text_is_parsed_or_refused(text):
    parsers(text)


@pytest.mark.slow
@many()
@given(TEXTS)
def test_any_text_is_parsed_or_refused_at_length(text):
    parsers(text)


# -- TOML files -------------------------------------------------------------------------------------------

FILES = {
    "suite": (
        catalog.Suite,
        {"name": "s", "attacks": ["fgsm"], "norms": {"L1": ["apgd-l1"]}, "description": "d"},
    ),
    "ladder": (catalog.Suite, {"rungs": [{"name": "r", "attack": "fgsm", "threats": {"16": "fog:0.2"}}]}),
    "protocol": (
        catalog.Protocol,
        {"dataset": "digits", "threat": "Linf:0.1", "samples": 2, "suites": ["fgsm"], "knowledge": ["full"]},
    ),
    "transfer": (
        catalog.Protocol,
        {"ends": [{"dataset": "digits", "classifier": "standard-digits", "threat": "L2:1", "samples": 2}]},
    ),
    "card": (
        catalog.Card,
        {"name": "c", "builder": "vit(image_size=16)", "dataset": "digits", "recipe": {"epochs": 1}},
    ),
}
ODD = st.recursive(
    st.none()  # the field is left out
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["", " ", "\0", "x" * 20_000, "Linf:1e999", "python:os.getcwd"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_lowercase, max_size=4), inner, max_size=2)
    ),
    max_leaves=5,
)


def toml(value) -> str:
    """TOML's spelling of a value, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(repr(value), repr(value))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=True).replace("\\ud", "\\u0")
    if isinstance(value, list):
        return "[" + ", ".join(toml(each) for each in value if each is not None) + "]"
    if isinstance(value, dict):
        items = (f"{json.dumps(k)} = {toml(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(items) + "}"
    return str(value)


@st.composite
def files(draw):
    kind, table = FILES[draw(st.sampled_from(sorted(FILES)))]
    table = json.loads(json.dumps(table))
    place = table
    while True:
        if isinstance(place, dict):
            key = draw(st.sampled_from([*place, "unknown"]))
        else:
            key = draw(st.integers(0, len(place) - 1))
        inside = place[key] if isinstance(place, list) else place.get(key)
        if not isinstance(inside, dict | list) or not inside or draw(st.booleans()):
            place[key] = draw(ODD)
            break
        place = inside
    text = "".join(f"{json.dumps(k)} = {toml(v)}\n" for k, v in table.items() if v is not None)
    return kind, text


def read(folder: Path, kind, text: str) -> None:
    path = folder / "odd.toml"
    path.write_text(text, "utf-8")
    try:
        item = catalog.read(kind, path)
    except RobenchError as error:
        assert "\n" not in str(error)
        return
    # What is read runs at least one attack on at least one image.
    if kind is catalog.Suite:
        assert item.rungs or item.specs("Linf")
    elif kind is catalog.Protocol:
        assert item.suites and item.knowledge
        assert all(each.samples > 0 for each in item.ends or [item])


@few(120)
@given(files())
def test_any_toml_file_is_read_or_refused(tmp_path, file):
    read(tmp_path, *file)


@pytest.mark.slow
@many()
@given(files())
def test_any_toml_file_is_read_or_refused_at_length(tmp_path, file):
    read(tmp_path, *file)


@few(60)
@given(
    st.text(st.characters(codec="utf-8"), max_size=60) | st.just("a = " + "[" * 5000) | st.just("a.b." * 3000)
)
def test_any_text_for_a_toml_file_is_read_or_refused(tmp_path, text):
    path = tmp_path / "odd.toml"
    path.write_text(text, "utf-8")
    for reader in (read_baselines, catalog.read_toml):
        with contextlib.suppress(RobenchError):
            reader(path)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("suites", "suites = []"),
        ("suites", 'suites = [""]'),
        ("suites", "suites = [3]"),
        ("suites", 'suites = "fgsm"'),
        ("knowledge", "knowledge = []"),
        ("knowledge", 'knowledge = [["full"]]'),
        ("samples", "samples = true"),
        ("samples", "samples = 1e3"),
        ("threat", "threat = 0.1"),
        ("dataset", 'dataset = "digits\\u0000"'),
    ],
)
def test_a_protocol_that_would_run_nothing_is_an_error(tmp_path, name, field):
    lines = ['dataset = "digits"', 'threat = "Linf:0.1"', "samples = 2", field]
    lines = [line for line in lines[:3] if not line.startswith(name)] + [field]
    path = tmp_path / "p.toml"
    path.write_text("\n".join(lines))
    code, out, err = call("run", "--defense", "standard", "--attack", "fgsm", "--protocol", str(path))
    assert code == 2 and not out and name in err and len(err.splitlines()) <= 2, err


# -- command lines ----------------------------------------------------------------------------------------

VALUES = st.sampled_from(
    [
        "fgsm",
        "pgd(steps=1)",
        "pgd(steps=True)",
        "pgd(steps=1e9)",
        "autoattack+",
        "+",
        ",",
        "digits",
        "cifar10",
        "npz:none.npz",
        "folder:.",
        "folder:/dev/null",
        "Linf:0.1",
        "L2:nan",
        "fog:0.2",
        "L0:1.5",
        "0",
        "-1",
        "1e3",
        "999999999999999999999",
        "full",
        "bpda",
        "transfer:",
        "transfer:standard",
        "surrogate:\n",
        "standard",
        "standard-digits",
        "maep-digits",
        "python:json.dumps",
        "timm:none",
        "none.toml",
        ".",
        "/dev/null",
        "",
        " ",
        "é" * 200,
        "x" * 5000,
        "\udce9",
    ]
)
OPTIONS = st.sampled_from(
    [
        "--defense",
        "--attack",
        "--protocol",
        "--dataset",
        "--threat",
        "--samples",
        "--knowledge",
        "--seed",
        "--device",
        "--batch-size",
        "--precision",
        "--workers",
        "--data-dir",
        "--results",
        "--output",
        "--checkpoint",
        "--format",
        "--sort",
        "--sweep",
        "--curve",
        "--from",
        "--to",
        "--json",
        "--fresh",
        "--claims",
        "--suite",
        "--help",
        "--x",
        "--",
    ]
)
# These do work in the background or write where they are: they have tests of their own.
SAFE = [name for name in COMMANDS if name not in ("train", "corrupt", "cache", "doctor", "list")]
LINES = st.tuples(
    st.sampled_from(SAFE), st.lists(VALUES | st.tuples(OPTIONS, VALUES), min_size=0, max_size=5)
).map(
    lambda pair: [
        pair[0],
        *(word for each in pair[1] for word in ([each] if isinstance(each, str) else each)),
    ]
)


def call(*arguments: str) -> tuple[int, str, str]:
    """The command line in this process: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code, out.getvalue(), err.getvalue()


def answers(arguments: list[str]) -> None:
    quick = ["--samples", "2"] if arguments[0] in ("run", "diagnose") and "--samples" not in arguments else []
    code, out, err = call(*arguments, *quick)
    assert code in (0, 1, 2, 3), (code, err)
    assert "Traceback" not in out + err
    if code:
        assert err.startswith("robench: ") or "\nrobench: " in err, err
        assert max(map(len, err.splitlines())) < 1000, err


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@few(40)
@given(LINES)
def test_any_command_line_gets_an_exit_code(empty, arguments):
    answers(arguments)


@pytest.mark.slow
@many()
@given(LINES)
def test_any_command_line_gets_an_exit_code_at_length(empty, arguments):
    answers(arguments)
