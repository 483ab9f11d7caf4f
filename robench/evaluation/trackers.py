"""Logging of results and records to Weights & Biases, TensorBoard and MLflow, through their own libraries."""

from collections.abc import Callable
from typing import Any

from robench.core.errors import ResourceError, unknown_name
from robench.core.formatting import install
from robench.evaluation.result import Result
from robench.records.record import Record

Figures = dict[str, float]


def log(result: Result | Record, tracker: Any = "tensorboard", step: int | None = None) -> None:
    """Log clean and robust accuracy, survivors and passes of each attack, and the number of warnings.

    Call it after each epoch with the epoch as `step`, or once at the end.

    Args:
        result: a `Result` of `robench.attack`, or a `Record` of `robench.run`.
        tracker: "wandb" or "mlflow" to log to the active run, or a new one if there is none; "tensorboard" for a new
            writer in `runs/`; or your own SummaryWriter or wandb Run.
        step: training step or epoch.

    Raises:
        UsageError: if the tracker is unknown.
        ResourceError: if its library is not installed.
    """
    if not isinstance(tracker, str):
        log_to = _summary_writer if hasattr(tracker, "add_scalar") else _wandb_run
        log_to(tracker, figures(result), settings(result), step)
        return
    if tracker not in TRACKERS:
        raise unknown_name("tracker", tracker, TRACKERS)
    try:
        TRACKERS[tracker](figures(result), settings(result), step)
    except ImportError as error:
        raise ResourceError(f"{tracker} is not installed: {install(tracker)}") from error


def figures(result: Result | Record) -> Figures:
    """The logged values: accuracies as fractions in [0, 1], survivors and passes as numbers of images."""
    if isinstance(result, Result):
        clean, robust = result.clean_accuracy, result.robust_accuracy
    else:
        clean, robust = result.clean_accuracy.value, result.robust_accuracy.value
    values = {"clean_accuracy": clean, "robust_accuracy": robust, "warnings": float(len(result.health))}
    for number, cost in enumerate(result.attacks, 1):
        name = f"{number}-{cost.spec.partition('(')[0]}"
        values[f"survivors/{name}"] = float(cost.survivors)
        values[f"passes/{name}"] = float(cost.forward + cost.backward)
    return {f"robench/{name}": value for name, value in values.items()}


def settings(result: Result | Record) -> dict[str, Any]:
    """The settings of the evaluation, for the run's configuration."""
    if isinstance(result, Result):
        attacked = result.attacked
        n, seed = len(attacked.x), attacked.setup.seed
        return {"suite": attacked.suite, "threat": str(attacked.threat), "n": n, "seed": seed}
    job = result.job
    return {
        "defense": job.defense.name,
        "dataset": job.dataset.name,
        "knowledge": job.knowledge,
        "suite": job.suite.name,
        "threat": job.threat,
        "n": job.n,
        "seed": job.seed,
    }


def _wandb_run(run: Any, values: Figures, config: dict[str, Any], step: int | None) -> None:
    run.config.update({"robench": config}, allow_val_change=True)
    run.log(values, step=step)


def _wandb(values: Figures, config: dict[str, Any], step: int | None) -> None:
    import wandb

    _wandb_run(wandb.run or wandb.init(project="robench"), values, config, step)


def _summary_writer(writer: Any, values: Figures, config: dict[str, Any], step: int | None) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    writer.add_text("robench/settings", ", ".join(f"{name}: {value}" for name, value in config.items()), step)
    writer.flush()


def _tensorboard(values: Figures, config: dict[str, Any], step: int | None) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter() as writer:
        _summary_writer(writer, values, config, step)


def _mlflow(values: Figures, config: dict[str, Any], step: int | None) -> None:
    import mlflow

    mlflow.log_metrics(values, step=step)
    mlflow.set_tags({f"robench.{name}": value for name, value in config.items()})


TRACKERS: dict[str, Callable[[Figures, dict[str, Any], int | None], None]] = {
    "wandb": _wandb,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}
