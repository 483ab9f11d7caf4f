"""Several records: an unreadable one does not keep the others from being looked at, and the worst exit code stands."""

import pytest

from robench.cli import common, main
from robench.core.errors import CheckFailed, ResourceError, UsageError


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    output = capsys.readouterr()
    return ended.value.code, output.out, output.err


@pytest.mark.parametrize("command", ["verify", "check"])
def test_every_unreadable_record_is_named(command, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    code, out, err = run(capsys, command, str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 3 and out.count("FAILED: ") == 2
    assert str(tmp_path / "a") in err and str(tmp_path / "b") in err and "Traceback" not in err


def test_one_alone_fails_in_one_line(tmp_path, capsys):
    code, out, err = run(capsys, "verify", str(tmp_path / "a"))
    assert code == 3 and out == "" and err.count("\n") == 1


def test_the_worst_exit_code_stands():
    with pytest.raises(ResourceError, match="a\nb\nc"):
        common.raise_worst([("a", CheckFailed("a")), ("b", ResourceError("b")), ("c", UsageError("c"))])
    common.raise_worst([])
