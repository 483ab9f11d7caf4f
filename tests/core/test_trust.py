"""Names read from files are never run, fetched or opened without trust, for every command and scheme."""

import json
import os
import pathlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import robench
from robench import canonical
from robench.cli.main import main
from robench.core import registry, specs
from robench.core.trust import Untrusted, Written, admit, like, trusting, written
from robench.data import load_dataset
from robench.data._image_lists import read_list
from robench.defenses import _fetch, load_defense
from robench.records.record import decode, read_record
from robench.verification.regression import Options, check
from tests.combinations import each_once

pytest_plugins = ["pytester"]

MODULE = """
from pathlib import Path
import robench
MARK = Path({mark!r})
MARK.touch()
def build(**settings):
    MARK.touch()
    return robench.load_defense("standard-digits")
"""
CARD = 'builder = "{builder}"\ndataset = "digits"\n{more}\n'
# A loader, a module of the current folder, the standard library, the path of a card, and variants of them.
DEFENSES = (
    *(f"{scheme}:target" for scheme in sorted(registry.loaders)),
    "plugin:target",
    "plugin:target(width=3)",
    "python:payload.build",
    " python:payload.build ",
    "PYTHON:payload.build",
    'python:subprocess.run(args=["touch", "ran"])',
    "python:os.mkdir(path='ran')",
    "payload.toml",
    "./payload.toml",
    "payload.toml ",
    "pure.toml",
    "maep-digits+python:payload.build",
    "maep-digits+payload.toml",
    "maep-digits+maep-digits+python:payload.build",
    "pure.toml+standard-digits",
)
# One of each kind, where testing every name would take long.
FEW = (
    "python:payload.build",
    "plugin:target(width=3)",
    "torchscript:target",
    "payload.toml",
    "maep-digits+python:payload.build",
)
DATASETS = (
    "npz:others.npz",
    "folder:/etc",
    "parquet:/etc",
    "npz:others.npz(classes=10)",
    "npz:../images.npz",
    "npz:./images.npz",
    'corrupted(dataset="npz:images.npz", corruption="fog", severity=1)',
    'corrupted(dataset="corrupted(dataset=\\"folder:/etc\\", corruption=\\"fog\\", severity=1)", corruption="fog", '
    "severity=1)",
    'folder:/etc(preprocessing="own")',
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A record of a short run."""
    place = tmp_path_factory.mktemp("base")
    return robench.run(
        "standard-digits", "pgd(steps=2)", samples=16, threat="Linf:0.1", results=place, batch_size=16
    ).folder


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A current folder with traps, each of which creates the file `ran`."""
    mark = tmp_path / "ran"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    (tmp_path / "payload.py").write_text(MODULE.format(mark=str(mark)))
    (tmp_path / "payload.toml").write_text(CARD.format(builder="python:payload.build", more=""))
    (tmp_path / "pure.toml").write_text(
        CARD.format(builder="diffpure(t=1)", more='classifier = "python:payload.build"')
    )
    (tmp_path / "images.npz").write_bytes(b"")
    (tmp_path / "others.npz").write_bytes(b"")

    def trap(*arguments, **settings):
        mark.touch()
        raise AssertionError(f"a trap was sprung: {arguments}")

    loaders = registry.loaders._builders
    for scheme in [*loaders, "plugin"]:
        if scheme != "python":
            monkeypatch.setitem(loaders, scheme, trap)
    monkeypatch.setattr(_fetch, "_download", trap)
    monkeypatch.setattr(_fetch, "hf_hub_download", trap)
    for name in ("npz", "folder", "parquet"):
        monkeypatch.setitem(registry.datasets._builders, name, _spying(registry.datasets.get(name), mark))
    yield tmp_path
    assert not mark.exists(), "something was run"


def _spying(builder, mark):
    import functools

    @functools.wraps(builder)
    def spy(*arguments, **settings):
        mark.touch()
        return builder(*arguments, **settings)

    return spy


@pytest.fixture
def call(capsys):
    """Run the command line; returns the exit code and the output."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err + out
        return end.value.code, out, err

    return call


def planted(base, place, **changes):
    """A copy of the record with another value for field `a__b`."""
    shutil.copytree(base, place)
    content = json.loads((place / "record.json").read_text())
    for field, value in changes.items():
        *path, last = field.split("__")
        table = content
        for each in path:
            table = table[each]
        table[last] = value
    # An attacker knows how keys are made.
    content["key"] = decode(json.dumps(content).encode()).job.key
    (place / "record.json").write_text(json.dumps(content))
    return place


def refused(code, out, err, what="--trust"):
    lines = [line for line in err.splitlines() if line.startswith("robench: ") and "left to it" not in line]
    assert code == 2 and len(lines) == 1 and what in err, (code, out, err)


@pytest.mark.parametrize(("command", "name"), each_once(["verify", "check"], DEFENSES))
def test_a_defense_that_a_record_names(command, name, base, room, call):
    record = planted(base, room / "record", defense__name=name)
    code, out, err = call(command, record)
    refused(code, out, err, "unknown" if "PYTHON" in name or name.endswith("toml ") else "--trust")


# Commands that read the images of a record.
READERS = {"verify": ["verify"], "check": ["check"], "show": ["show", "--picture", "picture.png"]}


@pytest.mark.parametrize(("command", "name"), each_once(list(READERS), DATASETS))
def test_a_dataset_that_a_record_names(command, name, base, room, call):
    record = planted(base, room / "record", dataset__name=name)
    code, out, err = call(*READERS[command], record)
    assert code == 2 and "--trust" in err and "root:" not in err + out, (code, out, err)


@pytest.mark.parametrize("command", READERS)
def test_images_beside_a_record_are_its_own_and_those_elsewhere_are_not(
    command, base, tmp_path, monkeypatch, call
):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    monkeypatch.chdir(tmp_path)
    record = planted(base, tmp_path / "record", dataset__name="npz:images.npz")
    np.savez(tmp_path / "images.npz", x=np.zeros((16, 3, 16, 16), np.float32), y=np.zeros(16, np.int64))
    code, _, err = call(*READERS[command], record)
    assert code == 3 and f"{record / 'images.npz'}: No such file" in err
    (record / "images.npz").symlink_to(tmp_path / "images.npz")
    code, _, err = call(*READERS[command], record)
    assert code == 3 and "is a link" in err
    (record / "images.npz").unlink()
    np.savez(record / "images.npz", x=np.array([Trap()], object), y=np.zeros(1, np.int64))
    code, _, err = call(*READERS[command], record)
    assert code in (2, 3) and len(err.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("level", "name"), each_once(["transfer", "surrogate"], DEFENSES))
def test_a_surrogate_that_a_record_names(level, name, base, room, call):
    record = planted(base, room / "record", knowledge=f"{level}:{name}")
    code, _, err = call("check", record)
    assert code == 2 and ("--trust" in err or "unknown" in err)


def test_records_with_every_name_in_every_field_are_shown_merged_and_pruned(base, room, call):
    fields = ("defense__name", "defense__classifier", "dataset__name", "knowledge", "protocol", "suite__name")
    for field in fields:
        for number, name in enumerate((*FEW[:1], *FEW[3:], DATASETS[0])):
            value = f"transfer:{name}" if field == "knowledge" else name
            planted(base, room / "results" / field / str(number), **{field: value})
    for command in (
        ("board", "results"),
        ("board", "results", "--format", "html", "--output", "page", "--data-dir", "."),
        ("table", "mimir", "results"),
        ("table", "purifiers", "results"),
        ("table", "unforeseen", "results"),
        ("plot", "all", "results"),
        ("results", "export", "results", "--output", "all.zip"),
        ("results", "export", "results", "--output", "infos", "--model-info"),
        ("results", "merge", "all.zip", "--into", "merged"),
        ("results", "prune", "results", "--dry-run"),
    ):
        code, out, err = call(*command)
        assert code in (0, 1, 2, 3) and not (room / "ran").exists(), (command, out, err)


@pytest.mark.parametrize("name", FEW)
def test_the_names_in_a_suite_and_a_protocol(name, room, call):
    quoted = json.dumps(name)
    rung = '[[rungs]]\nname = "a"\nattack = "pgd(steps=1)"\nknowledge = {}\n'
    for level in ("transfer", "surrogate"):
        (room / "suite.toml").write_text(rung.format(json.dumps(f"{level}:{name}")))
        code, _, err = call("run", "--defense", "standard-digits", "--attack", "suite.toml", "--samples", "4")
        assert code == 2 and "--trust" in err
        (room / "protocol.toml").write_text(
            'dataset = "digits"\nthreat = "Linf:0.1"\nsamples = 4\nsuites = ["fgsm"]\n'
            f"knowledge = [{json.dumps(f'{level}:{name}')}]\n"
        )
        code, _, err = call("run", "--defense", "standard-digits", "--protocol", "protocol.toml")
        assert code == 2 and ("--trust" in err or "unknown" in err)
    (room / "transfer.toml").write_text(
        'suites = ["purifier-cheap"]\n[[ends]]\ndataset = "digits"\nthreat = "Linf:0.1"\nsamples = 4\n'
        f"classifier = {quoted}\n"
    )
    code, _, err = call(
        "run", "--defense", "maep", "--protocol", "transfer.toml", "--from", "digits", "--to", "digits"
    )
    assert code == 2 and ("--trust" in err or "unknown" in err)


@pytest.mark.parametrize(("command", "name"), each_once(["run", "diagnose"], DATASETS))
def test_the_data_set_of_a_protocol(command, name, room, call):
    (room / "protocol.toml").write_text(
        f'dataset = {json.dumps(name)}\nthreat = "Linf:0.1"\nsamples = 4\nsuites = ["fgsm"]\n'
    )
    code, _, err = call(command, "--defense", "standard-digits", "--protocol", "protocol.toml")
    assert code == 2 and ("--trust" in err or "preprocessing" in err)


def test_a_suite_or_a_protocol_names_no_other_file(room, call):
    (room / "other.toml").write_text('attacks = ["fgsm"]\n')
    (room / "suite.toml").write_text('[[rungs]]\nname = "a"\nattack = "other.toml"\n')
    refused(*call("run", "--defense", "standard-digits", "--attack", "suite.toml", "--samples", "4"))
    (room / "protocol.toml").write_text(
        'dataset = "digits"\nthreat = "Linf:0.1"\nsamples = 4\nsuites = ["other.toml"]\n'
    )
    refused(*call("run", "--defense", "standard-digits", "--protocol", "protocol.toml"))
    (room / "paper.toml").write_text(
        'title = "t"\n[[tables]]\ntitle = "t"\ndataset = "digits"\nthreat = "Linf:0.1"\n'
        'columns = [{ name = "a", attack = "other.toml" }]\nrows = [{ name = "b", defense = "payload.toml" }]\n'
    )
    (room / "results").mkdir()
    refused(*call("table", "paper.toml"))


@pytest.mark.parametrize("name", [name for name in FEW if not name.endswith(".toml")])
def test_names_in_a_card_are_not_trusted(name, room, call):
    quoted = name.replace('"', '\\"')
    cards = {
        "builder": CARD.format(builder=quoted, more=""),
        "classifier": CARD.format(builder="diffpure(t=1)", more=f'classifier = "{quoted}"'),
    }
    for card in cards.values():
        (room / "card.toml").write_text(card)
        for command in (
            ("run", "--defense", "card.toml", "--attack", "fgsm", "--samples", "4"),
            ("run", "--defense", "standard-digits", "--knowledge", "transfer:card.toml", "--attack", "fgsm"),
            ("run", "--defense", "maep-digits+card.toml", "--attack", "fgsm", "--samples", "4"),
            ("diagnose", "--defense", "card.toml", "--samples", "4"),
        ):
            code, _, err = call(*command)
            assert code in (2, 3) and not (room / "ran").exists(), (command, err)
        code, out, err = call("show", "card.toml")
        assert "cannot be built here" in out or code == 2


@pytest.mark.parametrize(
    "location",
    ["https://example.org/a.pt", "hf://a/b/c.pt", "/etc/passwd", "../a.pt", "~/a.pt", "a/../../b.pt"],
)
def test_where_a_card_or_a_baseline_has_its_weights(location, base, room, call):
    (room / "card.toml").write_text(
        CARD.format(builder="cnn(image_size=16, width=2, hidden=2)", more=f'checkpoint = "{location}"')
    )
    refused(*call("run", "--defense", "card.toml", "--attack", "fgsm", "--samples", "4"))
    (room / "baseline.toml").write_text(f'[[check]]\nbaseline = "{base}"\ncheckpoint = "{location}"\n')
    refused(*call("check", "baseline.toml"))


@pytest.mark.parametrize("field", ["start", "source"])
def test_names_in_a_recipe_are_not_trusted(field, room, call):
    name = "python:payload.build"
    stage = f'method = "maep(source=\\"{name}\\")"' if field == "source" else 'method = "maep"'
    start = f'start = "{name}"\n' if field == "start" else ""
    (room / "card.toml").write_text(
        CARD.format(builder="maep(image_size=16, patch_size=4, width=8, depth=1, heads=1)", more="")
        + f"[recipe]\n{start}samples = 8\n[[recipe.purifying]]\n{stage}\nepochs = 1\nbatch_size = 8\nlr = 1e-3\n"
    )
    code, _, _ = call("train", "card.toml")
    assert code in (2, 3) and not (room / "card.safetensors").exists()


@pytest.mark.parametrize("name", DEFENSES)
def test_names_in_a_baseline_are_not_trusted(name, base, room, call):
    (room / "baseline.toml").write_text(f'[[check]]\nbaseline = "{base}"\ndefense = {json.dumps(name)}\n')
    code, _, err = call("check", "baseline.toml")
    assert code == 2 and ("--trust" in err or "unknown" in err)


def test_names_are_not_trusted_by_the_pytest_plugin(base, room, pytester):
    record = planted(base, room / "record", defense__name="python:payload.build")
    os.chdir(room)
    # No settings of a folder above count, which may ask for several processes.
    (room / "pytest.ini").write_text("[pytest]\n")
    ran = pytester.runpytest_inprocess("--robench", str(record))
    ran.stdout.fnmatch_lines(['*names "python:payload.build"*--trust*'])
    assert ran.ret == 1 and not (room / "ran").exists()
    ran = pytester.runpytest_inprocess("--robench", str(record), "--robench-trust")
    assert ran.ret == 0 and "trusted: " in ran.stderr.str() + ran.stdout.str()
    (room / "ran").unlink()
    ran = pytester.runpytest_inprocess("-v", "--robench", str(record), "--collect-only")
    ran.stdout.fnmatch_lines(["*collected 1 item", "*Check python:payload.build*"])


def test_names_are_not_trusted_in_python(base, room):
    record = planted(base, room / "record", defense__name="python:payload.build")
    with pytest.raises(Untrusted):
        check(record, options=Options())
    with pytest.raises(Untrusted):
        load_defense(read_record(record).job.defense.name)
    with pytest.raises(Untrusted):
        load_dataset(Written("npz:images.npz"))
    with pytest.raises(Untrusted):
        read_list(specs.parse(Written('imagenet(ids="/etc/passwd")')).arguments["ids"], "imagenet")


def test_typed_and_trusted_names_are_loaded(base, room, call):
    record = planted(base, room / "record", defense__name="python:payload.build")
    mark = room / "ran"
    for command, typed in (("verify", True), ("check", True), ("verify", False), ("check", False)):
        added = ["--defense", "python:payload.build"] if typed else ["--trust"]
        code, out, err = call(command, record, *added)
        assert mark.exists() and code in (0, 1), (out, err)
        assert ("trusted: " in err) is not typed and err.count("trusted: ") <= 1
        mark.unlink()
    call("verify", record)  # trust ends with the command
    code, out, _ = call("show", "payload.toml")
    assert "--trust" in out and not mark.exists()
    code, out, err = call("show", "payload.toml", "--trust")
    assert code == 0 and "payload.toml names" in err and mark.exists()
    mark.unlink()


def test_a_typed_card_with_local_weights_needs_no_trust(room, call):
    shipped = robench.catalog.folder("defense") / "standard-digits.toml"
    shutil.copytree(shipped.parent / "checkpoints", room / "checkpoints", ignore=_only("standard-digits"))
    (room / "mine.toml").write_text(shipped.read_text())
    code, _, err = call("run", "--defense", "mine.toml", "--attack", "fgsm", "--samples", "4")
    assert code == 0, err
    code, _, err = call("run", "--defense", "maep-digits+mine.toml", "--attack", "fgsm", "--samples", "4")
    assert code == 0, err


def _only(stem):
    return lambda folder, names: [name for name in names if not name.startswith(stem)]


words = st.text("aB0 :+,()'\"\\\n\u00e9", max_size=8)
names = st.builds("a{}{}".format, st.text("bc-.0", max_size=4), st.sampled_from(["", ":x/y.z", ":a b"]))


@given(names, words, st.lists(words, max_size=2))
def test_strings_derived_from_a_written_name_are_written(name, text, texts):
    spec = specs.Spec(name, {"a": text, "b": texts, "c": 1})
    plain, tagged = specs.parse(str(spec)), specs.parse(Written(str(spec), "f"))
    assert plain == tagged and not isinstance(plain.name, Written)
    for each in (tagged.name, tagged.arguments["a"], *tagged.arguments["b"], str(tagged)):
        assert isinstance(each, Written) and each.file == "f"
    assert all(isinstance(each, Written) for each in specs.split(Written(f"{name}+{name}", "f"), "+"))
    assert not isinstance(str(plain), Written)


def test_a_piece_of_a_written_name_is_written():
    name = Written(" maep+python:a.b ", "f")
    pieces = [
        *(name.strip(), name[1:], name.lower(), name + "x", name.removeprefix(" "), name.replace("a", "b")),
        *(*name.partition("+"), *name.split("+"), *name.rpartition(":"), *name.splitlines()),
    ]
    assert all(isinstance(piece, Written) and piece.file == "f" for piece in pieces)
    assert pathlib.Path(name.strip()) == pathlib.Path("maep+python:a.b")


@pytest.mark.parametrize(
    ("canonical", "text"),
    [
        (canonical.defense_name, " maep-digits + python:a.b"),
        (canonical.defense_name, "timm:resnet50(x=1)"),
        (canonical.defense_name, "mine.toml"),
        (canonical.dataset_name, "npz: a.npz"),
        (canonical.dataset_name, "digits(size=16)"),
        (canonical.knowledge_name, "transfer: python:a.b"),
        (canonical.knowledge_name, "full "),
    ],
)
def test_the_canonical_form_of_a_written_name_is_written(canonical, text):
    assert isinstance(canonical(Written(text, "f")), Written)
    assert not isinstance(canonical(text), Written)


def test_admit_notes_each_name_once_and_trust_ends_with_its_block():
    heard = []
    with trusting(heard.append):
        for _ in range(3):
            admit(Written("a:b", "f"), "runs")
    assert heard == ['trusted: f names "a:b", which runs']
    with pytest.raises(Untrusted, match="--trust"):
        admit(Written("a:b", "f"), "runs")
    admit("a:b", "runs")
    assert like("typed", ["x"]) == ["x"] and not isinstance(like("typed", "x"), Written)
    assert written({"a": ("x", {"b": ["y"]}), "n": 1}, "f") == {"a": ("x", {"b": ["y"]}), "n": 1}
