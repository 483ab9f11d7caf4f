"""Clean and robust accuracy over the training time of the study's networks.

    python perf/study_price.py results/shipped results/study-price.png

The networks and their CPU minutes are those of the table of question 2 in papers/study.toml. The accuracies are of
records of `quick` on 10,000 images, with 95 % intervals. Adversarial training alone is joined by a line.
"""

import argparse
from pathlib import Path

from robench.records.collection import collect
from robench.records.record import Record
from robench.reports.paper_files import Row, find_paper
from robench.reports.plots import style

PROTOCOL, SUITE, TIME = "cifar10-linf-10000", "quick", "CPU minutes"
TITLE = "About 40 minutes of training: longer adversarial training or masked pre-training, Linf 8/255"


def points(results: Path) -> list[tuple[float, Row, Record]]:
    """Training time, row and record of each network of the table that has a record, by time."""
    (table,) = (table for table in find_paper("study").tables if table.title == TITLE)
    rows = {row.defense: row for row in table.rows}
    found = [
        (float(rows[record.job.defense.name].facts[TIME]), rows[record.job.defense.name], record)
        for record in collect([results])
        if (record.job.protocol, record.job.suite.name) == (PROTOCOL, SUITE)
        and record.job.defense.name in rows
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
        for i, (time, row, record) in enumerate(found):
            accuracy = getattr(record, f"{kind}_accuracy")
            value, (low, high) = 100 * accuracy.value, accuracy.interval
            alone += [(time, value)] if row.defense.startswith("pgd-at-") else []
            bar = [[value - 100 * low], [100 * high - value]]
            look = {"fmt": style.marker(i), "color": style.colour(i), "capsize": 2}
            axes.errorbar(time, value, yerr=bar, label=row.name, **look)
        axes.plot(*zip(*alone, strict=True), color=style.QUIET, linewidth=1, zorder=0)
        style.frame(axes, f"{kind} accuracy, %", "CPU minutes of training", "")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    style.save(figure, arguments.picture)


if __name__ == "__main__":
    main()
