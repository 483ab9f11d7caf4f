"""A sweep over a setting: what is read, what is run, when it says that an attack has not converged."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robench.cli.main import main
from robench.core.errors import UsageError
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Options
from robench.evaluation.sweep import Sweep, sweep
from robench.records.record import Accuracy
from robench.reports.sweep import grid, picture, unconverged


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("sigma=0:140:20", "sigma", (0, 20, 40, 60, 80, 100, 120, 140)),
        ("attack.steps=200,10,50", "attack.steps", (10, 50, 200)),
        ("t=0.1:0.3:0.1", "t", (0.1, 0.2, 0.30000000000000004)),
    ],
)
def test_ranges_and_lists_are_read(text, name, values):
    assert Sweep.parse(text) == Sweep(name, values)


@pytest.mark.parametrize(
    "text",
    [
        "sigma",
        "sigma=",
        "=1,2",
        "sigma=3",
        "sigma=0:10:3",
        "sigma=0:10:0",
        "sigma=0:1e9:1",
        "s=1,nan",
        "s=1,x",
    ],
)
def test_others_are_refused(text):
    with pytest.raises(UsageError, match="expected NAME=START:STOP:STEP"):
        Sweep.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text):
    try:
        found = Sweep.parse(text)
    except UsageError:
        return
    assert 2 <= len(found.values) <= 100 and list(found.values) == sorted(set(found.values))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    asked = Sweep.parse("attack.steps=1,3,9")
    place = tmp_path_factory.mktemp("results")
    protocol = choose_protocol(None, None, "Linf:0.13", 20)
    return asked, list(sweep(asked, "mimir", "pgd", protocol, [], Options(results=place))), place


def test_there_is_a_record_for_each_value(swept):
    asked, found, place = swept
    assert [record.job.suite.attacks for _, record in found] == [
        ("pgd(steps=1)",),
        ("pgd(steps=3)",),
        ("pgd(steps=9)",),
    ]
    table = grid(asked, found)
    assert [row[0] for row in table.rows] == ["1", "3", "9"] and table.columns[0] == "attack.steps"
    again = list(
        sweep(asked, "mimir", "pgd", choose_protocol(None, None, "Linf:0.13", 20), [], Options(results=place))
    )
    assert [record.finished for _, record in again] == [record.finished for _, record in found]
    assert picture(asked, found, place / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_setting_of_the_network_is_swept_too(tmp_path):
    asked = Sweep.parse("drop_path=0.0,0.5")
    protocol = choose_protocol(None, None, "Linf:0.1", 10)
    found = list(sweep(asked, "mimir", "pgd(steps=1)", protocol, [], Options(results=tmp_path)))
    assert [record.job.defense.name for _, record in found] == [
        "mimir-digits",
        "mimir-digits(drop_path=0.5)",
    ]


def test_arguments_of_a_function_are_swept_too(tmp_path, monkeypatch):
    (tmp_path / "scaled.py").write_text(
        "from torch import nn\ndef build(width=3):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(width), nn.Flatten(), nn.Linear(3 * width**2, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    protocol = choose_protocol(None, None, "Linf:0.1", 4)
    options = Options(results=tmp_path, workers=1)
    found = list(sweep(Sweep.parse("width=1,2"), "python:scaled.build", "fgsm", protocol, [], options))
    assert [record.job.defense.name for _, record in found] == [
        "python:scaled.build(width=1)",
        "python:scaled.build(width=2)",
    ]
    with pytest.raises(UsageError, match="takes no argument depth"):
        list(sweep(Sweep.parse("depth=1,2"), "python:scaled.build", "fgsm", protocol, [], options))


@pytest.mark.parametrize(("last", "said"), [(10, "by 10.00 percentage points"), (12, ""), (11, "")])
def test_a_curve_that_still_falls_is_marked(swept, last, said):
    asked, found, _ = swept
    kept = [12, 12, last]
    changed = [
        (value, dataclasses.replace(record, robust_accuracy=Accuracy.of(k, 20)))
        for (value, record), k in zip(found, kept, strict=True)
    ]
    notes = unconverged(asked, changed)
    assert bool(notes) == bool(said) and said in " ".join(notes)
    assert unconverged(dataclasses.replace(asked, name="sigma"), changed) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--defense", "mimir", "--sweep", "sigma=1,2"], "vit has no argument sigma"),
        (["--defense", "mimir", "--attack", "square", "--sweep", "attack.loss=1,2"], "has an argument loss"),
        (["--defense", "mimir,pgd-at", "--sweep", "attack.steps=1,2"], "one defense and one attack"),
        (["--defense", "mimir", "--attack", "purifier", "--sweep", "attack.steps=1,2"], "is a ladder"),
    ],
)
def test_mistakes_end_in_one_line(options, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--samples", "5", "--threat", "Linf:0.1", "--results", str(tmp_path), *options])
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and said in lines[-1]


def test_sweeps_of_different_values_draw_pictures_of_different_names(tmp_path):
    for values in ("1,3", "1,4"):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "sweep",
                    f"attack.steps={values}",
                    "--defense",
                    "standard-digits",
                    "--attack",
                    "pgd",
                    "--samples",
                    "2",
                    "--threat",
                    "Linf:0.1",
                    "--results",
                    str(tmp_path),
                ]
            )
        assert end.value.code == 0
    pictures = [path.name for path in tmp_path.rglob("sweep-*.png")]
    assert len(pictures) == 2 and len(set(pictures)) == 2
