"""The table and the plot of a purifier that is fine-tuned on more and more images."""

from pathlib import Path

import pytest

from robench.catalog import find_suite
from robench.records.collection import collect
from robench.reports.finetune import grid, picture
from robench.statistics.accuracy import percent

SHIPPED = Path(__file__).resolve().parents[2] / "results" / "shipped" / "digits-linf-0.1"


@pytest.fixture(scope="module")
def by_count():
    """Two purifiers' records in place of those of one purifier after fine-tuning on 0 and on 50 images."""
    return [(0, collect([SHIPPED / "maep-digits"])), (50, collect([SHIPPED / "de3-digits-standard-digits"]))]


def test_each_number_of_images_has_a_line_with_the_knowledge_in_columns(by_count):
    table = grid("maep", by_count, find_suite("purifier-cheap"))
    assert table.columns == ("images", "clean", "oblivious", "bpda", "full")
    assert [row[0] for row in table.rows] == ["0", "50"]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    for record in by_count[0][1]:
        if record.job.suite.name == "pgd" and record.job.knowledge in table.columns:
            assert row[record.job.knowledge].startswith(percent(record.robust_accuracy))


def test_the_plot_has_a_curve_for_clean_accuracy_and_each_knowledge(by_count, tmp_path):
    file = picture("maep", by_count, find_suite("purifier-cheap"), tmp_path / "curve.png")
    assert file.read_bytes().startswith(b"\x89PNG")
