"""What a randomised defense scores: on average, in the worst of its draws, by majority vote, and in a single draw.

Adversarial examples of a randomised defense must be submitted more than once: DiffHammer, NeurIPS 2024. All figures
are of fresh draws, which no attack has seen (robench.engine.judges). Records made before they came in hold figures of
the draws that their candidates were chosen on; `robench results migrate` judges those again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from robench.statistics.accuracy import Accuracy, wilson

if TYPE_CHECKING:
    from robench.records.record import Record

FIELD = "stochastic"
# The columns of samples.parquet that hold what each fresh draw says.
ANSWERS = {"clean": "clean_answers", "robust": "answers"}


@dataclass(frozen=True)
class Share:
    """A mean over samples, with its 95 % interval; fractions."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """Accuracy of a randomised defense on its draws.

    Attributes:
        average: mean over samples of the part of the draws that are right. Its interval is Wilson's for as many
            samples, which is wide enough: no mean of numbers in [0, 1] varies more than one of zeros and ones.
        worst_draw: a sample counts when every draw is right.
        majority: a sample counts when most draws say its class.
    """

    average: Share
    worst_draw: Share
    majority: Share

    @classmethod
    def of(cls, wrong: Sequence[int], right_by_vote: int, draws: int) -> "Figures":
        """Args:
        wrong: how many draws are wrong, for each sample.
        right_by_vote: samples whose vote is right.
        draws: a sample.
        """
        n = len(wrong)
        right = (n * draws - sum(wrong)) / draws
        return cls(Share(right / n, wilson(right, n)), _share(wrong.count(0), n), _share(right_by_vote, n))


def figures(rows: dict[str, list[Any]], draws: int) -> dict[str, Any]:
    """What a record says of a randomised defense, from the columns of samples.parquet.

    Where those hold the answers of fresh draws, the figures say so, and the first draw alone is one of them: a single
    draw an image is what AutoAttack and most papers report.
    """
    said = {}
    for name, prediction, wrong in (
        ("clean", "clean_prediction", "clean_draws"),
        ("robust", "prediction", "draws"),
    ):
        right = sum(a == b for a, b in zip(rows[prediction], rows["label"], strict=True))
        said[name] = asdict(Figures.of(rows[wrong], right, draws))
        if ANSWERS[name] in rows:
            first = [answers[0] for answers in rows[ANSWERS[name]]]
            correct = sum(a == b for a, b in zip(first, rows["label"], strict=True))
            said[name]["single_draw"] = asdict(_share(correct, len(first)))
    fresh = {"fresh": True} if ANSWERS["robust"] in rows else {}
    return plain({"draws": draws, **fresh, **said})


def chosen_on(record: "Record") -> bool:
    """Whether a record's figures are of the draws that its candidates were chosen on, as those of a randomised
    defense were before fresh draws came in."""
    return FIELD in record.extra and not record.extra[FIELD].get("fresh", False)


def single_draw(record: "Record") -> Share | None:
    """Robust accuracy in the first fresh draw, one an image; None where a record does not say."""
    found = record.extra.get(FIELD, {}).get("robust", {}).get("single_draw")
    return Share(found["value"], tuple(found["interval"])) if found else None


def unattacked(record: "Record") -> Accuracy:
    """Clean accuracy by the measure of a record's robust accuracy: where noise is drawn, of the worst draw."""
    drawn = record.extra.get(FIELD)
    if not drawn:
        return record.clean_accuracy
    return Accuracy.of(round(drawn["clean"]["worst_draw"]["value"] * record.job.n), record.job.n)


def plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _share(right: int, n: int) -> Share:
    accuracy = Accuracy.of(right, n)
    return Share(accuracy.value, accuracy.interval)
