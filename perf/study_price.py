"""Clean and robust accuracy over the training time of the study's networks.

    python perf/study_price.py results/shipped results/study-price.png

The CPU minutes are those of papers/study.toml. The accuracies are those of the records of `quick` on 10,000 images,
with 95 % intervals. Adversarial training alone is joined by a line.
"""

import argparse
from pathlib import Path

from robench.records.collection import collect
from robench.records.record import Record
from robench.reports.paper_files import Row, find_paper
from robench.reports.plots import style

PROTOCOL, SUITE, TIME = "cifar10-linf-10000", "quick", "CPU minutes"
NAMES = {
    "pgd-at-cifar10-short": "PGD-AT, 4 epochs",
    "pgd-at-cifar10-6-epochs": "PGD-AT, 6 epochs",
    "mae-at-cifar10-short": "MAE + 4 epochs",
    "mimir-no-mi-cifar10-short": "MIMIR without penalty + 4 epochs",
    "mimir-cifar10-short": "MIMIR + 4 epochs",
    "generalist-cifar10-short": "Generalist, 4 epochs",
}


def points(results: Path) -> list[tuple[float, str, Record]]:
    """Training time, defense and record of each network that has both, by time."""
    rows: list[Row] = [row for table in find_paper("study").tables for row in table.rows]
    times = {row.defense: float(row.facts[TIME]) for row in rows if TIME in row.facts}
    found = [
        (times[record.job.defense.name], record.job.defense.name, record)
        for record in collect([results])
        if record.job.protocol == PROTOCOL
        and record.job.suite.name == SUITE
        and record.job.defense.name in times
    ]
    return sorted(found, key=lambda point: point[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    found = points(arguments.results)
    figure = style.figure(8.4, 4.4, layout="constrained")
    both = figure.subplots(1, 2)
    for axes, kind in zip(both, ("robust", "clean"), strict=True):
        alone = []
        for i, (time, name, record) in enumerate(found):
            accuracy = getattr(record, f"{kind}_accuracy")
            value, (low, high) = 100 * accuracy.value, accuracy.interval
            alone += [(time, value)] if name.startswith("pgd-at-") else []
            bar = [[value - 100 * low], [100 * high - value]]
            look = {"fmt": style.marker(i), "color": style.colour(i), "capsize": 2}
            axes.errorbar(time, value, yerr=bar, label=NAMES[name], **look)
        axes.plot(*zip(*alone, strict=True), color=style.QUIET, linewidth=1, zorder=0)
        style.frame(axes, f"{kind} accuracy, %", "CPU minutes of training", "")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    style.save(figure, arguments.picture)


if __name__ == "__main__":
    main()
