"""Records as a DataFrame."""

import pytest

import robench
from robench.core.errors import ResourceError
from tests.processes import Process, script


def test_one_row_a_record(run):
    record = run.write()
    table = robench.records(run.folder)
    assert len(table) == 1
    row = table.iloc[0]
    assert row.robust == record.robust_accuracy.value and row.clean_high == record.clean_accuracy.interval[1]
    assert row.defense == record.job.defense.name and row.forward == record.passes["forward"]
    assert table.robust.dtype == float and table.n.dtype.kind == "i"


def test_a_record_that_cannot_be_read_is_left_out_with_a_warning(run):
    run.write()
    (run.folder / "record.json").write_text("{")
    with pytest.warns(UserWarning, match="left out: .*truncated or not JSON"):
        table = robench.records(run.folder)
    assert not len(table) and "robust_low" in table


def test_a_folder_that_is_not_there_is_one_line():
    with pytest.raises(ResourceError, match="no such folder"):
        robench.records("nowhere")


def test_the_name_is_the_package_and_the_function(tmp_path):
    """In a process of its own, where the package was not imported before."""
    code = "import robench; assert callable(robench.records)\nfrom robench.records.record import Record\n"
    code += "assert callable(robench.records) and robench.records.record.Record is Record"
    code, _, err = Process(script, code, cwd=tmp_path).wait()
    assert code == 0, err
