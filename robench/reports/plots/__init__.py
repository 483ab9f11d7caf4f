"""Plots of records. To add a kind of plot to `robench plot`, add a row here."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from robench.core.errors import unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robench.records.record import Record


@dataclass(frozen=True)
class Plot:
    """A kind of plot.

    Attributes:
        shows: short description.
        place: "module:function". The function maps records to figures by file name and ignores unusable records.
        needs: a command that creates records for it.
    """

    shows: str
    place: str
    needs: str

    def draw(self, records: "Sequence[Record]") -> "dict[str, Figure]":
        """The figures that these records allow, by name, in a fixed order."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)(records)


PLOTS = {
    "scatter": Plot(
        "clean against robust accuracy, one point per defense",
        "robench.reports.plots.scatter:draw",
        "robench run --defense mimir-digits,pgd-at-digits --attack autoattack",
    ),
    "security": Plot(
        "accuracy over the radius, one curve per defense",
        "robench.reports.plots.settings:security",
        "robench curve 0:0.2:5 --defense mimir-digits --attack autoattack",
    ),
    "trade-off": Plot(
        "clean and robust accuracy over a defense's setting",
        "robench.reports.plots.settings:trade_off",
        'robench sweep sigma=0:140:70 --defense de3-digits --attack "pgd(steps=10)"',
    ),
    "transfer-attacks": Plot(
        "accuracy of each defense under attacks on other networks",
        "robench.reports.plots.heatmaps:transfer",
        "robench run --defense mimir-digits,pgd-at-digits --attack pgd --knowledge transfer:standard",
    ),
    "datasets": Plot(
        "purifiers trained on one dataset with classifiers of others",
        "robench.reports.plots.heatmaps:datasets",
        "robench transfer --defense maep --from digits --to cifar10",
    ),
    "corruptions": Plot(
        "accuracy by corruption and severity, one map per record",
        "robench.reports.plots.corruption_heatmap:figures",
        "robench run --defense mimir-digits --attack imagenet-c-memory",
    ),
}  # fmt: skip
# Old names, which still work.
RENAMED = {"transfer": "transfer-attacks", "data-sets": "datasets"}


def find_plot(name: str) -> Plot:
    """The kind of plot called `name`.

    Raises:
        UsageError: for an unknown kind, listing the known ones.
    """
    name = RENAMED.get(name, name)
    if name not in PLOTS:
        raise unknown_name("plot", name, PLOTS)
    return PLOTS[name]
