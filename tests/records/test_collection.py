"""Whatever lies in a folder of records, what can be used is shown, and the rest is named with its reason."""

import copy
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from robench.cli.main import main
from robench.core import strict_json
from robench.core.errors import ResourceError
from robench.records import json_files
from robench.records.archive import bundles, export
from robench.records.collection import collect, usable
from robench.records.reading import LeftOut
from robench.records.record import Record
from robench.reports.board import Choice, board
from robench.reports.paper_files import find_paper
from robench.reports.papers import text as paper_text
from robench.reports.plots import PLOTS
from tests.fabricate import make_run

NESTED = "[" * 900 + "]" * 900


def rewrite(folder: Path, change) -> None:
    content = json.loads((folder / "record.json").read_bytes())
    change(content)
    (folder / "record.json").write_text(json.dumps(content))


def replace_text(folder: Path, old: str, new: str) -> None:
    text = (folder / "record.json").read_text("utf-8")
    assert old in text
    (folder / "record.json").write_text(text.replace(old, new, 1), "utf-8")


def change_samples(folder: Path, change) -> None:
    pq.write_table(change(pq.read_table(folder / "samples.parquet")), folder / "samples.parquet")


def change_certificates(folder: Path, change) -> None:
    tensors = load_file(folder / "adversarials.safetensors")
    save_file(change(tensors), folder / "adversarials.safetensors")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ODD = {
    "unknown threat": lambda f: rewrite(f, lambda c: c.update(threat="nonsense:0.5")),
    "endless arithmetic": lambda f: rewrite(f, lambda c: c.update(threat="Linf:1e-99999999/1e-9")),
    "no threat": lambda f: rewrite(f, lambda c: c.update(threat="none")),
    "unknown dataset": lambda f: rewrite(f, lambda c: c["dataset"].update(name="nowhere")),
    "malformed dataset": lambda f: rewrite(f, lambda c: c["dataset"].update(name="digits(")),
    "malformed attack": lambda f: rewrite(f, lambda c: c["suite"].update(attacks=["pgd(steps="])),
    "a long name": lambda f: rewrite(f, lambda c: c["defense"].update(name="x" * 10**6)),
    "a float that counts": lambda f: rewrite(f, lambda c: c.update(batch_size=8.0)),
    "a large batch": lambda f: rewrite(f, lambda c: c.update(batch_size=65537)),
    "a huge number": lambda f: replace_text(f, '"n": 30', '"n": 1' + "0" * 400),
    "a large number": lambda f: rewrite(f, lambda c: c.update(n=10**12)),
    "not a number": lambda f: replace_text(f, '"seconds": 60.0', '"seconds": NaN'),
    "infinity": lambda f: replace_text(f, '"seconds": 60.0', '"seconds": 1e999'),
    "a key twice": lambda f: replace_text(f, '"n": 30', '"n": 29, "n": 30'),
    "deep nesting": lambda f: replace_text(f, '"n": 30', f'"n": 30, "more": {NESTED}'),
    "no UTF-8": lambda f: (f / "record.json").write_bytes(b'{"schema": "\xff\xfe"}'),
    "a large file": lambda f: (f / "record.json").write_bytes(b" " * (strict_json.LONGEST + 2)),
    "nothing": lambda f: (f / "record.json").write_bytes(b""),
    "a list": lambda f: (f / "record.json").write_text("[]"),
    "a folder": lambda f: a_folder(f / "record.json"),
    "a link to itself": lambda f: ((f / "record.json").unlink(), (f / "record.json").symlink_to("record.json")),
    "another total": lambda f: rewrite(f, lambda c: c["robust_accuracy"].update(correct=31)),
    "a share outside its interval": lambda f: rewrite(
        f, lambda c: c["clean_accuracy"].update(interval=[0.9999, 1.0])
    ),
    "no samples": lambda f: (f / "samples.parquet").unlink(),
    "samples that are a folder": lambda f: a_folder(f / "samples.parquet"),
    "samples of nothing": lambda f: (f / "samples.parquet").write_bytes(b""),
    "a missing column": lambda f: change_samples(f, lambda t: t.drop_columns(["label"])),
    "a column of another type": lambda f: change_samples(
        f, lambda t: t.set_column(1, "label", pa.array(["a"] * len(t)))
    ),
    "an empty cell": lambda f: change_samples(
        f, lambda t: t.set_column(1, t.schema.field(1), pa.array([None] * len(t), pa.int64()))
    ),
    "a row less": lambda f: change_samples(f, lambda t: t.slice(1)),
    "duplicate ids": lambda f: change_samples(
        f, lambda t: t.set_column(0, t.schema.field(0), pa.array([1] * len(t), pa.int64()))
    ),
    "a long text": lambda f: change_samples(
        f, lambda t: t.set_column(3, t.schema.field(3), pa.array(["x" * 10**6] * len(t)))
    ),
    "corruptions that were none": lambda f: change_samples(
        f, lambda t: t.append_column("corrupted", pa.array([[1]] * len(t), pa.list_(pa.int32())))
    ),
    "misshapen certificates": lambda f: change_certificates(f, lambda t: {**t, "id": t["id"][:, None]}),
    "a certificate less": lambda f: change_certificates(f, lambda t: {**t, "grains_id": t["grains_id"][1:]}),
    "other tensors": lambda f: change_certificates(f, lambda t: {"weights": torch.zeros(3)}),
    "truncated certificates": lambda f: (f / "adversarials.safetensors").write_bytes(
        (f / "adversarials.safetensors").read_bytes()[:-5]
    ),
    "certificates with a header of any length": lambda f: (f / "adversarials.safetensors").write_bytes(
        b"\xff" * 16
    ),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_a_record_that_cannot_be_used_is_named_with_its_reason(tmp_path, odd):
    good, bad = make_run(tmp_path, defense="good"), make_run(tmp_path, defense="bad")
    good.write()
    bad.write()
    ODD[odd](bad.folder)
    found = collect([tmp_path])
    assert [record.job.defense.name for record in found] == ["good"]
    (left_out,) = found.left_out
    assert "bad/autoattack/record.json" in str(left_out)
    assert len(left_out.reason) < 900 and "\n" not in left_out.reason and left_out.reason


@pytest.mark.parametrize("odd", ["unknown threat", "deep nesting", "a row less", "other tensors"])
def test_every_command_shows_the_others_and_ends_in_1(tmp_path, monkeypatch, capsys, odd):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "results", defense="good").write()
    bad = make_run(tmp_path / "results", defense="bad")
    bad.write()
    ODD[odd](bad.folder)

    def ends(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    for form in ("text", "md", "latex", "csv"):
        code, out, err = ends("board", "--format", form)
        assert code == 1 and "good" in out and "1 of 2 left out" in err
        assert "bad/autoattack" in (err if form == "csv" else out.replace("\\", ""))
    for words in (
        ("board", "--format", "html", "--no-pictures"),
        ("plot", "scatter"),
        ("table", "mimir"),
        ("results", "export", "results", "--output", "out.zip"),
    ):
        code, _, err = ends(*words)
        assert code == 1 and "1 of 2 left out" in err and "bad/autoattack" in err, words
    code, out, err = ends("results", "merge", "results", "--into", "other")
    assert code == 1 and "bad/autoattack" in out and "1 of 2" in err
    assert (tmp_path / "other/digits-linf/good/autoattack/record.json").is_file()
    assert not (tmp_path / "other/digits-linf/bad").exists()
    code, _, err = ends("show", str(bad.folder))
    assert code == 3 and len(err.splitlines()) == 1


def archived(folder: Path, archive: Path, method: int = zipfile.ZIP_DEFLATED, **entries: bytes) -> None:
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(folder.iterdir()):
            file.writestr(f"p/d/s/{path.name}", entries.get(path.stem, path.read_bytes()))


def test_what_an_archive_holds_beside_good_records_is_named(tmp_path):
    run = make_run(tmp_path / "results")
    run.write()
    archived(run.folder, tmp_path / "good.zip")
    archived(run.folder, tmp_path / "bomb.zip", adversarials=b"\0" * (1 << 27))
    encrypted = bytearray((tmp_path / "good.zip").read_bytes())
    for place, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = -1
        while (start := encrypted.find(place, start + 1)) >= 0:
            encrypted[start + at] |= 1
    (tmp_path / "encrypted.zip").write_bytes(encrypted)
    (tmp_path / "none.zip").write_bytes(b"PK")
    # An entry that claims to be larger than the whole archive, so that its size looks plausible.
    lying = bytearray((tmp_path / "bomb.zip").read_bytes())
    start = lying.find(b"PK\x01\x02")
    lying[start + 20 : start + 24] = (1 << 26).to_bytes(4, "little")
    (tmp_path / "lying.zip").write_bytes(lying)
    # zipfile expands these at once, whatever size they state.
    archived(run.folder, tmp_path / "bzip2.zip", zipfile.ZIP_BZIP2)
    names = ("good", "bomb", "lying", "bzip2", "encrypted", "none")
    reasons = {name: [str(each) for _, each in bundles(tmp_path / f"{name}.zip")] for name in names}
    assert reasons["good"][0].startswith("Bundle(")
    for name in ("bomb", "lying", "bzip2"):
        assert "unpack the archive" in reasons[name][0]
    assert "encrypted" in reasons["encrypted"][0]
    assert "not an archive of records" in reasons["none"][0]
    places, left_out = export([tmp_path / f"{name}.zip" for name in reasons], tmp_path / "out")
    assert len(places) == 1 and len(left_out) == 5
    with pytest.raises(ResourceError, match=r"no record can be exported: .*none\.zip"):
        export([tmp_path / "none.zip"], tmp_path / "another")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_strict_json_reads_what_json_reads_or_refuses_it(value):
    text = json.dumps(value)
    try:
        assert strict_json.loads(text.encode()) == value
    except ValueError:
        assert "NaN" in text or "Infinity" in text or any(len(part) > 18 for part in text.split())


def test_strict_json_names_a_repeated_key_of_many():
    keys = [*range(200_000), 199_999]
    with pytest.raises(ValueError, match='the key "199999" is repeated'):
        strict_json.loads(b"{%s}" % b",".join(b'"%d":0' % key for key in keys))


def test_a_field_with_many_errors_is_one_line(run):
    raw = json.loads((run.write().folder / "record.json").read_text())
    raw["health"] = [0] * 1000
    with pytest.raises(ResourceError, match=r"^health.*at least 99 more\)$"):
        json_files.validate(raw, "record")


@given(st.binary(max_size=60))
def test_strict_json_refuses_bytes_in_one_line(data):
    try:
        strict_json.loads(data)
    except ValueError as error:
        assert str(error)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.sampled_from([0, 1, -1, 29, 30, 31, 10**7, 2**63 - 1, 2**63]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["none", "L0:0.5", "L1:1e308", "fog:0.4", "full", "transfer:x", "\ud800", "a" * 5000, "digits(", "+", "../..",
         "corrupted", "npz:nowhere.npz", "apgd(steps=1)", "corruption(name='fog')", "autoattack", "purifier"]
    ),
    st.just([]),
    st.just({}),
    st.just([None] * 3),
)  # fmt: skip


def leaves(content, path=()):
    if isinstance(content, dict | list) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield (*path, key)
            yield from leaves(value, (*path, key))


def mutated(content, data):
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(leaves(content))))
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        kind = data.draw(st.sampled_from(["value", "value", "value", "remove", "extra"]))
        if kind == "remove":
            del holder[path[-1]]
        elif kind == "extra" and isinstance(holder, dict):
            name = data.draw(st.sampled_from(["stochastic", "corruptions", "mce", "classes", "x"]))
            holder[name] = data.draw(VALUES)
        else:
            holder[path[-1]] = data.draw(VALUES)
    return content


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    make_run(root, defense="good").write()
    odd = make_run(root, defense="odd")
    return root, odd.folder / "record.json", odd.write().to_dict()


def shown_in_every_way(root: Path) -> None:
    found = collect([root])
    names = [record.job.defense.name for record in found]
    assert "good" in names and len(names) + len(found.left_out) == 2
    # A changed suite may take the place of the protocol's, and the other one is then behind --more.
    for form in ("text", "csv"):
        assert "good" in board(found, form, choice=Choice(more=True))
    for paper in ("mimir", "purifiers", "unforeseen"):
        paper_text(find_paper(paper), found, "text", None)


def test_a_record_of_another_suite_of_the_same_name_hides_no_record(two):
    root, file, content = two
    suite = {**content["suite"], "attacks": content["suite"]["attacks"][:1]}
    file.write_bytes(json.dumps({**content, "suite": suite}).encode())
    shown_in_every_way(root)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_record_is_shown_or_named(two, data):
    root, file, content = two
    file.write_bytes(json.dumps(mutated(content, data)).encode())
    shown_in_every_way(root)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_thousands_of_records_are_shown_or_named(two, data):
    root, file, content = two
    file.write_bytes(json.dumps(mutated(content, data)).encode())
    shown_in_every_way(root)
    for plot in PLOTS.values():
        plot.draw(collect([root]))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["record.json", "samples.parquet", "adversarials.safetensors"]), st.data())
def test_any_damage_to_a_file_is_survived(two, name, data):
    root, file, content = two
    file.write_bytes(json.dumps(content).encode())
    path = file.with_name(name)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        path.write_bytes(damaged[: data.draw(st.sampled_from([len(whole), len(whole) // 2]))])
        assert isinstance(usable(file), Record | LeftOut)
        shown_in_every_way(root)
    finally:
        path.write_bytes(whole)
