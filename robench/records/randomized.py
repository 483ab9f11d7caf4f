"""Accuracies of a randomized defense: average, worst draw, majority vote and single draw.

Adversarial examples of a randomized defense must be submitted more than once (DiffHammer, NeurIPS 2024). All figures
are from fresh draws, which no attack has seen (robench.engine.judges). Older records have figures from the draws that
their candidates were chosen on; `robench results migrate` judges them again.
"""

from dataclasses import dataclass
from typing import Any

from robench.records.record import Record, as_json
from robench.statistics.accuracy import Accuracy, wilson
from robench.threats.knowledge import Knowledge

FIELD = "stochastic"
# The columns of samples.parquet with the answers to each fresh draw.
ANSWERS = {"clean": "clean_answers", "robust": "answers"}


@dataclass(frozen=True)
class Share:
    """A mean over samples, with its 95 % interval; fractions."""

    value: float
    interval: tuple[float, float]


def figures(rows: dict[str, list[Any]], draws: int) -> dict[str, Any]:
    """The figures of a randomized defense in a record, from the columns of samples.parquet.

    If the columns have answers to fresh draws, the figures include `fresh` and the accuracy in the first draw alone.
    AutoAttack and most papers report a single draw per image.

    Returns:
        For "clean" and "robust" images: `average`, the mean over samples of the share of correct draws; `worst_draw`,
        the share of samples for which every draw is correct; `majority`, the share for which the majority vote is.
        The interval of the average is Wilson's for this number of samples, which is wide enough, because a mean of
        numbers in [0, 1] varies at most as much as one of zeros and ones.
    """
    n, accuracies = len(rows["label"]), {}
    for name, prediction, wrong in (
        ("clean", "clean_prediction", "clean_draws"),
        ("robust", "prediction", "draws"),
    ):
        right = sum(a == b for a, b in zip(rows[prediction], rows["label"], strict=True))
        correct = (n * draws - sum(rows[wrong])) / draws
        shares = {
            "average": Share(correct / n, wilson(correct, n)),
            "worst_draw": _share(rows[wrong].count(0), n),
            "majority": _share(right, n),
        }
        if ANSWERS[name] in rows:
            first = [answers[0] for answers in rows[ANSWERS[name]]]
            single = sum(a == b for a, b in zip(first, rows["label"], strict=True))
            shares["single_draw"] = _share(single, n)
        accuracies[name] = shares
    fresh = {"fresh": True} if ANSWERS["robust"] in rows else {}
    return as_json({"draws": draws, **fresh, **accuracies})


def chosen_on(record: Record) -> bool:
    """Whether a record's figures are from the draws that its candidates were chosen on, as in records made before
    fresh draws were introduced."""
    return FIELD in record.extra and not record.extra[FIELD].get("fresh", False)


def over_draws(record: Record, images: str, name: str) -> Accuracy | None:
    """Accuracy of a randomized defense over its draws; None where a record does not have it.

    Args:
        images: "clean" or "robust".
        name: "worst_draw", "majority" or "single_draw".
    """
    share = record.extra.get(FIELD, {}).get(images, {}).get(name)
    return Accuracy.of(round(share["value"] * record.job.n), record.job.n) if share else None


def unattacked(record: Record) -> Accuracy:
    """Clean accuracy measured like the record's robust accuracy: in the worst draw for a randomized defense."""
    return over_draws(record, "clean", "worst_draw") or record.clean_accuracy


def draws_label(record: Record) -> str:
    """The number and kind of the draws that a randomized defense is judged on: "10 fresh draws"."""
    figures = record.extra[FIELD]
    known = Knowledge.of(record.job.knowledge).level.knows_noise
    kind = "known " if known else "fresh " if figures.get("fresh") else ""
    return f"{figures['draws']} {kind}draws"


def _share(right: int, n: int) -> Share:
    accuracy = Accuracy.of(right, n)
    return Share(accuracy.value, accuracy.interval)
