"""Results in the files of each tracker's own library, read back by that library."""

import sys
from types import SimpleNamespace

import pytest
import torch

import robench
from tests.models import Linear, images

# These libraries warn of other people's code, and leave files open.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def result():
    model, x = Linear(3, (3, 8, 8)), images(8)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    found = robench.attack("pgd(steps=2)", model, x, y, threat="Linf:0.01")
    assert 0 < found.robust_accuracy < found.clean_accuracy == 7 / 8
    return found


def test_tensorboard_reads_what_was_logged(result, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    robench.log(result, "tensorboard", step=3)
    (folder,) = (tmp_path / "runs").iterdir()
    read = events.EventAccumulator(str(folder))
    read.Reload()
    (event,) = read.Scalars("robench/robust_accuracy")
    assert event.step == 3 and event.value == pytest.approx(result.robust_accuracy)
    assert {"robench/clean_accuracy", "robench/passes/1-pgd"} <= set(read.Tags()["scalars"])


@pytest.mark.slow
def test_wandb_runs_offline(result, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="mine", dir=tmp_path, mode="offline")
    robench.log(result, "wandb")
    assert run.summary["robench/robust_accuracy"] == pytest.approx(result.robust_accuracy)
    assert run.config["robench"]["threat"] == "Linf:0.01"
    run.finish()
    assert list(tmp_path.rglob("*.wandb"))


@pytest.mark.slow
def test_mlflow_reads_what_was_logged(result, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        robench.log(result, "mlflow", step=3)
    data = mlflow.get_run(run.info.run_id).data
    assert data.metrics["robench/robust_accuracy"] == pytest.approx(result.robust_accuracy)
    assert data.tags["robench.suite"] == "pgd(steps=2)"


def test_each_library_gets_figures_settings_and_the_step(result, monkeypatch):
    """With stand-ins for the libraries, which take seconds to import; the slow tests have the real ones."""
    calls = {}
    run = SimpleNamespace(
        config=SimpleNamespace(update=lambda settings, **options: calls.update(settings)),
        log=lambda values, step: calls.update(wandb=(values, step)),
    )
    wandb = SimpleNamespace(run=None, init=lambda project: calls.update(project=project) or run)
    mlflow = SimpleNamespace(
        log_metrics=lambda values, step: calls.update(mlflow=(values, step)), set_tags=calls.update
    )
    for name, module in (("wandb", wandb), ("mlflow", mlflow)):
        monkeypatch.setitem(sys.modules, name, module)
        robench.log(result, name, step=3)
        values, step = calls[name]
        assert step == 3 and values["robench/robust_accuracy"] == result.robust_accuracy
    assert calls["project"] == "robench" and calls["robench"]["threat"] == "Linf:0.01"
    assert calls["robench.suite"] == "pgd(steps=2)"


class Writer:
    """The two methods of a SummaryWriter that are called, and flush."""

    def __init__(self):
        self.scalars, self.texts = {}, {}

    def add_scalar(self, name, value, step):
        self.scalars[name] = value, step

    def add_text(self, name, value, step):
        self.texts[name] = value

    def flush(self):
        pass


def test_a_writer_of_ones_own_takes_results_and_records(tmp_path):
    writer = Writer()
    model = Linear(3, (3, 8, 8))
    result = robench.attack("fgsm", model, images(8), torch.zeros(8).long(), threat="Linf:0.01")
    robench.log(result, writer, step=7)
    assert writer.scalars["robench/clean_accuracy"] == (result.clean_accuracy, 7)
    assert writer.scalars["robench/survivors/1-fgsm"] == (result.attacks[0].survivors, 7)
    record = robench.run("standard-digits", "fgsm", samples=5, threat="Linf:0.1", results=tmp_path)
    robench.log(record, writer)
    assert writer.scalars["robench/robust_accuracy"] == (record.robust_accuracy.value, None)
    assert "defense: standard-digits" in writer.texts["robench/settings"]
