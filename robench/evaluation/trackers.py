"""Results and records into Weights & Biases, TensorBoard and MLflow, each by its own library."""

from collections.abc import Callable
from typing import Any

from robench.core.errors import ResourceError, unknown_name
from robench.evaluation.result import Result
from robench.records.record import Record

Figures = dict[str, float]


def log(result: Result | Record, tracker: Any = "tensorboard", step: int | None = None) -> None:
    """Log clean and robust accuracy, survivors and passes of each attack, and the number of warnings.

    Call it after each epoch, with the epoch as `step`, or once at the end.

    Args:
        result: of `robench.attack` or `robench.run`.
        tracker: "wandb" or "mlflow" for the run that is active there (one is started where there is none),
            "tensorboard" for a new writer in `runs/`, or your own SummaryWriter or wandb Run.
        step: of the training.

    Raises:
        UsageError: for an unknown tracker.
        ResourceError: when its library is not installed.
    """
    if not isinstance(tracker, str):
        send = _scalars if hasattr(tracker, "add_scalar") else _run
        send(tracker, figures(result), settings(result), step)
        return
    if tracker not in TRACKERS:
        raise unknown_name("tracker", tracker, TRACKERS)
    try:
        TRACKERS[tracker](figures(result), settings(result), step)
    except ImportError as error:
        raise ResourceError(f'{tracker} is not installed: pip install "robench[{tracker}]"') from error


def figures(result: Result | Record) -> Figures:
    """What is logged: accuracies as fractions in [0, 1], survivors and passes as numbers of images."""
    if isinstance(result, Result):
        clean, robust = result.clean_accuracy, result.robust_accuracy
    else:
        clean, robust = result.clean_accuracy.value, result.robust_accuracy.value
    logged = {"clean_accuracy": clean, "robust_accuracy": robust, "warnings": float(len(result.health))}
    for number, cost in enumerate(result.attacks, 1):
        name = f"{number}-{cost.spec.partition('(')[0]}"
        logged[f"survivors/{name}"] = float(cost.survivors)
        logged[f"passes/{name}"] = float(cost.forward + cost.backward)
    return {f"robench/{name}": value for name, value in logged.items()}


def settings(result: Result | Record) -> dict[str, Any]:
    """What was run, for the run's configuration."""
    if isinstance(result, Result):
        attacked = result.attacked
        n, seed = len(attacked.x), attacked.setup.seed
        return {"suite": attacked.suite, "threat": str(attacked.threat), "n": n, "seed": seed}
    job = result.job
    named = {"defense": job.defense.name, "dataset": job.dataset.name, "knowledge": job.knowledge}
    return {**named, "suite": job.suite.name, "threat": job.threat, "n": job.n, "seed": job.seed}


def _run(run: Any, logged: Figures, config: dict[str, Any], step: int | None) -> None:
    run.config.update({"robench": config}, allow_val_change=True)
    run.log(logged, step=step)


def _wandb(logged: Figures, config: dict[str, Any], step: int | None) -> None:
    import wandb

    _run(wandb.run or wandb.init(project="robench"), logged, config, step)


def _scalars(writer: Any, logged: Figures, config: dict[str, Any], step: int | None) -> None:
    for name, value in logged.items():
        writer.add_scalar(name, value, step)
    writer.add_text("robench/settings", ", ".join(f"{name}: {value}" for name, value in config.items()), step)
    writer.flush()


def _tensorboard(logged: Figures, config: dict[str, Any], step: int | None) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter() as writer:
        _scalars(writer, logged, config, step)


def _mlflow(logged: Figures, config: dict[str, Any], step: int | None) -> None:
    import mlflow

    mlflow.log_metrics(logged, step=step)
    mlflow.set_tags({f"robench.{name}": value for name, value in config.items()})


TRACKERS: dict[str, Callable[[Figures, dict[str, Any], int | None], None]] = {
    "wandb": _wandb,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}
