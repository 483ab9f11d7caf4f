"""The security curve: what is read, that it never rises, that its records stand alone, mistakes."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robench.cli.main import main
from robench.core.errors import UsageError
from robench.evaluation.security_curve import Radii
from robench.records.collection import collect
from robench.records.record import Accuracy, read_record, stable
from robench.records.samples import read_samples
from robench.reports.plots import PLOTS


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("0:16/255:9", ("0", "2/255", "4/255", "6/255", "8/255", "10/255", "12/255", "14/255", "16/255")),
        ("0:4/255:3", ("0", "2/255", "4/255")),
        ("0:1/255:3", ("0", "0.5/255", "1/255")),
        ("0.05:0.1:2", ("0.05", "0.1")),
        ("0:0.1:4", ("0", "1/30", "1/15", "0.1")),
        (" 2/255 : 1/10 : 2 ", ("2/255", "1/10")),
    ],
)
def test_radii_are_read(text, texts):
    assert Radii.parse(text).texts == texts


@pytest.mark.parametrize(
    "text",
    [
        "16/255:0:9",
        "-1/255:8/255:9",
        "0:8/255",
        "0:8/255:1",
        "0:8/255:101",
        "0:8/0:3",
        "1:1:2",
        "a:b:c",
        "0:1:2.5",
        "0:nan:3",
        "0:inf:3",
        "",
        "0:1e999999999:3",
    ],
)
def test_others_are_refused(text):
    with pytest.raises(UsageError, match="expected START:STOP:COUNT"):
        Radii.parse(text)


@given(st.text(max_size=25))
def test_any_text_is_read_or_refused(text):
    try:
        Radii.parse(text)
    except UsageError as error:
        assert "expected START:STOP:COUNT" in str(error)


@given(st.fractions(0, 2, max_denominator=300), st.fractions(0, 2, max_denominator=300), st.integers(2, 30))
def test_radii_are_exact_and_rise(one, other, count):
    if one == other:
        return
    low, high = sorted((one, other))
    radii = Radii.parse(f"{low}:{high}:{count}")
    assert radii.values == tuple(low + (high - low) * Fraction(i, count - 1) for i in range(count))
    assert [Fraction(t.partition("/")[0]) / Fraction(t.partition("/")[2] or 1) for t in radii.texts] == list(
        radii.values
    )


def run(folder, *options, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--samples", "24", "--results", str(folder), *options])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said


CURVE = ["--defense", "pgd-at", "--attack", "pgd(steps=4)", "--curve", "0:0.2:5"]


def test_each_radius_leaves_the_record_of_a_run_of_its_own(tmp_path, capsys):
    found = json.loads(run(tmp_path / "a", *CURVE, "--json", capsys=capsys).out)
    assert [record["threat"] for record in found["records"]] == [
        f"Linf:{e}" for e in ("0.05", "0.1", "0.15", "0.2")
    ]
    (curve,) = found["curves"]
    points = curve["points"]
    assert [point["radius"] for point in points] == ["0", "0.05", "0.1", "0.15", "0.2"]
    assert points[0]["accuracy"] == found["records"][0]["clean_accuracy"]
    correct = [point["accuracy"]["correct"] for point in points]
    assert correct == sorted(correct, reverse=True) and correct[0] > correct[-1]
    for point, record in zip(points[1:], found["records"], strict=True):
        assert point["accuracy"]["correct"] == record["robust_accuracy"]["correct"] - point["carried"]
        assert point["accuracy"] == json.loads(
            json.dumps(vars(Accuracy.of(point["accuracy"]["correct"], 24)))
        )
    alone = ["--defense", "pgd-at", "--attack", "pgd(steps=4)", "--threat", "Linf:0.15", "--json"]
    (other,) = json.loads(run(tmp_path / "b", *alone, capsys=capsys).out)["records"]
    assert stable(other) == stable(found["records"][2])
    assert Path(found["picture"]).read_bytes()[:4] == b"\x89PNG"
    # Repeated, it answers from its records, and verify holds each of them.
    again = run(tmp_path / "a", *CURVE, capsys=capsys)
    assert again.err.count("using the saved record in") == 4
    lines = [line.split() for line in again.out.splitlines() if line[:1].isspace() or line[:1].isdigit()]
    assert [line[0] for line in lines][:5] == ["0", "0.05", "0.1", "0.15", "0.2"]
    with pytest.raises(SystemExit) as ended:
        main(["verify", *(point["record"] for point in points[1:])])
    assert ended.value.code == 0


def test_the_curve_of_a_transformation_is_over_its_own_radius(tmp_path, capsys):
    options = ["--defense", "pgd-at", "--attack", "apgd(steps=4)", "--threat", "fog:1", "--curve", "0:0.6:3"]
    found = json.loads(run(tmp_path, *options, "--json", capsys=capsys).out)
    assert [record["threat"] for record in found["records"]] == ["fog:0.3", "fog:0.6"]
    correct = [point["accuracy"]["correct"] for point in found["curves"][0]["points"]]
    assert correct == sorted(correct, reverse=True) and correct[0] > correct[-1]
    assert "fog" in Path(found["picture"]).name and " fog " in run(tmp_path, *options, capsys=capsys).out


def test_certificates_carry_over_both_ways(tmp_path, capsys, monkeypatch):
    """Records in which a small radius fools what larger ones do not, and a large one finds what is near."""
    from robench.reports import security_curve

    found = json.loads(run(tmp_path, *CURVE, "--json", capsys=capsys).out)
    records = [read_record(point["record"]) for point in found["curves"][0]["points"][1:]]
    inf = float("inf")
    distances = {
        "Linf:0.05": [0.04, inf, inf, inf, 0.0],
        "Linf:0.1": [inf, 0.09, inf, inf, 0.0],
        "Linf:0.15": [inf, inf, 0.08, inf, 0.0],
        "Linf:0.2": [inf, inf, inf, inf, 0.0],
    }
    monkeypatch.setattr(security_curve, "_distances", lambda record: distances[record.job.threat])
    (curve,) = security_curve.curves(("0", "0.05", "0.1", "0.15", "0.2"), records)
    assert [point.accuracy.correct for point in curve.points[1:]] == [3, 1, 1, 1]


@pytest.mark.slow
def test_an_attack_for_the_least_distance_answers_in_one_run(tmp_path, capsys):
    said = run(
        tmp_path,
        "--defense",
        "pgd-at",
        "--attack",
        "fmn(steps=30)",
        "--curve",
        "0:0.2:5",
        "--json",
        capsys=capsys,
    )
    found = json.loads(said.out)
    (record,), (curve,) = found["records"], found["curves"]
    assert record["threat"] == "Linf:0.2" and record["suite"]["attacks"] == ["fmn(minimise=True, steps=30)"]
    rows = read_samples(curve["points"][-1]["record"]).to_pydict()
    for point in curve["points"][1:]:
        pairs = zip(rows["fooled_by"], rows["distance"], strict=True)
        near = [bool(by) and far <= point["eps"] + 1e-6 for by, far in pairs]
        assert point["accuracy"]["correct"] == 24 - sum(near) and point["carried"] is None
    # Drawn from the record alone, it has points up to its radius.
    ((figure),) = PLOTS["security"].draw(collect([tmp_path])).values()
    drawn = next(line for line in figure.axes[0].lines if not line.get_label().startswith("_"))
    assert list(drawn.get_xdata()) == pytest.approx([0.025 * i for i in range(9)])
    assert drawn.get_ydata()[4] == pytest.approx(100 * curve["points"][2]["accuracy"]["value"])
    # Asked not to minimize, it is an attack like others.
    plain = [
        "--defense",
        "pgd-at",
        "--attack",
        "fmn(steps=5, minimise=False)",
        "--curve",
        "0.1:0.2:2",
        "--json",
    ]
    assert len(json.loads(run(tmp_path, *plain, capsys=capsys).out)["records"]) == 2


def test_several_defenses_share_a_table_and_a_picture(tmp_path, capsys):
    options = ["--defense", "pgd-at,mimir", "--attack", "ddn(steps=5)", "--threat", "L2", "--curve", "0:2:3"]
    said = run(tmp_path, *options, capsys=capsys)
    assert "pgd-at-digits" in said.out and "mimir-digits" in said.out and "Linf" not in said.out
    assert len(list((tmp_path / "curves").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--curve", "16/255:0:9"], "STOP above START"),
        (["--curve", "-1:0:9"], "radii of at least 0"),
        (["--attack", "purifier", "--curve", "0:0.1:3"], "is a ladder of runs"),
        (["--attack", "purifier", "--knowledge", "bpda", "--curve", "0:0.1:3"], "is a ladder of runs"),
        (["--curve", "0:0.1:3", "--sweep", "attack.steps=1,2"], "not both"),
        (["--curve", "0:0.1:3", "--threat", "L7"], "unknown norm"),
        (["--attack", "ddn", "--curve", "0:0.1:3"], "ddn is defined in L2"),
    ],
)
def test_mistakes_end_in_one_line(options, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--defense", "mimir", "--samples", "5", "--results", str(tmp_path), *options])
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and said in lines[-1] and len(lines) <= 2
