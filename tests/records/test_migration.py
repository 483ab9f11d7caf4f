"""Old records are read and verified as what they are, and migrated by forward passes alone."""

import dataclasses
import hashlib
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save

import robench
from robench.cli.main import main
from robench.cli.results import command
from robench.core import registry
from robench.core.errors import CheckFailed
from robench.data import load_dataset
from robench.defenses import load
from robench.engine.judges import Judges
from robench.records import randomized, samples
from robench.records.certificates import FILE as CERTIFICATES
from robench.records.collection import collect
from robench.records.migration import migrate, overdue
from robench.records.record import read_record
from robench.records.samples import read_samples
from robench.records.store import SUPERSEDED
from robench.reports.board import board
from robench.threats.threat import Threat
from robench.verification.verify import findings, verify
from tests.engine.test_randomised import Noise
from tests.fabricate import uncompressed

NAME = "noise(sigma=0.2)+pgd-at-digits"


@pytest.fixture(scope="module", autouse=True)
def noisy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.purifiers._builders, "noise", Noise)
        patch.setitem(registry.purifiers._holders, "noise", "tests.Noise")
        yield


def folder_of(record):
    assert record.folder is not None
    return record.folder


def rewrite(record, contents, **changes):
    """A record with other files, and digests that fit."""
    for name, content in contents.items():
        (folder_of(record) / name).write_bytes(content)
    files = {
        **record.files,
        **{name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    made = dataclasses.replace(record, files=files, **changes)
    (folder_of(record) / "record.json").write_bytes(made.encode())
    return read_record(folder_of(record))


def as_of_old(record):
    """The record as it was written before there were fresh draws."""
    table = read_samples(folder_of(record)).drop_columns(["clean_answers", "answers"])
    path = folder_of(record) / samples.FILE
    pq.write_table(table, path)
    found = dict(record.extra[randomized.FIELD])
    del found["fresh"]
    for side in ("clean", "robust"):
        found[side] = {name: value for name, value in found[side].items() if name != "single_draw"}
    return rewrite(record, {samples.FILE: path.read_bytes()}, extra={randomized.FIELD: found})


@pytest.fixture(scope="module")
def chosen(noisy, tmp_path_factory):
    """A record whose figures are of the draws that its adversarial examples were chosen on."""
    of, place = Judges.of, tmp_path_factory.mktemp("chosen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judges, "of", lambda *given: of(*given[:4], fresh=False))
        return robench.run(
            NAME, "pgd(steps=5, eot=2)", samples=24, threat="Linf:0.1", results=place, batch_size=12
        )


@pytest.fixture
def old(chosen, tmp_path):
    place = tmp_path / folder_of(chosen).parent.name / folder_of(chosen).name
    return as_of_old(read_record(shutil.copytree(folder_of(chosen), place)))


@pytest.fixture
def data():
    return load_dataset("digits", "test", 24)


@pytest.mark.slow
def test_an_old_record_is_verified_as_what_it_is_and_marked(old, data):
    found = verify(folder_of(old), load(NAME), data)
    assert "chosen on" in found[-1].detail and "robench results migrate" in found[-1].detail
    assert randomized.chosen_on(old) and randomized.over_draws(old, "robust", "single_draw") is None
    text = board(collect([folder_of(old)]), width=200)
    assert "chosen-draws" in text and "fresh draws" not in text.split("chosen-draws")[0]


def test_it_is_migrated_to_what_a_run_of_today_says(old, data, tmp_path):
    made = migrate(folder_of(old), load(NAME), data)
    assert not randomized.chosen_on(made) and overdue(made, data) == []
    found = verify(folder_of(old), load(NAME), data)
    assert "fresh draws" in found[-1].detail
    again = robench.run(
        NAME, "pgd(steps=5, eot=2)", samples=24, threat="Linf:0.1", results=tmp_path / "new", batch_size=12
    )
    # The rows that the network was called on belong to the search, which is not repeated.
    without_rows = {name: value for name, value in again.extra.items() if name != "rows"}
    assert without_rows == made.extra and again.robust_accuracy == made.robust_accuracy
    assert again.files == made.files
    (kept,) = (folder_of(old) / SUPERSEDED).iterdir()
    assert read_record(kept).extra == old.extra
    assert migrate(folder_of(old), load(NAME), data).files == made.files


def test_other_weights_or_images_migrate_nothing(old):
    with pytest.raises(CheckFailed, match="other weights"):
        migrate(folder_of(old), load("noise(sigma=0.2)+mimir-digits"), load_dataset("digits", "test", 24))
    with pytest.raises(CheckFailed, match="other images"):
        migrate(folder_of(old), load(NAME), load_dataset("digits", "test", 23))
    assert read_record(folder_of(old)).files == old.files


@pytest.mark.parametrize("field", ["answers", "clean_answers"])
def test_forged_answers_are_refused(old, data, field):
    made = migrate(folder_of(old), load(NAME), data)
    table = read_samples(folder_of(made))
    rows = table[field].to_pylist()
    rows[0] = [(answer + 1) % 10 for answer in rows[0]]
    column = samples.DRAWN[[each.name for each in samples.DRAWN].index(field)]
    table = table.set_column(table.schema.get_field_index(field), column, pa.array(rows, column.type))
    pq.write_table(table, folder_of(made) / samples.FILE)
    rewrite(made, {samples.FILE: (folder_of(made) / samples.FILE).read_bytes()})
    found = list(findings(folder_of(made), load(NAME).defense, data))
    assert any(item.field == f"samples.{field}" and not item.held for item in found)


def far_out(record, data, by):
    """The record with each certificate scaled, in float32, so that the farthest exceed the radius by `by` of it."""
    path = folder_of(record) / CERTIFICATES
    tensors = uncompressed(path)
    threat = Threat.parse(record.job.threat)
    delta, ids = tensors["delta"], tensors["id"]
    if "grains" in tensors:
        delta = tensors["grains"] * float(tensors["grain"])
        ids = tensors["grains_id"]
    x = data.x[[data.ids.tolist().index(i) for i in ids.tolist()]]
    factor = threat.eps * (1 + by) / threat.distance(x, x + delta)
    points = threat.moved(x, threat.moved(x, delta * factor.view(-1, 1, 1, 1).float()) - x)
    content = save({"delta": points - x, "id": ids})
    table = read_samples(folder_of(record))
    far = dict(zip(ids.tolist(), threat.distance(x, points).tolist(), strict=True))
    distance = [far.get(i, 0.0) for i in table["id"].to_pylist()]
    table = table.set_column(
        table.schema.get_field_index("distance"), samples.SCHEMA.field("distance"), [distance]
    )
    pq.write_table(table, folder_of(record) / samples.FILE)
    contents = {CERTIFICATES: content, samples.FILE: (folder_of(record) / samples.FILE).read_bytes()}
    return rewrite(record, contents)


@pytest.mark.parametrize(("threat", "attack"), [("L2:1", "pgd(steps=5)"), ("L1:8", "apgd-l1(steps=5)")])
def test_certificates_outside_the_ball_are_drawn_in(threat, attack, tmp_path, data):
    made = robench.run("pgd-at-digits", attack, samples=24, threat=threat, results=tmp_path, batch_size=24)
    old = far_out(made, data, 6e-6)
    loaded = load("pgd-at-digits")
    broken = [item for item in findings(folder_of(old), loaded.defense, data) if not item.held]
    assert {item.field for item in broken} == {"adversarials.delta"}
    assert "stored adversarial examples exceed the radius" in overdue(old, data)[0]
    after = migrate(folder_of(old), loaded, data)
    assert after.robust_accuracy == made.robust_accuracy and overdue(after, data) == []
    verify(folder_of(old), loaded, data)


def test_the_command_says_what_it_does_and_does_it_once(old):
    runner = CliRunner()
    due = runner.invoke(command, ["migrate", str(folder_of(old)), "--dry-run"])
    assert due.exit_code == 0 and "1 of 1 records due" in due.output
    assert randomized.chosen_on(read_record(folder_of(old)))
    done = runner.invoke(command, ["migrate", str(folder_of(old))])
    assert done.exit_code == 0 and "1 of 1 records migrated" in done.output and "robust %" in done.output
    again = runner.invoke(command, ["migrate", str(folder_of(old))])
    assert again.exit_code == 0 and again.output == "0 of 1 records migrated\n"


def test_a_record_that_cannot_be_migrated_is_named_and_left(old, capsys):
    (folder_of(old) / CERTIFICATES).write_bytes(b"damaged")
    with pytest.raises(SystemExit) as end:
        main(["results", "migrate", str(folder_of(old))])
    said = capsys.readouterr()
    assert end.value.code == 3 and "left as it is" in said.out and "damaged" in said.out
    assert torch.is_tensor(load_dataset("digits", "test", 1).x)
