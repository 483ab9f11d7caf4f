"""The records that are shipped hold, and the boards beside them are made from them."""

import pytest

from robench import content
from robench.data import load_dataset
from robench.defenses import load
from robench.results.board import board, collect
from robench.results.grid import render
from robench.results.ladder import purifiers
from robench.results.record import read_record
from robench.results.unforeseen import unforeseen
from robench.results.verify import verify
from tests.data.test_cifar10 import REAL

RESULTS = content.folder("result")
SHIPPED = RESULTS / "shipped"
RECORDS = sorted(path.parent for path in SHIPPED.rglob("record.json"))
MEND = "make it anew: robench board results/shipped --format md > results/BOARD.md, robench table purifiers likewise"


def test_there_are_some():
    assert len(RECORDS) >= 8


@pytest.mark.parametrize("folder", RECORDS, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_a_shipped_record_holds(folder):
    job = read_record(folder).job
    if job.dataset.name == "cifar10" and not (REAL / "cifar-10-batches-py").is_dir():
        pytest.skip("CIFAR-10 is not here: ROBENCH_TEST_DATA names the folder with cifar-10-batches-py")
    data_dir = str(REAL) if job.dataset.name == "cifar10" else None
    images = load_dataset(job.dataset.name, job.dataset.split, job.n, data_dir)
    assert verify(folder, load(job.defense.name, job.dataset.name), images)


def test_the_boards_are_fresh():
    records = collect([SHIPPED])
    assert (RESULTS / "BOARD.md").read_text("utf-8") == board(records, "md"), MEND
    tables = "\n".join(render(table, "md") for table in purifiers(records, "purifier-cheap"))
    assert (RESULTS / "PURIFIERS.md").read_text("utf-8") == tables, MEND
    tables = "\n".join(render(table, "md") for table in unforeseen(records))
    assert (RESULTS / "UNFORESEEN.md").read_text("utf-8") == tables, MEND
