"""RobustBench's files: ours are as theirs, theirs are claims that nothing of ours is ranked with."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robench import catalog
from robench.cli.main import main
from robench.core.errors import ResourceError, UsageError
from robench.records.collection import collect
from robench.records.record import SuiteFacts
from robench.reports.board import Choice, board
from robench.reports.robustbench import model_info, read_claims, write_infos
from tests.fabricate import make_run
from tests.reports.test_papers import AUTOATTACK

# As in RobustBench's model_info/imagenet/Linf, shortened.
THEIRS = {
    "link": "https://arxiv.org/abs/0000.00000", "name": "A paper", "authors": "A, B", "additional_data": False,
    "number_forward_passes": 1, "dataset": "digits", "venue": "arXiv", "architecture": "Swin-L", "eps": "8/255",
    "clean_acc": "78.80", "reported": "62.12", "autoattack_acc": "62.12", "external": "58.92",
    "footnote": "by <b>APGD</b>", "unreliable": True,
}  # fmt: skip


def their_file(root, name="Theirs2024", norm="Linf", **changes):
    path = root / "model_info" / "digits" / norm / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {key: value for key, value in (THEIRS | changes).items() if value != "gone"}
    path.write_text(json.dumps(said))
    return path


def ours(root, **changes):
    run = make_run(root, suite=SuiteFacts("autoattack", AUTOATTACK), threat="Linf:8/255", **changes)
    run.write()
    return run


def test_their_claims_are_read_with_the_norm_of_their_folder(tmp_path):
    their_file(tmp_path)
    their_file(tmp_path, "Other", "L2", eps="0.5", external="gone", unreliable=False)
    (tmp_path / "model_info" / "digits" / "corruptions").mkdir()
    (tmp_path / "model_info" / "digits" / "corruptions" / "c.json").write_text("{}")
    l2, linf = sorted(read_claims([tmp_path / "model_info"]), key=lambda claim: claim.threat)
    assert (l2.threat, l2.best_known, l2.warning) == ("L2:0.5", None, "")
    assert (linf.name, linf.threat, linf.clean, linf.robust, linf.best_known) == (
        "Theirs2024", "Linf:8/255", 78.80, 62.12, 58.92,
    )  # fmt: skip


def test_claims_stand_apart_and_change_no_rank(tmp_path):
    ours(tmp_path / "results")
    found = collect([tmp_path / "results"])
    their_file(tmp_path)
    claims = read_claims([tmp_path / "model_info"])
    for form in ("text", "md", "latex"):
        alone, made = board(found, form), board(found, form, width=160, choice=Choice(claims=claims))
        (row,) = [line for line in made.splitlines() if "Theirs2024" in line and "claimed" in line]
        cells = (
            [cell.strip(" \\") for cell in row.replace("&", "|").split("|")]
            if form != "text"
            else row.split()
        )
        assert "62.12" in cells and "58.92" in cells
        (own,) = [line for line in made.splitlines() if "mimir-digits" in line]
        (before,) = [line for line in alone.splitlines() if "mimir-digits" in line]
        assert own.split()[:2] == before.split()[:2]
        assert "not ranked here" in made
    assert "<b>" not in board(found, "md", choice=Choice(claims=claims))
    assert board(found, "csv", choice=Choice(claims=claims)) == board(found, "csv")


def test_claims_of_another_threat_have_a_table_of_their_own(tmp_path):
    ours(tmp_path / "results")
    their_file(tmp_path, eps="4/255")
    made = board(collect([tmp_path / "results"]), choice=Choice(claims=read_claims([tmp_path])))
    assert "digits · Linf:4/255 · claims only" in made


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean_acc": "gone"}, "'clean_acc' is missing"),
        ({"autoattack_acc": "many"}, "could not convert"),
        ({"clean_acc": "101"}, "outside 0 to 100 %"),
        ({"clean_acc": "nan"}, "outside 0 to 100 %"),
        ({"eps": None}, "malformed radius"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, changes, said):
    path = their_file(tmp_path, **changes)
    with pytest.raises(ResourceError, match=said) as caught:
        read_claims([tmp_path])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_anything_else_is_refused_and_never_a_traceback(tmp_path, value):
    path = tmp_path / "Linf" / "a.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
    with pytest.raises(ResourceError, match="is not a model_info file of RobustBench"):
        read_claims([path])


def test_our_record_becomes_a_file_of_theirs_that_reads_back(tmp_path):
    run = ours(tmp_path / "results", defense="mimir-digits")
    (path,) = write_infos(collect([tmp_path / "results"]), tmp_path / "out")
    assert path == tmp_path / "out" / "model_info" / "digits" / "Linf" / "mimir-digits.json"
    said = json.loads(path.read_text())
    assert (
        set(said) <= set(THEIRS)
        and said["link"] == "https://arxiv.org/abs/2312.04960"
        and said["venue"] is None
    )
    (claim,) = read_claims([path])
    record = run.record()
    assert claim.robust == pytest.approx(100 * record.robust_accuracy.value, abs=0.005)
    assert claim.threat == "Linf:8/255"


def test_a_record_of_something_else_is_not_exported_as_autoattack(tmp_path):
    for changes in ({"knowledge": "oblivious"}, {"suite": SuiteFacts("autoattack", ("pgd",))}):
        record = make_run(tmp_path, **{"suite": SuiteFacts("autoattack", AUTOATTACK), **changes}).record()
        with pytest.raises(UsageError, match=r"RobustBench's files need AutoAttack \(standard\)"):
            model_info(record)


def test_the_commands_take_and_give_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours(tmp_path / "results")
    their_file(tmp_path)
    for arguments, code, said in (
        (["board", "--claims", "model_info"], 0, "Theirs2024"),
        (["board", "--claims", "nowhere"], 3, "nowhere: no such file"),
        (
            ["board", "--claims", "model_info", "--format", "csv"],
            2,
            "--claims does not apply to --format csv",
        ),
        (["board", "--claims", "model_info", "--format", "html"], 0, "1 records"),
        (
            ["results", "export", "results", "--model-info", "--output", "out"],
            0,
            "out/model_info/digits/Linf/mimir-digits.json",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        assert ended.value.code == code and said in told.out + told.err
    page = (tmp_path / "board" / "index.html").read_text()
    claimed = page[page.index("digits · Linf:8/255 · claims only") :]
    assert "Theirs2024" in claimed and "62.12" in claimed and "not ranked here" in claimed
    # Footnotes are words of others.
    assert "<b>APGD</b>" not in page and "by &lt;b&gt;APGD&lt;/b&gt;" in claimed


def test_a_board_says_what_its_protocol_wants_and_refuses_columns_it_has_not(tmp_path, monkeypatch):
    wanted = catalog.Protocol(
        "p", "digits", "Linf:8/255", 30, suites=["autoattack", "pgd-20"], knowledge=["full", "bpda"]
    )
    monkeypatch.setitem(catalog.protocols(), "p", wanted)
    ours(tmp_path, protocol="p")
    made = board(collect([tmp_path]), "md")
    assert (
        "- not yet run under pgd-20: robench run --defense mimir-digits --attack pgd-20 --protocol p\n"
        in made
    )
    assert (
        made.count("not yet run under") == 3 and "--attack autoattack --protocol p --knowledge bpda" in made
    )
    of_files = dataclasses.replace(wanted, dataset="cifar10")
    monkeypatch.setitem(catalog.protocols(), "p", of_files)
    assert "--attack pgd-20 --protocol p --data-dir DIR\n" in board(collect([tmp_path]), "md")
    monkeypatch.setitem(
        catalog.protocols(), "p", catalog.Protocol("p", "digits", "Linf:8/255", 30, columns=["rank", "high"])
    )
    with pytest.raises(UsageError, match=r'unknown column of the protocol p: "high": expected one of '):
        board(collect([tmp_path]))
    monkeypatch.setitem(
        catalog.protocols(), "p", catalog.Protocol("p", "digits", "Linf:8/255", 30, columns=["defense", "n"])
    )
    assert board(collect([tmp_path]), "md").splitlines()[2] == "| defense | n |"
