"""A record that holds passes; each kind of tampering is refused, naming the field."""

import dataclasses
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import robench
from robench import catalog as content
from robench.core.errors import CheckFailed, ResourceError
from robench.data import load_dataset
from robench.data._base import Images
from robench.defenses import load
from robench.engine.tolerances import same_margins
from robench.records import certificates
from robench.records.certificates import is_attacked
from robench.records.samples import read_samples
from robench.statistics.accuracy import Accuracy
from robench.threats.threat import Threat
from robench.verification.verify import findings, verify
from tests.fabricate import SPECS, linear

pytestmark = pytest.mark.usefixtures("short_autoattack")


def edit_json(run, edit):
    path = run.folder / "record.json"
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(json.dumps(content), "utf-8")


def seal(run):
    """What a careful forger would do: digests of the files that fit again."""

    def edit(content):
        for name in content["files"]:
            content["files"][name] = hashlib.sha256((run.folder / name).read_bytes()).hexdigest()

    edit_json(run, edit)


def edit_samples(run, column, row, value):
    path = run.folder / "samples.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value(values[row])
    field = table.schema.field(column)
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, field, pa.array(values, field.type)), path)
    seal(run)


def edit_certificates(run, edit):
    path = run.folder / "adversarials.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    seal(run)


def failing(run, **options):
    return {item.field for item in findings(run.folder, run.judge, run.images, **options) if not item.held}


def first(run, name):
    return run.outcome.fooled_by.index(name)


class Small(torch.nn.Module):
    """A device with memory for four images."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(x)


def test_a_record_is_verified_with_less_memory_than_it_was_made_with(run):
    run.write()
    checked = findings(run.folder, Small(run.judge), run.images)
    assert checked and all(item.held for item in checked)


def test_an_honest_record_holds_and_says_what_it_proves(run):
    found = run.write()
    checked = verify(run.folder, run.loaded, run.images)
    assert all(item.held for item in checked)
    most = f"at most {100 * found.robust_accuracy.value:.2f} %"
    assert checked[-1].field == "robust_accuracy"
    assert most in checked[-1].detail


@pytest.mark.parametrize("changes", [{"n": 1}, {"seed": 3}, {"knowledge": "oblivious"}])
def test_other_honest_records_hold_too(runs, changes):
    run = runs(**changes)
    run.write()
    verify(run.folder, run.loaded, run.images)


JSON_EDITS = {
    "robust_accuracy.value": lambda c: c["robust_accuracy"].update(value=0.9),
    "robust_accuracy.correct": lambda c: c["robust_accuracy"].update(correct=20),
    "clean_accuracy.interval": lambda c: c["clean_accuracy"].update(interval=[0.1, 0.99]),
    "dataset.digest": lambda c: c["dataset"].update(digest="0" * 64),
    "defense.checkpoint_sha256": lambda c: c["defense"].update(checkpoint_sha256="0" * 64),
    "defense.card_digest": lambda c: c["defense"].update(card_digest="0" * 64),
    "suite.attacks": lambda c: c["suite"].update(attacks=["square"]),
    "passes.forward": lambda c: c["passes"].update(forward=1),
    "attacks.square.survivors": lambda c: c["attacks"][1].update(survivors=0),
    "attacks.square.attacked": lambda c: c["attacks"][1].update(attacked=30, survivors=30),
    "key": lambda c: c.update(seed=7),
    "files.samples.parquet": lambda c: c["files"].update({"samples.parquet": "0" * 64}),
}


@pytest.mark.parametrize("field", JSON_EDITS)
def test_a_tampered_figure_is_named(run, field):
    run.write()
    edit_json(run, JSON_EDITS[field])
    with pytest.raises(CheckFailed) as caught:
        verify(run.folder, run.loaded, run.images)
    assert f"{field}: the record says" in str(caught.value)


def test_a_randomised_record_cannot_pass_for_a_plain_one(run):
    run.write()
    run.judge.stochastic = True
    with pytest.raises(CheckFailed, match="stochastic: the defense draws noise"):
        verify(run.folder, run.loaded, run.images)


def test_a_suite_under_a_name_that_stands_for_more_is_named(run, monkeypatch):
    run.write()
    monkeypatch.setitem(content.suites(), "autoattack", content.Suite("autoattack", [*SPECS, "fab"]))
    assert "suite.name" in failing(run)


SAMPLE_EDITS = {
    "label": lambda v: (v + 1) % 3,
    "id": lambda v: v + 1,
    "clean_prediction": lambda v: (v + 1) % 3,
    "prediction": lambda v: (v + 1) % 3,
    "distance": lambda v: v + 0.01,
    "clean_margin": lambda v: v * 2 + 1,
    "clean_draws": lambda v: 1 - v,
    "draws": lambda v: 1 - v,
    "digest": lambda v: "0" * 64,
}
# Columns with a relative tolerance, which would be infinite for an infinite value.
INFINITE = ("distance", "clean_margin")
# The rest of a row: only its sum is known, or it is on trust.
SUMMED = {"forward": lambda v: v + 1, "backward": lambda v: v + 1}


@pytest.mark.parametrize("column", SAMPLE_EDITS)
@pytest.mark.parametrize("row", [0, 5, -1])
def test_a_tampered_row_is_named_though_its_digest_was_mended(run, column, row):
    run.write()
    edit_samples(run, column, row, SAMPLE_EDITS[column])
    assert f"samples.{column}" in failing(run)


@pytest.mark.parametrize("column", INFINITE)
def test_an_infinite_value_is_not_within_the_tolerance(run, column):
    run.write()
    edit_samples(run, column, 5, lambda _: float("inf"))
    assert f"samples.{column}" in failing(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0])
def test_a_network_may_really_give_an_infinite_margin(value):
    margins = torch.tensor([value, 1.0])
    assert same_margins(margins, margins).all() and not same_margins(margins, margins.flip(0)).any()


@pytest.mark.parametrize("column", SUMMED)
def test_the_cost_of_a_row_is_held_by_the_sum(run, column):
    run.write()
    edit_samples(run, column, 3, SUMMED[column])
    assert f"passes.{column}" in failing(run)


def test_a_sample_claimed_fooled_without_a_certificate_is_named(run):
    run.write()
    edit_samples(run, "fooled_by", first(run, ""), lambda _: "square")
    assert {"adversarials.id", "robust_accuracy.correct", "attacks.square.survivors"} <= failing(run)


def test_a_truncated_table_is_named(run):
    run.write()
    path = run.folder / "samples.parquet"
    pq.write_table(pq.read_table(path).slice(0, 29), path)
    seal(run)
    assert "n" in failing(run)


def test_a_perturbation_that_leaves_the_ball_is_named(run):
    run.write()
    edit_certificates(run, lambda t: t["delta"][0].mul_(4))
    assert "adversarials.delta" in failing(run)


def test_a_perturbation_that_fools_nobody_is_named(run):
    run.write()
    edit_certificates(run, lambda t: t["delta"][0].zero_())
    assert {"adversarials.delta", "samples.prediction"} <= failing(run)


def test_a_nan_perturbation_is_named(run):
    run.write()
    edit_certificates(run, lambda t: t["delta"][0].fill_(torch.nan))
    assert {"adversarials.delta", "samples.distance"} <= failing(run)


def test_certificates_of_other_samples_are_named(run):
    run.write()
    edit_certificates(run, lambda t: t["id"].add_(1))
    assert failing(run) == {"adversarials.id"}


def test_another_checkpoint_does_not_pass_for_this_one(run):
    run.write()
    other = dataclasses.replace(run, judge=linear(99))
    assert {"samples.clean_prediction", "samples.prediction", "adversarials.delta"} <= failing(other)


def test_a_judge_that_answers_nan_proves_nothing(run):
    run.write()
    silent = dataclasses.replace(run, judge=lambda x: torch.full((len(x), 3), torch.nan))
    assert "adversarials.delta" in failing(silent)


class Unsure(torch.nn.Module):
    """A network that answers NaN where its two best logits are close."""

    def __init__(self):
        super().__init__()
        self.sound = load("pgd-at-digits").defense

    def forward(self, x):
        logits = self.sound(x)
        unsure = logits.topk(2, 1).values.diff().abs() < 1.5
        return torch.where(unsure, torch.nan, logits)


def unsure(image_size: int):
    return Unsure().eval()


def test_answers_of_nan_are_wrong_in_a_record_too(tmp_path):
    spec = "python:tests.verification.test_verify.unsure(image_size=16)"
    found = robench.run(
        spec, "pgd(steps=4)", dataset="digits", samples=100, threat="Linf:0.1", results=tmp_path
    )
    rows = read_samples(found.folder).to_pydict()
    pairs = zip(rows["prediction"], rows["fooled_by"], strict=True)
    by_nan = sum(prediction == -1 and is_attacked(by) for prediction, by in pairs)
    assert by_nan > 2 and -1 in rows["clean_prediction"]
    checked = list(verify(found.folder, load(spec), load_dataset("digits", "test", 100)))
    assert [item for item in checked if not item.held] == []
    assert any(f"{by_nan} of them by NaN" in item.detail for item in checked)


def test_other_images_are_refused(run):
    run.write()
    i = run.images
    other = Images(i.name, i.split, i.x.flip(0), i.y, i.ids, i.classes)
    assert {"dataset.digest", "samples.digest"} <= failing(dataclasses.replace(run, images=other))
    assert "n" in failing(dataclasses.replace(run, images=i.first(10)))


def test_the_judge_is_called_on_one_fixed_shape(run):
    run.write()
    shapes = set()

    def judge(x):
        shapes.add(tuple(x.shape))
        return run.judge(x)

    assert all(item.held for item in findings(run.folder, judge, run.images))
    assert shapes == {(run.job.batch_size, 3, 4, 4)}


def test_an_answer_within_rounding_of_the_boundary_is_a_tie_and_not_counted(run):
    """Another device may round a verdict away: the record holds, and the bound says one less."""
    run.write()
    target = first(run, "square")
    x_adv, label = run.outcome.x_adv[target], int(run.images.y[target])

    def judge(x):
        logits = run.judge(x).clone()
        for i in (x == x_adv).flatten(1).all(1).nonzero().flatten().tolist():
            logits[i, label] = logits[i].max() + 1e-5
        return logits

    *others, last = findings(run.folder, judge, run.images)
    assert all(item.held for item in others)
    robust = Accuracy.of(run.outcome.fooled_by.count("") + 1, 30)
    assert f"at most {100 * robust.value:.2f} %" in last.detail
    assert "1 more lie on the boundary" in last.detail


def test_a_missing_file_is_a_missing_resource(run):
    run.write()
    (run.folder / "adversarials.safetensors").unlink()
    with pytest.raises(ResourceError, match="adversarials"):
        verify(run.folder, run.loaded, run.images)


@pytest.mark.parametrize(("threat", "bytes_a_pixel"), [("Linf:0.1", 0.6), ("L2:1.5", 1.8)])
def test_certificates_take_less_than_one_or_two_bytes_a_pixel_and_still_hold(tmp_path, threat, bytes_a_pixel):
    found = robench.run("standard-digits", "apgd(steps=20)", samples=60, threat=threat, results=tmp_path)
    fooled = sum(map(is_attacked, read_samples(found.folder)["fooled_by"].to_pylist()))
    size = (found.folder / "adversarials.safetensors").stat().st_size
    assert fooled > 50 and size < fooled * 768 * bytes_a_pixel + 2000
    data = load_dataset("digits", "test", 60)
    verify(found.folder, load("standard-digits"), data)


def test_grains_are_the_image_to_the_last_bit():
    torch.manual_seed(0)
    for text in ("Linf:8/255", "Linf:0.13", "L2:0.5", "L1:12"):
        threat = Threat.parse(text)
        x = torch.rand(50, 3, 8, 8).round(decimals=2)
        x_adv = threat.rounded(x, (x + threat.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1))
        step, _ = threat.grain
        grains = certificates._grains(x, x_adv, threat)
        assert torch.equal(threat.moved(x, grains * step), x_adv)
        assert (x_adv - x).abs().max() <= threat.eps + 1e-6
