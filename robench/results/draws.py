"""What a randomised defense scores: on average, in the worst of its draws, and by majority vote.

Adversarial examples of a randomised defense must be submitted more than once: DiffHammer, NeurIPS 2024.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from robench.results.statistics import Accuracy, wilson

if TYPE_CHECKING:
    from robench.results.record import Record

FIELD = "stochastic"


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
    """What a record says of a randomised defense, from the columns of samples.parquet."""
    said = {}
    for name, prediction, wrong in (
        ("clean", "clean_prediction", "clean_draws"),
        ("robust", "prediction", "draws"),
    ):
        right = sum(a == b for a, b in zip(rows[prediction], rows["label"], strict=True))
        said[name] = asdict(Figures.of(rows[wrong], right, draws))
    return plain({"draws": draws, **said})


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
