"""What a forger gains by claiming a stronger evaluation than was run."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from robench import catalog as content
from robench.attacks.build import build_attacks
from robench.core.errors import ResourceError
from robench.defenses import Defense
from robench.records import certificates
from robench.records.certificates import is_attacked
from robench.records.record import read_record
from robench.records.samples import read_samples
from robench.threats.threat import Threat
from robench.verification.costs import cost
from robench.verification.regression import check
from robench.verification.replay import Sample, attacks_of
from robench.verification.verify import report
from tests.engine.runs import run_of
from tests.engine.test_groups import Staged
from tests.fabricate import uncompressed
from tests.models import images
from tests.verification import forge


@pytest.fixture
def plain(made, tmp_path):
    one = made("plain")
    return one, forge.copied(one.record, tmp_path / "forged")


def broken(one, folder, sample=None):
    return {each.field for each in report(folder, one.loaded, one.images, sample=sample).broken}


def respecified(folder, specs, name=None):
    found = forge.read(folder)
    found["suite"]["attacks"] = specs
    found["suite"]["name"] = name or "+".join(specs)
    empty = {"attacked": 0, "survivors": 0, "forward": 0, "backward": 0, "seconds": 1.0}
    costs = found["attacks"] + [dict(empty) for _ in specs]
    found["attacks"] = [{**each, "spec": spec} for each, spec in zip(costs, specs, strict=False)]
    left = found["clean_accuracy"]["correct"]
    rows = read_samples(folder)["fooled_by"].to_pylist()
    for each in found["attacks"]:
        each["attacked"] = left
        left -= rows.count(each["spec"])
        each["survivors"] = left
    forge.write(folder, found)


@pytest.mark.parametrize("steps", [2, 4, 100])
def test_an_attack_of_more_steps_than_were_run_costs_more(plain, steps):
    one, folder = plain
    rows = read_samples(folder)["fooled_by"].to_pylist()
    other = f"pgd(steps={steps})"
    forge.set_rows(folder, {"fooled_by": {i: other for i, by in enumerate(rows) if by == "pgd(steps=3)"}})
    respecified(folder, [other, "square(queries=8)"])
    assert "samples.forward" in broken(one, folder)


def test_a_weak_run_is_not_autoattack(plain):
    one, folder = plain
    specs = [
        spec for spec, _ in build_attacks(content.suites()["autoattack"].attacks, Threat.parse("Linf:0.1"))
    ]
    rows = read_samples(folder)["fooled_by"].to_pylist()
    forge.set_rows(folder, {"fooled_by": {i: specs[0] for i, by in enumerate(rows) if is_attacked(by)}})
    respecified(folder, specs, "autoattack")
    assert "samples.forward" in broken(one, folder)


def test_a_record_in_which_no_attack_ran(plain):
    one, folder = plain
    fooled_by = read_samples(folder)["fooled_by"].to_pylist()
    attacked = [i for i, by in enumerate(fooled_by) if is_attacked(by)]
    none = dict.fromkeys(range(len(fooled_by)), 0)
    clean = read_samples(folder)["clean_prediction"].to_pylist()
    changes = {"steps": none, "forward": none, "backward": none, "distance": dict.fromkeys(none, 0.0)}
    changes["fooled_by"] = dict.fromkeys(attacked, "")
    changes["draws"] = {i: int(by == "clean") for i, by in enumerate(fooled_by)}
    changes["prediction"] = dict(enumerate(clean))
    no_certificates(folder)
    forge.set_rows(folder, changes)
    found = forge.read(folder)
    for each in found["attacks"]:
        each["forward"] = each["backward"] = 0
    forge.write(folder, found)
    assert {"samples.forward", "samples.backward"} == broken(one, folder)


def no_certificates(folder):
    tensors = {
        name: tensor[:0] if tensor.dim() else tensor
        for name, tensor in load_file(folder / certificates.FILE).items()
    }
    save_file(tensors, folder / certificates.FILE)


def dropped(folder, row, passes):
    """The row is called robust, and its certificate goes."""
    rows = read_samples(folder).to_pydict()
    tensors = uncompressed(folder / certificates.FILE)
    for kept, ids in (("delta", "id"), ("grains", "grains_id")):
        if ids in tensors:
            others = tensors[ids] != rows["id"][row]
            tensors[kept], tensors[ids] = tensors[kept][others], tensors[ids][others]
    save_file(tensors, folder / certificates.FILE)
    change = {
        "fooled_by": "",
        "draws": 0,
        "distance": 0.0,
        "steps": 0,
        "prediction": rows["clean_prediction"][row],
    }
    change |= dict(zip(("forward", "backward"), passes, strict=True))
    forge.set_rows(folder, {name: {row: value} for name, value in change.items()})


def test_a_dropped_certificate_needs_the_passes_of_a_robust_row_and_does_not_survive_a_replay(plain):
    one, folder = plain
    rows = read_samples(folder).to_pydict()
    row = rows["fooled_by"].index("pgd(steps=3)")
    dropped(folder, row, (rows["forward"][row], rows["backward"][row]))
    assert "samples.forward" in broken(one, folder)
    dropped(folder, row, (4 + 9, 4))
    content = forge.read(folder)
    left = content["attacks"]
    # The last attack's passes are the rest: the first one's must grow by the row's.
    left[0]["forward"] += 4 - rows["forward"][row]
    left[0]["backward"] += 4 - rows["backward"][row]
    for direction in ("forward", "backward"):
        left[1][direction] = content["passes"][direction] - left[0][direction]
    forge.write(folder, content)
    found = report(folder, one.loaded, one.images)
    assert found.broken == [] and "samples.fooled_by" in found.trusted
    assert "samples.replayed" in broken(one, folder, Sample(16, 0))


@pytest.mark.parametrize(
    "moved",
    [
        lambda forward, _: {0: forward[0] + 1, 1: forward[1] - 1},
        lambda forward, _: {i: 2 * value for i, value in enumerate(forward)},
        lambda forward, by: {by.index(""): 0, by.index("pgd(steps=3)"): forward[by.index("")]},
    ],
)
def test_passes_cannot_be_moved_or_multiplied(plain, moved):
    one, folder = plain
    rows = read_samples(folder).to_pydict()
    forge.set_rows(folder, {"forward": moved(rows["forward"], rows["fooled_by"])})
    assert broken(one, folder) & {"samples.forward", "samples.steps"}


def test_passes_cannot_be_moved_between_attacks(plain):
    one, folder = plain
    found = forge.read(folder)
    found["attacks"][0]["forward"] -= 1
    found["attacks"][1]["forward"] += 1
    forge.write(folder, found)
    assert {each.partition(".")[0] for each in broken(one, folder)} == {"attacks"}


def test_a_larger_threat_is_seen_in_the_grain_of_the_certificates(plain):
    one, folder = plain
    forge.write(folder, forge.read(folder) | {"threat": "Linf:0.2"})
    assert "adversarials.grain" in broken(one, folder)
    forge.write(folder, forge.read(folder) | {"threat": "Linf:0.05"})
    assert "adversarials.delta" in broken(one, folder)


@pytest.mark.parametrize("name", ["samples.parquet", "adversarials.safetensors"])
def test_the_list_of_files_is_exactly_theirs(plain, name):
    one, folder = plain
    found = forge.read(folder)
    del found["files"][name]
    try:
        forge.write(folder, found)
    except Exception:
        return  # the schema asks for it
    assert "files" in broken(one, folder)
    forge.write(
        folder,
        forge.read(plain[0].record.folder) | {"files": {**found["files"], name: "0" * 64, "x": "0" * 64}},
        ("key",),
    )
    assert "files" in broken(one, folder)


def test_a_column_or_field_of_another_kind_of_record_is_refused(plain, made):
    one, folder = plain
    other = forge.read(made("corrupted").record.folder)
    forge.write(folder, forge.read(folder) | {"corrupted_accuracy": other["corrupted_accuracy"]})
    assert any(each.startswith("corrupted_accuracy") for each in broken(one, folder))


def test_warnings_that_the_record_itself_raises_cannot_be_emptied(made, tmp_path):
    one = made("randomized")
    folder = forge.copied(one.record, tmp_path / "forged")
    rows = read_samples(folder)["fooled_by"].to_pylist()
    found, plainer = forge.read(folder), "pgd(steps=3)"
    found["suite"] = {"name": plainer, "attacks": [plainer]}
    found["attacks"][0]["spec"] = plainer
    forge.write(folder, found)
    forge.set_rows(folder, {"fooled_by": {i: plainer for i, by in enumerate(rows) if is_attacked(by)}})
    # Without EOT, a randomized defense is marked.
    assert "health" in broken(one, folder)


@pytest.mark.parametrize("name", ["clean_answers", "answers"])
@pytest.mark.parametrize("answer", [-1, 10, 2**31 - 1])
def test_the_answer_to_one_draw_may_differ_but_is_a_class(made, tmp_path, name, answer):
    one = made("randomized")
    folder = forge.copied(one.record, tmp_path / "forged")
    rows = read_samples(folder).to_pydict()
    # A wrong answer in a row whose vote and count it does not change.
    row, label, answers = next(
        (i, label, list(answers))
        for i, (label, answers) in enumerate(zip(rows["label"], rows[name], strict=True))
        if label not in answers[:1] and max(map(answers.count, answers)) > 7
    )
    other_class = next(k for k in range(10) if k not in (label, answers[0]))
    for changed, found in ((other_class, set()), (answer, {f"samples.{name}"})):
        forge.set_rows(folder, {name: {row: [changed, *answers[1:]]}})
        assert broken(one, folder) == found


def doubled(folder):
    table = pq.read_table(folder / forge.SAMPLES)
    pq.write_table(pa.concat_tables([table, table]), folder / forge.SAMPLES)
    forge.write(folder, forge.read(folder))


def of_one_image(folder):
    forge.write(folder, forge.read(folder) | {"n": 1})


def with_draws(name, value):
    def change(folder):
        table = pq.read_table(folder / forge.SAMPLES)
        place, field = table.schema.get_field_index(name), table.schema.field(name)
        values = pa.array([value] * len(table), field.type)
        pq.write_table(table.set_column(place, field, values), folder / forge.SAMPLES)
        forge.write(folder, forge.read(folder))

    return change


def without_answers(folder):
    table = pq.read_table(folder / forge.SAMPLES).drop_columns(["clean_answers", "answers"])
    pq.write_table(table, folder / forge.SAMPLES)
    forge.write(folder, forge.read(folder))


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("plain", doubled, "has 32 rows, but the record has n = 16"),
        ("plain", of_one_image, "has 16 rows, but the record has n = 1"),
        ("randomized", with_draws("clean_draws", 10**9), "has clean_draws outside 0 to 10"),
        ("randomized", with_draws("draws", -5), "has draws outside 0 to 10"),
        ("randomized", without_answers, "disagree about whether there are fresh draws"),
    ],
)
def test_rows_that_nothing_can_be_counted_from_are_one_finding(made, tmp_path, kind, change, reason):
    one = made(kind)
    folder = forge.copied(one.record, tmp_path / "forged")
    change(folder)
    *_, last = report(folder, one.loaded, one.images).broken
    assert last.field == "samples" and reason in last.detail
    # The images of a record with another n are others.
    with pytest.raises(ResourceError, match=f"{reason}|images of .* differ"):
        check(folder)


SPECS = {
    "Linf:0.012": (
        "fgsm", "mifgsm", "pgd(steps=4, restarts=2)", "pgd(steps=3, last=True)", "pgd(steps=2, eot=2)",
        'apgd(loss="dlr", steps=5, targets=2)', "apgd-mi(steps=3)", "apgd-feature(steps=3)", "pgd-mi(steps=3)",
        "pgd-feature(steps=3)", "cw(steps=3)", "fab(steps=5)", "fab(steps=5, targets=2)",
        "fmn(steps=4)", "hopskipjump(queries=150)", "nes(steps=1, samples=9)", "spsa(steps=1, samples=9)",
        "square(queries=30)",
    ),
    "L2:0.25": ("ddn(steps=5)", "fab(steps=5, minimise=True)", "square(queries=30, restarts=2)"),
    "L1:1.2": ("apgd-l1(steps=6)", "fab(steps=5)"),
    "L0:2": ("sigma-zero(steps=5)", "sparse-rs(queries=30)"),
    "patch:2": ("patch-rs(queries=30)",),
    "fog:0.2": ("pgd(steps=3)", "apgd(steps=5)"),
}  # fmt: skip


@pytest.mark.parametrize(("threat", "spec"), [(t, spec) for t, specs in SPECS.items() for spec in specs])
def test_a_row_costs_what_its_attack_is_said_to_cost(threat, spec):
    """The claim that verify rests on, for each attack there is."""
    chosen = Threat.parse(threat)
    x = images(12)[4:]
    defense = Defense(Staged(), num_classes=10, image_size=8).eval()
    y = defense(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    (built,) = build_attacks([spec], chosen)
    most = cost(built[1], built[0], chosen, 10)
    found = run_of(
        defense, [built], x, y, torch.arange(8), chosen, 0,  batch_size=8,
    ).outcome()  # fmt: skip
    assert most.forward[1] < float("inf")
    for i, by in enumerate(found.fooled_by):
        forward, backward, steps = (int(each[i]) for each in (found.forward, found.backward, found.steps))
        if by == "":
            assert most.forward[0] <= forward <= most.forward[1]
            assert most.backward[0] <= backward <= most.backward[1]
        elif by != "clean":
            own = most.won(steps, (forward, forward))
            assert own[0][0] <= forward <= own[0][1] and own[1][0] <= backward <= own[1][1]


@pytest.mark.parametrize(
    "spec", ["apgd(restarts=100000000)", "fab(targets=9, restarts=1000000)", "pgd(eot=100000000)"]
)
def test_an_attack_too_large_to_count_costs_at_least_a_pass_a_rank(spec):
    threat = Threat.parse("Linf:0.1")
    ((name, attack),) = build_attacks([spec], threat)
    assert cost(attack, name, threat, 10).forward == (attack.ranks(10), math.inf)


def test_an_attack_of_impossibly_many_rows_is_not_attacked_again(plain):
    one, folder = plain
    respecified(folder, ["apgd(restarts=100000000)"])
    reason = "1,600,000,000 rows for 16 images: expected at most 10,000,000"
    with pytest.raises(ResourceError, match=reason):
        report(folder, one.loaded, one.images, sample=Sample(1, 0))
    job = read_record(folder).job
    with pytest.raises(ResourceError, match=reason):
        attacks_of(job, 16, 10)


def test_every_attack_is_among_those():
    from robench.core import registry, specs

    tried = {specs.parse(spec).name for each in SPECS.values() for spec in each}
    ours = {name for name in registry.attacks if registry.attacks.holder(name).startswith("robench.")}
    # Of another library, and over the few parameters of a transformation.
    assert ours - tried == {"reference", "grid", "submitted"}
