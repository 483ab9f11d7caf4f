"""mCE and related figures: published values, closed forms, and records that were tampered with."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robench.cli import main
from robench.core.errors import CheckFailed
from robench.corruption.names import COMMON, SEVERITIES
from robench.corruption.suite import Cell
from robench.data import load_dataset
from robench.defenses import load
from robench.evaluation.protocol import choose_protocol
from robench.records.collection import collect
from robench.records.record import read_record, stable
from robench.reports.board import board
from robench.reports.plots import corruption_heatmap
from robench.reports.plots.style import encode
from robench.statistics.corruption import (
    ALEXNET,
    ALEXNET_CLEAN,
    Normaliser,
    Verdicts,
    figures,
    normaliser,
    per_image,
)
from robench.verification.verify import verify
from tests.processes import Command

ALL = tuple(Cell(name, severity, True) for name in COMMON for severity in SEVERITIES)
# torchvision's ResNet-50 on ImageNet-C, top-1 in percent and CE, as listed by users of robustness_metrics.
RESNET50 = {
    "brightness": (68.02, 56.64),
    "contrast": (39.06, 71.43),
    "defocus_blur": (38.75, 74.71),
    "elastic_transform": (45.25, 84.75),
    "fog": (45.83, 66.11),
    "frost": (38.14, 74.84),
    "gaussian_noise": (29.29, 79.77),
    "glass_blur": (26.79, 88.61),
    "impulse_noise": (23.81, 82.58),
}


def verdicts(accuracy, clean=0.8, n=10_000):
    """Images of which a given fraction is correct at each cell."""
    right = np.zeros((n, len(ALL)), bool)
    for column, cell in enumerate(ALL):
        right[: round(accuracy[cell.name] * n), column] = True
    return Verdicts(ALL, np.arange(n) < clean * n, right)


def test_published_corruption_errors_are_reproduced():
    accuracy = {name: RESNET50.get(name, (50, 0))[0] / 100 for name in COMMON}
    found = verdicts(accuracy)
    for name, (_, error) in RESNET50.items():
        assert 100 * found.errors(name).mean() / ALEXNET[name] == pytest.approx(error, abs=0.01)


def test_alexnet_itself_has_an_mce_of_one():
    found = verdicts({name: 1 - error for name, error in ALEXNET.items()}, 1 - ALEXNET_CLEAN)
    made = figures(found, normaliser("imagenet", 224), 0)
    assert made["mce"]["value"] == pytest.approx(1, abs=2e-4)
    assert made["relative_mce"]["value"] == pytest.approx(1, abs=1e-3)
    assert made["mce"]["normaliser"] == "AlexNet (arXiv 1903.12261)"


def test_the_published_errors_match_the_papers_table():
    # The first row of table 1, rounded as in the paper.
    shown = (88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8, 60.7)
    assert [round(100 * ALEXNET[name], 1) for name in COMMON] == pytest.approx(shown, abs=0.051)


@pytest.mark.parametrize(
    ("dataset", "side", "whose"),
    [
        ("imagenet", 224, True),
        ('imagenet(preprocessing="Res224")', 224, True),
        ("imagenet", 288, False),
        ("cifar10", 224, False),
        ("cifar10", 32, False),
    ],
)
def test_alexnet_normalises_imagenet_at_224_px_only(dataset, side, whose):
    assert (normaliser(dataset, side) is not None) is whose


def test_plain_errors_are_means():
    generator = np.random.default_rng(0)
    found = Verdicts(ALL, generator.random(50) < 0.9, generator.random((50, 75)) < 0.6)
    made = figures(found, None, 0)
    assert made["mce"]["value"] == pytest.approx(1 - found.corrupted.mean())
    assert made["relative_mce"]["value"] == pytest.approx(found.clean.mean() - found.corrupted.mean())
    assert made["mce"]["normaliser"] == "none"
    assert made["corrupted_accuracy"]["common"]["value"] == pytest.approx(found.corrupted.mean())
    assert "validation" not in made["corrupted_accuracy"]


def test_an_incomplete_benchmark_has_no_mce():
    found = Verdicts(ALL[:70], np.ones(5, bool), np.ones((5, 70), bool))
    assert set(figures(found, None, 0)) == {"corrupted_accuracy"}


@given(st.lists(st.floats(0.05, 0.99), min_size=15, max_size=15), st.floats(0.01, 0.04))
def test_a_defense_normalised_by_itself_is_one(errors, clean):
    by = Normaliser("itself", dict(zip(COMMON, errors, strict=True)), clean)
    right = np.zeros((1, 75), bool)
    found = Verdicts(ALL, np.ones(1, bool), right)
    mce, relative = per_image(found, by)
    # All predictions wrong: an error of 1 divided by that of the normaliser.
    assert mce[0] == pytest.approx(np.mean([1 / e for e in errors]))
    assert relative[0] == pytest.approx(np.mean([1 / (e - clean) for e in errors]))


ATTACK = 'corruption(name="contrast")+corruption(name="gaussian_noise", severities=[1, 5])+corruption(name="saturate")'
ARGUMENTS = ["run", "--defense", "mimir", "--attack", ATTACK, "--samples", "24"]


def call(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A record of a small suite on digits, and what the run printed."""
    root = tmp_path_factory.mktemp("corrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBENCH_CACHE", str(root / "cache"))
        assert call([*ARGUMENTS, "--results", str(root / "results")]) == 0
    (path,) = (root / "results").rglob("record.json")
    return path.parent


def subject(record):
    images = load_dataset(record.job.dataset.name, "test", record.job.n)
    return load(record.job.defense.name, record.job.dataset.name), images


def test_a_run_leaves_a_record_that_verifies(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path))
    record = read_record(run)
    assert record.job.threat == "none" and record.corrupted
    assert record.extra["corruptions"]["enlarged"] == 2 and record.extra["corruptions"]["jpeg"] is None
    assert "mce" not in record.extra
    assert record.passes == {"forward": 24 * 13, "backward": 0}
    held = verify(run, *subject(record))
    assert "288 of 288 predictions are the same" in str(held[-1])
    # 24 rows of 12 predictions, with all other fields of an image.
    assert (run / "samples.parquet").stat().st_size < 12_000
    assert call([*ARGUMENTS, "--results", str(run.parents[2])]) == 0
    out, err = capsys.readouterr()
    assert "using the saved record in" in err and "contrast" in out and "in memory (no JPEG)" in out


def test_tampering_is_detected(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path / "cache"))
    content = json.loads((run / "record.json").read_text())
    folder = tmp_path / "record"
    folder.mkdir()
    (folder / "samples.parquet").write_bytes((run / "samples.parquet").read_bytes())

    def found(change):
        altered = json.loads(json.dumps(content))
        change(altered)
        (folder / "record.json").write_text(json.dumps(altered))
        with pytest.raises(CheckFailed) as error:
            verify(folder, *subject(read_record(folder)))
        return str(error.value)

    def accuracy(record):
        record["corruptions"]["accuracy"]["contrast"]["5"]["value"] += 0.1

    def mean(record):
        record["corrupted_accuracy"]["common"]["value"] += 0.01

    def image(record):
        record["corruptions"]["pixels"]["saturate"]["3"] = "0" * 64

    assert "corruptions.accuracy" in found(accuracy)
    assert "corrupted_accuracy" in found(mean)
    assert "not saturate 3" in found(image)
    # Another seed gives different noise and pixels; contrast and saturation use no noise.
    assert "not gaussian_noise 1" in found(lambda record: record.update(seed=1))


def test_boards_keep_corruptions_apart(run, tmp_path, capsys):
    records = collect([run])
    text = board(records)
    assert "common corruptions" in text and "rank" not in text
    assert "common %" in board(records, "csv").splitlines()[0]
    assert call(["board", str(run), "--format", "html", "--output", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "common corruptions" in page and "mimir-digits" in page and "No records yet" not in page
    assert call(["table", "purifiers", str(run)]) == 0
    assert call(["check", str(run)]) == 2
    assert "under corruptions" in capsys.readouterr().err


def test_the_plot_is_deterministic(run, tmp_path):
    record = read_record(run)
    common, validation = corruption_heatmap.groups(record)
    assert (len(common), len(validation)) == (2, 1)
    assert [*common.values()][1][1:4] == [None, None, None]
    assert encode(corruption_heatmap.draw(record)) == encode(corruption_heatmap.draw(record))
    assert call(["show", str(run), "--picture", str(tmp_path / "map.png")]) == 0
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attack", "imagenet-c", "--threat", "Linf:0.1"], "corruptions have no threat"),
        (["--attack", "imagenet-c", "--knowledge", "oblivious"], "remove --knowledge"),
        (["--attack", 'corruption(name="fogg")'], "did you mean fog"),
        (["--attack", "pgd", "--protocol", "imagenet-c"], "needs a threat"),
        (["--attack", "imagenet-c", "--samples", "0"], "--samples 0"),
        (["--attack", 'pgd+corruption(name="fog")'], "run them separately"),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, said, capsys, tmp_path):
    assert call(["run", "--defense", "mimir", *arguments, "--results", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_the_threat_of_a_protocol_of_corruptions_may_be_named():
    named, unnamed = (
        choose_protocol(None, "digits", threat, 20, ["imagenet-c-memory"]) for threat in ("none", None)
    )
    assert named == unnamed and named.threat is None


def start(folder: Path) -> Command:
    environment = {"ROBENCH_CACHE": str(folder / "cache")}
    return Command(*ARGUMENTS, "--samples", "40", "--json", cwd=folder, environment=environment, saves=True)


def test_a_resumed_run_writes_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    _, out, _ = start(whole).wait()
    expected = json.loads(out)["records"][0]
    process = start(killed)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        # A state without a record: an interrupted run.
        if list(killed.glob("results/*/*/*/.partial/state")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait()[0] == -signal.SIGKILL
    assert not list(killed.rglob("record.json"))
    _, out, err = start(killed).wait()
    assert "resuming from" in err
    assert stable(json.loads(out)["records"][0]) == stable(expected)
    (one,), (other,) = (list(root.rglob("samples.parquet")) for root in (whole, killed))
    assert one.read_bytes() == other.read_bytes()
