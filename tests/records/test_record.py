"""Records written and read back; keys; damage refused in one line that names what is wrong."""

import dataclasses
import json
import shutil
import tracemalloc
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robench.core.errors import ResourceError
from robench.engine.outcome import ResultWarning
from robench.records import json_files, record, samples
from robench.records.certificates import apply, encode, read_certificates
from robench.records.record import DatasetFacts, DefenseFacts, SuiteFacts, read_record, stable, stable_digest
from robench.records.samples import read_samples
from robench.threats.knowledge import SPELLINGS
from robench.threats.threat import Threat
from tests.fabricate import make_run

FILES = ("record.json", "samples.parquet", "adversarials.safetensors")
LATER = {
    "command": "robench run --fresh",
    "started": datetime(2027, 1, 1, tzinfo=UTC),
    "finished": datetime(2027, 1, 2, tzinfo=UTC),
    "seconds": 7.25,
}
CHANGES = {
    "defense": DefenseFacts("mimir-digits", "mimir", "a" * 64, "c" * 64),
    "suite": SuiteFacts("autoattack", ("square",)),
    "dataset": DatasetFacts("digits", "train", "d" * 64),
    "threat": "L2:0.5",
    "n": 31,
    "batch_size": 9,
    "knowledge": "oblivious",
    "seed": 1,
    "precision": "bf16",
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 1000),
    marks=st.lists(st.builds(ResultWarning, st.text(min_size=1), st.text()), max_size=3),
    command=st.text(),
    extra=st.dictionaries(st.sampled_from(["later_field", "average"]), st.floats(0, 1)),
)
def test_what_is_written_is_read_back(tmp_path, n, seed, marks, command, extra):
    run = make_run(tmp_path / str((n, seed)), n=n, draw=seed, health=marks)
    written = run.write(command=command, extra=extra)
    found = read_record(run.folder)
    assert found == written
    assert found.warnings == found.health == tuple(marks)
    assert found.robust_accuracy.correct == int(run.outcome.robust.sum())
    assert read_samples(run.folder)["fooled_by"].to_pylist() == run.outcome.fooled_by
    kept = read_certificates(run.folder)
    rows = {int(i): row for row, i in enumerate(run.images.ids)}
    for sample, delta in zip(kept.ids.tolist(), kept.delta, strict=True):
        row = rows[sample]
        kept_image = apply(Threat.parse(run.job.threat), run.images.x[row][None], delta[None], kept.ids[:1])[
            0
        ]
        assert kept_image.equal(run.outcome.x_adv[row])


def test_two_runs_that_found_the_same_leave_the_same_bytes(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    first, second = one.write(), two.write(**LATER)
    for name in FILES[1:]:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert first.to_dict() != second.to_dict()
    assert stable_digest(first.to_dict()) == stable_digest(second.to_dict())
    differing = {name for name, value in first.to_dict().items() if second.to_dict()[name] != value}
    assert differing <= set(record.VOLATILE)


def test_a_finding_moves_the_stable_digest(run):
    content = run.write().to_dict()
    assert stable_digest(content | {"n": content["n"] + 1}) != stable_digest(content)
    assert "seconds" not in stable(content)["attacks"][0]


@pytest.mark.parametrize("field", CHANGES)
def test_the_key_hangs_on_what_decides_the_outcome(run, field):
    assert dataclasses.replace(run.job, **{field: CHANGES[field]}).key != run.job.key


def test_the_key_does_not_hang_on_names_for_people(run):
    job = run.job
    renamed = dataclasses.replace(
        job,
        protocol="mine",
        suite=SuiteFacts("aa", job.suite.attacks),
        defense=dataclasses.replace(job.defense, family="", parameters=None),
    )
    assert renamed.key == job.key


def test_the_key_is_the_same_in_every_release(run):
    """A changed key would make every shipped record unknown to `robench run`."""
    job = dataclasses.replace(
        run.job,
        defense=dataclasses.replace(run.job.defense, checkpoint_sha256="b" * 64),
        suite=SuiteFacts("autoattack", ('apgd(loss="ce")', "square")),
        dataset=DatasetFacts("digits", "test", "e" * 64),
        threat="Linf:0.25",
    )
    assert job.key == "bdb76be47022089709b2ecaa506ca50916deed911cad4210864287d0b9eabfd6"


def test_the_record_says_how_far_memory_forced_the_batch(run):
    outcome = dataclasses.replace(run.outcome, batch_size=4)
    found = dataclasses.replace(run, outcome=outcome).record()
    assert found.job.batch_size == 4
    assert found.key == dataclasses.replace(run.job, batch_size=4).key


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000])
def test_a_name_that_no_folder_can_have_is_one_line(name):
    with pytest.raises(ResourceError, match="expected a folder written by robench run"):
        read_record(name)


def test_the_layout_of_record_json_is_the_documented_one(run):
    content = json.loads((run.write().folder / "record.json").read_text("utf-8"))
    assert list(content) == json_files.schema("record")["required"]
    assert content["started"] == "2026-01-02T03:04:05Z"
    assert content["schema"] == 1


def test_a_missing_record_says_where_and_what_to_do(tmp_path):
    with pytest.raises(ResourceError, match=r"record\.json: No such file.*robench run"):
        read_record(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_record_is_refused(run, share):
    path = run.write().folder / "record.json"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ResourceError, match=r"truncated or not JSON.*--fresh"):
        read_record(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1, 2]", b"[" * 100_000, b'"x"', b'{"n": NaN}'])
def test_what_is_not_a_record_is_refused(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(ResourceError) as caught:
        read_record(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("robust_accuracy.value", 1.5),
        ("robust_accuracy.interval", [0.1]),
        ("clean_accuracy.correct", -1),
        ("defense.checkpoint_sha256", "abc"),
        ("dataset.digest", "z" * 64),
        ("attacks.0.survivors", "12"),
        ("threat", "L7:1"),
        ("knowledge", "total"),
        ("schema", 0),
        ("started", "yesterday"),
        ("health.0", {"code": "x"}),
        ("files", {}),
    ],
)
def test_a_wrong_field_is_named(runs, place, value):
    path = runs(health=[ResultWarning("zero-gradients", "3 of 30")]).write().folder / "record.json"
    content = json.loads(path.read_text("utf-8"))
    inner, *outer = reversed(place.split("."))
    target = content
    for part in reversed(outer):
        target = target[int(part) if part.isdigit() else part]
    target[int(inner) if inner.isdigit() else inner] = value
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ResourceError, match=f"{place} breaks record schema 1"):
        read_record(path)


@pytest.mark.parametrize("knowledge", [level.replace("NAME", "maep(tile=8)") for level in SPELLINGS])
def test_every_knowledge_level_is_written_and_read(runs, knowledge):
    made = runs(knowledge=knowledge).write()
    assert read_record(made.folder).job.knowledge == knowledge


@pytest.mark.parametrize("field", json_files.schema("record")["required"])
def test_every_missing_field_is_named(run, field):
    path = run.write().folder / "record.json"
    content = json.loads(path.read_text("utf-8"))
    del content[field]
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ResourceError, match=f"'{field}' is a required property"):
        read_record(path)


@pytest.mark.parametrize(
    ("limit", "says"),
    [("_MOST", "more rows than a record can have"), ("_TEXT", "column fooled_by has more than 5 characters")],
)
def test_rows_that_would_fill_memory_are_refused(run, monkeypatch, limit, says):
    folder = run.write().folder
    monkeypatch.setattr(samples, limit, 5)
    with pytest.raises(ResourceError, match=says):
        read_samples(folder)


@pytest.mark.parametrize(
    ("file", "read"), [("samples.parquet", read_samples), ("adversarials.safetensors", read_certificates)]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_truncated_companions_are_refused(run, file, read, share):
    path = run.write().folder / file
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ResourceError, match=f"{file}: damaged or truncated"):
        read(run.folder)
    path.unlink()
    with pytest.raises(ResourceError, match=f"{file}: No such file"):
        read(run.folder)


def test_companions_of_another_kind_are_refused(run):
    folder = run.write().folder
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file

    pq.write_table(pa.table({"id": [1, 2]}), folder / "samples.parquet")
    with pytest.raises(ResourceError, match="column label is missing"):
        read_samples(folder)
    save_file({"delta": torch.zeros(2, 3), "id": torch.arange(2)}, folder / "adversarials.safetensors")
    with pytest.raises(ResourceError, match=r"expected delta \(M, C, H, W\)"):
        read_certificates(folder)


def test_an_image_that_its_perturbation_does_not_reach_is_not_certified(run):
    fooled = next(i for i, name in enumerate(run.outcome.fooled_by) if name not in ("", "clean"))
    x_adv = run.outcome.x_adv.clone()
    run.images.x[fooled] = 0.5
    x_adv[fooled] = 1e-20
    with pytest.raises(ValueError, match="1 adversarial points"):
        list(encode(dataclasses.replace(run.outcome, x_adv=x_adv), run.images, Threat.parse(run.job.threat)))


def test_a_record_can_be_read_after_its_folder_was_moved(run, tmp_path):
    written = run.write()
    moved = shutil.move(run.folder, tmp_path / "elsewhere")
    assert read_record(moved) == written
    assert read_record(moved).folder == tmp_path / "elsewhere"


def test_a_record_of_a_newer_robench_is_refused_in_one_line(run):
    run.write()
    content = json.loads((run.folder / "record.json").read_text())
    (run.folder / "record.json").write_text(json.dumps({**content, "schema": 2, "colour": "blue"}))
    with pytest.raises(ResourceError) as caught:
        read_record(run.folder)
    assert str(caught.value) == (
        f"{run.folder}/record.json: record schema 2 is newer than this robench reads (1): pip install --upgrade robench"
    )


@pytest.mark.parametrize("schema", [0, -1, "1", None, 1.5])
def test_a_schema_that_never_was_is_named(run, schema):
    content = {**run.write().to_dict(), "schema": schema}
    with pytest.raises(ResourceError, match="schema breaks record schema 1"):
        record.decode(json.dumps(content).encode())


def test_older_records_are_migrated_step_by_step_and_keep_their_key(run, monkeypatch):
    """Two steps that never were: schema -1 wrote the defense's name alone, schema 0 called images `samples`."""

    def from_minus_one(content):
        facts = {"family": "", "card_digest": "", "checkpoint_sha256": "b" * 64, "parameters": None}
        return {**content, "defense": {"name": content["defense"], **facts}}

    def from_zero(content):
        return {
            **{name: value for name, value in content.items() if name != "samples"},
            "n": content["samples"],
        }

    monkeypatch.setattr(record, "MIGRATIONS", {-1: from_minus_one, 0: from_zero})
    today = run.write().to_dict()
    old = {name: value for name, value in today.items() if name != "n"}
    old |= {"schema": -1, "samples": today["n"], "defense": today["defense"]["name"]}
    found = record.decode(json.dumps(old).encode())
    assert found.job.n == run.job.n and found.job.defense.name == "mimir-digits"
    assert found.key == today["key"] and found.to_dict()["schema"] == 1


def test_a_record_of_the_first_release_is_read(run):
    """Before a purifier's classifier was written, and before randomized defenses were judged on several draws."""
    content = run.record().to_dict()
    del content["defense"]["classifier"]
    content["files"] = dict.fromkeys(("samples.parquet", "adversarials.safetensors"), "0" * 64)
    assert record.decode(json.dumps(content).encode()).job.defense.classifier == ""


def test_a_command_with_bytes_that_are_no_text_is_written_and_read(run):
    command = b"robench run --results \xff\xfe".decode(errors="surrogateescape")
    assert read_record(run.write(command=command).folder).command == command


def test_perturbations_stay_in_their_file(tmp_path):
    """A file of 300 MB, most of it a hole, of which two images are asked for."""
    n, shape = 25_000, (3, 32, 32)
    header = {
        "id": {"dtype": "I64", "shape": [n], "data_offsets": [0, 8 * n]},
        "delta": {"dtype": "F32", "shape": [n, *shape], "data_offsets": [8 * n, 8 * n + 4 * n * 3072]},
    }
    text = json.dumps(header).encode()
    with (tmp_path / "adversarials.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + np.arange(n).tobytes())
        last = np.full(shape, 0.5, np.float32).tobytes()
        file.seek(8 + len(text) + 8 * n + 4 * n * 3072 - len(last))
        file.write(last)
    tracemalloc.start()
    kept = read_certificates(tmp_path)
    x = kept.delta[[0, n - 1]]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept.ids.tolist() == list(range(n))
    assert x.shape == (2, *shape)
    assert (x[0] == 0).all()
    assert (x[1] == 0.5).all()
    assert peak < 10e6


def test_a_record_prints_in_one_line(run):
    record = run.record()
    shown = repr(record)
    assert shown.startswith(
        f"Record({record.job.defense.name}, {record.job.suite.name}, {record.job.threat}, n="
    )
    assert f"robust {100 * record.robust_accuracy.value:.2f} % [" in shown and "\n" not in shown
