"""Options in a TOML file: saved and read back, overruled by the command line, and not trusted as what is typed."""

import json
import tomllib

import pytest

from robench.cli import main
from robench.evaluation.protocol import DEFAULT_PROTOCOL
from robench.evaluation.security_curve import Radii, protocols

GRID = [
    "run",
    "--defense",
    "standard,pgd-at",
    "--attack",
    "fgsm,pgd(steps=1)",
    "--threat",
    "Linf:0.1",
    "--json",
]


@pytest.fixture
def robench(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


def keys(text):
    return [record["key"] for record in json.loads(text)["records"]]


def test_a_saved_grid_is_the_same_runs(robench, tmp_path):
    code, typed, err = robench(*GRID, "--samples", "4", "--save-config", "grid.toml")
    assert code == 0, err
    assert tomllib.loads((tmp_path / "grid.toml").read_text()) == {
        "defense": ["standard", "pgd-at"],
        "attack": ["fgsm", "pgd(steps=1)"],
        "threat": "Linf:0.1",
        "samples": 4,
        "json": True,
    }
    code, read, err = robench("run", "--config", "grid.toml", "--results", "again")
    assert code == 0 and keys(read) == keys(typed) and len(keys(read)) == 4
    code, fewer, err = robench("run", "--config", "grid.toml", "--samples", "3", "--attack", "fgsm")
    assert [record["n"] for record in json.loads(fewer)["records"]] == [3, 3]


def test_a_saved_share_is_read_again(robench, tmp_path):
    few = ["--defense", "standard", "--attack", "fgsm", "--samples", "4", "--threat", "Linf:0.1"]
    code, _out, err = robench("run", *few, "--share", "1/2", "--save-config", "share.toml")
    assert code == 0 and "share 1/2" in err
    code, _out, err = robench("run", "--config", "share.toml", "--share", "2/2")
    assert code == 0 and "2 of 2 so far" in err
    code, _out, err = robench("run", "--config", "share.toml")
    assert code == 0 and "share 1/2" in err


@pytest.mark.parametrize(
    "arguments", [["--engine", "ray"], ["--curve", "0:0.1:2"], ["--sweep", "steps=1,2"], ["--to", "digits"]]
)
def test_a_share_goes_with_one_run(robench, arguments):
    few = ["--defense", "standard", "--attack", "fgsm", "--samples", "4"]
    code, _out, err = robench("run", *few, "--share", "1/2", *arguments)
    assert code == 2 and "--share" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('defnse = "mimir"', 'grid.toml: unknown option "defnse": did you mean defense'),
        ("trust = true", 'unknown option "trust"'),
        ("samples = [1, 2]", "samples = [1, 2]: expected one value"),
        ("[defense]\nname = 1", "expected one value"),
        ('samples = "many"', "samples"),
        ("samples = 5.9", "samples = 5.9: expected a whole number"),
        ("samples = inf", "samples = inf: expected a whole number"),
        ("samples = true", "samples = True: expected a whole number"),
        ("samples =", "is not valid TOML"),
    ],
)
def test_what_a_file_cannot_say(robench, tmp_path, content, text):
    (tmp_path / "grid.toml").write_text(content)
    code, _out, err = robench("run", "--config", "grid.toml", "--defense", "standard")
    assert code == 2 and text in err and "Traceback" not in err


def test_a_name_in_a_file_runs_no_code(robench, tmp_path):
    (tmp_path / "grid.toml").write_text('defense = "python:os.getcwd"\n')
    code, _out, err = robench("run", "--config", "grid.toml", "--attack", "fgsm", "--samples", "2")
    assert code == 2 and 'grid.toml names "python:os.getcwd", which runs code' in err


@pytest.mark.parametrize(
    ("content", "arguments", "text"),
    [
        ('results = "elsewhere"', [], 'names "elsewhere", which is a folder to write to'),
        ('output = "elsewhere"', [], 'names "elsewhere", which is a folder to write to'),
        ('data-dir = "/etc"', [], 'names "/etc", which is a folder of files here'),
        ('checkpoint = "https://a.b/c.pth"', [], "which is a file or a download"),
        ('address = "a.b:6379"\nengine = "ray"', [], 'names "a.b:6379", which is a cluster'),
        ('dataset = "folder:/etc"', ["standard-digits", "--threat", "Linf:0.1"], 'names "folder:/etc"'),
        ('knowledge = "transfer:python:os.getcwd"', [], "which runs code"),
        ('protocol = "/etc/p.toml"', [], "/etc/p.toml"),
    ],
)
def test_a_file_opens_no_other_file_and_writes_nowhere_else(robench, tmp_path, content, arguments, text):
    (tmp_path / "grid.toml").write_text(f"{content}\n")
    before = sorted(tmp_path.rglob("*"))
    few = ["--attack", "fgsm", "--samples", "2", "--defense", *(arguments or ["standard"])]
    code, _out, err = robench("run", "--config", "grid.toml", *few)
    assert code == 2 and text in err and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_trusted_file_may_name_folders(robench, tmp_path):
    (tmp_path / "grid.toml").write_text('results = "elsewhere"\n')
    few = ["--defense", "standard", "--attack", "fgsm", "--samples", "2"]
    code, _out, err = robench("run", "--config", "grid.toml", "--trust", *few)
    assert code == 0 and 'trusted: grid.toml names "elsewhere"' in err
    assert list((tmp_path / "elsewhere").rglob("record.json"))


@pytest.mark.parametrize(
    ("start", "name", "value"), [("curve", "radii", "0:0.1:2"), ("sweep", "setting", "attack.steps=1,2")]
)
def test_the_argument_of_a_command_is_saved_too(robench, tmp_path, start, name, value):
    few = ["--defense", "standard", "--attack", "pgd", "--samples", "2", "--json"]
    code, typed, err = robench(start, value, *few, "--save-config", "saved.toml")
    assert code == 0, err
    assert tomllib.loads((tmp_path / "saved.toml").read_text())[name] == value
    code, read, err = robench(start, "--config", "saved.toml", "--results", "again")
    assert code == 0 and keys(read) == keys(typed), err


@pytest.mark.parametrize(
    ("start", "line"),
    [("sweep", "setting = 'network=python:payload.build'"), ("curve", "radii = 'python:payload.build'")],
)
def test_the_argument_of_a_file_runs_nothing(robench, tmp_path, monkeypatch, start, line):
    (tmp_path / "payload.py").write_text("open('ran', 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "given.toml").write_text(line)
    code, _out, _err = robench(start, "--config", "given.toml", "--defense", "standard", "--attack", "pgd")
    assert code == 2 and not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(robench):
    code, _out, err = robench("run", "--config", "none.toml")
    assert code == 3 and "none.toml" in err


def test_a_curve_needs_no_threat_beside_a_data_set():
    levels = protocols(Radii.parse("0:8/255:3"), None, "cifar10", None, 10)
    assert [str(level.threat) for level in levels] == ["Linf:4/255", "Linf:8/255"] and DEFAULT_PROTOCOL


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--defense", "net.pth"], "net.pth: there is no such file: pass weights with --checkpoint FILE"),
        (["--defense", "there.pth"], "there.pth is a file, not a defense: pass weights with --checkpoint"),
        (["--defense", "there.onnx"], "--defense onnx:FILE"),
        (["--defense", "weights/net"], "weights/net: there is no such file"),
        (["--defense", "standard", "--attack", "mine/suite"], "mine/suite: there is no such file"),
        (["--defense", "standard", "--dataset", "my/images"], "folder:PATH"),
        (["--defense", "standard", "--protocol", "p.yaml"], "the file name of a protocol ends in .toml"),
    ],
)
def test_a_path_is_answered_as_a_path(robench, tmp_path, arguments, text):
    for name in ("there.pth", "there.onnx"):
        (tmp_path / name).touch()
    code, _out, err = robench("run", *arguments)
    assert code == 2 and text in err and len(err.splitlines()) <= 2


def test_at_most_five_names_are_offered(robench):
    code, _out, err = robench("run", "--defense", "mimir", "--dataset", "imagenet-r", "--threat", "Linf:0.1")
    assert code == 2 and "robench show mimir lists them" in err and err.count("mimir-") == 5
