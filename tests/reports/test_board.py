"""Boards are made from records alone, rank like with like, and never rank a suspicious row silently."""

import csv
import dataclasses
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robench.core.errors import ResourceError, UsageError
from robench.core.sanitize import plain_lines
from robench.engine.outcome import ResultWarning
from robench.records.collection import collect
from robench.records.record import SuiteFacts
from robench.reports.board import NO_RANK, Choice, board, sections
from robench.reports.leaderboards import leaderboards
from robench.statistics.accuracy import Accuracy, mcnemar, mean_and_deviation
from tests.fabricate import make_run

WARNING = ResultWarning("zero-gradients", "7 of 30 gradients are zero")


def with_robust(run, correct, **changes):
    """The run's record as it would be with another robust accuracy: the first `correct` images held."""
    n = run.job.n
    record = run.write(**changes)
    content = dataclasses.replace(record, robust_accuracy=Accuracy.of(correct, n)).to_dict()
    (run.folder / "record.json").write_text(json.dumps(content), "utf-8")
    rows = pq.read_table(run.folder / "samples.parquet")
    fooled = pa.array(["" if i < correct else "apgd" for i in range(n)])
    rows = rows.set_column(rows.schema.get_field_index("fooled_by"), "fooled_by", fooled)
    pq.write_table(rows, run.folder / "samples.parquet")


def lines(text, word):
    return [line for line in text.splitlines() if word in line]


def test_rows_are_ranked_by_robust_accuracy_and_ties_share_a_rank(tmp_path):
    for name, correct in (("low", 3), ("high", 20), ("same", 20)):
        with_robust(make_run(tmp_path, defense=name), correct)
    text = board(collect([tmp_path]))
    rows = [line.split()[:2] for line in text.splitlines() if "[" in line]
    assert rows == [["1", "high"], ["1", "same"], ["3", "low"]]
    assert "digits · Linf:0.04 · autoattack · 30 images (protocol digits-linf)" in text
    assert "66.67 [48.8, 80.8]" in text


def test_a_suspicious_row_has_no_rank_and_its_warning_stands_beneath(tmp_path):
    with_robust(make_run(tmp_path, defense="suspicious", health=[WARNING]), 29)
    with_robust(make_run(tmp_path, defense="sound"), 5)
    for form in ("text", "md"):
        text = board(collect([tmp_path]), form)
        (suspicious, note) = lines(text, "suspicious")
        assert NO_RANK in suspicious and "not ranked: zero-gradients" in suspicious
        assert "suspicious: zero-gradients: 7 of 30" in note.replace("\\", "")
        (sound,) = lines(text, "sound")
        assert re.search(r"^\W*1\b", sound)


def test_oblivious_and_adaptive_figures_are_never_ranked_together(tmp_path):
    with_robust(make_run(tmp_path, defense="easy", knowledge="oblivious"), 28)
    with_robust(make_run(tmp_path, defense="hard"), 3)
    (section,) = sections(collect([tmp_path]))
    assert [[row.rank for row in group] for group in section.groups] == [["1"], ["1"]]
    assert [group[0].record.job.defense.name for group in section.groups] == ["hard", "easy"]
    text = board(collect([tmp_path]), "md")
    before, after = text.split("<details>")
    assert "hard" in before and "easy" not in before and "easy" in after
    text = board(collect([tmp_path]))
    assert "easy" not in text and "--more shows 1 more: autoattack@oblivious (1)" in text
    assert "easy" in board(collect([tmp_path]), choice=Choice(more=True))


def test_each_protocol_and_threat_has_its_own_table(tmp_path):
    make_run(tmp_path, protocol="a").write()
    make_run(tmp_path, protocol="b").write()
    make_run(tmp_path, protocol="b", threat="L2:0.5", defense="other").write()
    assert board(collect([tmp_path]), "md").count("### ") == 3


def test_superseded_and_partial_records_are_left_out(tmp_path):
    old, new = make_run(tmp_path, draw=1), make_run(tmp_path, draw=2)
    old.write()
    found = new.write()
    (new.folder / ".partial").mkdir()
    (new.folder / ".partial" / "record.json").write_text("{}")
    assert list(collect([tmp_path])) == [found]


def test_an_unreadable_record_is_named_and_the_others_are_shown(tmp_path):
    good, bad = make_run(tmp_path, defense="good"), make_run(tmp_path, defense="bad")
    good.write()
    bad.write()
    (bad.folder / "record.json").write_text('{"schema": 1')
    text = board(collect([tmp_path]))
    assert lines(text, "good")
    assert "Left out:" in text
    assert "bad/autoattack/record.json: truncated or not JSON" in text


def test_a_record_is_counted_once_however_it_was_named(tmp_path, run):
    run.write()
    assert len(collect([tmp_path, tmp_path / "digits-linf", run.folder, run.folder / "record.json"])) == 1


def test_missing_folders_formats_and_records_are_said(tmp_path):
    with pytest.raises(ResourceError, match=r"nowhere: no such folder: .*robench run"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match='unknown format "pdf": expected one of text, md'):
        board([], "pdf")
    assert "robench run --defense mimir" in board(collect([tmp_path]))


def test_hostile_names_break_neither_table_nor_terminal(tmp_path):
    make_run(tmp_path, defense="a|b\x1b[31m<img src=x>").write()
    text, md = board(collect([tmp_path])), board(collect([tmp_path]), "md")
    assert "\x1b" not in text + md
    (row,) = lines(md, "img")
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
    assert r"\<img" in row


def test_a_board_ends_in_one_newline_and_has_no_trailing_spaces(run):
    run.write()
    for form in ("text", "md"):
        text = board([run.record()], form)
        assert text.endswith("\n") and not text.endswith("\n\n")
        assert all(line == line.rstrip() for line in text.splitlines())


def ranks(root):
    (section,) = sections(collect([root]))
    return {row.record.job.defense.name: row.rank for group in section.groups for row in group}


def test_rows_a_few_images_apart_share_a_rank(tmp_path):
    for name, correct in (("first", 28), ("second", 24), ("third", 22), ("last", 3)):
        with_robust(make_run(tmp_path, defense=name), correct)
    # 28 against 24: four images in four, p = 0.125; 28 against 22: six in six, p = 0.031.
    assert ranks(tmp_path) == {"first": "1", "second": "1", "third": "2", "last": "4"}


def test_without_samples_there_is_no_rank(run):
    record = run.record()
    (section,) = sections([record])
    assert section.groups[0][0].rank == NO_RANK
    assert "no-samples" in board([record])


@given(b=st.integers(0, 400), c=st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(b, c):
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_seeds_are_taken_together(tmp_path):
    for seed, correct in ((0, 10), (1, 14), (2, 12)):
        with_robust(make_run(tmp_path, seed=seed), correct)
    with_robust(make_run(tmp_path, defense="pgd-at-digits"), 5)
    records = collect([tmp_path])
    for choice in (Choice(), Choice(only=["mimir-digits"])):
        text = " ".join(board(records, choice=choice).split())
        assert "robust 40.00 ± 6.67 %, mean and standard deviation of 3 seeds" in text
    assert "3 seeds" not in board(records, choice=Choice(only=["pgd-at-digits"]))
    assert mean_and_deviation([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 1.2909944487358056))


def test_best_known_is_the_lowest_of_all_records_of_the_weights(tmp_path):
    with_robust(make_run(tmp_path), 20)
    with_robust(make_run(tmp_path, knowledge="oblivious"), 9)
    rows = [row for section in sections(collect([tmp_path])) for group in section.groups for row in group]
    assert [row.best_known.correct for row in rows] == [9, 9]


def test_claims_stand_beside_what_was_measured(tmp_path):
    claimed = make_run(tmp_path, defense="mimir-vit-b-cifar10", threat="Linf:8/255")
    job = dataclasses.replace(claimed.job, dataset=dataclasses.replace(claimed.job.dataset, name="cifar10"))
    dataclasses.replace(claimed, job=job).write()
    (section,) = sections(collect([tmp_path]))
    assert section.groups[0][0].claimed == 54.55
    assert "claimed %" in board(collect([tmp_path]), "md")
    make_run(tmp_path / "b").write()
    assert "claimed %" not in board(collect([tmp_path / "b"]), "md")


def test_csv_is_one_table_and_opens_no_formula(tmp_path):
    make_run(tmp_path, defense="=cmd()", protocol="a").write()
    make_run(tmp_path, protocol="b").write()
    rows = list(csv.DictReader(io.StringIO(board(collect([tmp_path]), "csv"))))
    assert [(row["table"], row["protocol"]) for row in rows] == [("leaderboard", "a"), ("more", "b")]
    assert rows[0]["defense"] == "'=cmd()"
    assert float(rows[1]["robust_low"]) <= float(rows[1]["robust"]) <= float(rows[1]["robust_high"])


def test_latex_escapes_names_and_shows_the_best_in_bold(tmp_path):
    with_robust(make_run(tmp_path, defense="a_b & 50%"), 20)
    with_robust(make_run(tmp_path, defense="plain"), 10)
    text = board(collect([tmp_path]), "latex")
    assert r"a\_b \& 50\%" in text and text.count(r"\toprule") == 1
    (line,) = lines(text, "a\\_b")
    assert r"\textbf{66.67} [48.8, 80.8]" in line
    assert r"\textbf" not in "".join(cell for cell in lines(text, "plain")[0].split("&")[3:4])
    bare = board(collect([tmp_path]), "latex", choice=Choice(intervals=False))
    assert "[48.8" not in bare


def test_another_column_can_come_first(tmp_path):
    for name, correct in (("b", 20), ("a", 10)):
        with_robust(make_run(tmp_path, defense=name), correct)
    text = board(collect([tmp_path]), sort="defense")
    assert text.index("  a ") < text.index("  b ")
    with pytest.raises(UsageError, match='unknown column "height"'):
        board(collect([tmp_path]), sort="height")


def test_json_escapes_what_a_terminal_would_obey(tmp_path):
    name = "a\u202eb\x9b\U000e0041é"
    with_robust(make_run(tmp_path, defense=name), 15)
    text = board(collect([tmp_path]), "json")
    assert json.loads(text)["rows"][0]["defense"] == name and "é" in text
    assert text == plain_lines(text)


def test_json_has_numbers_as_numbers_and_null_for_what_is_not_known(tmp_path):
    with_robust(make_run(tmp_path, health=[WARNING]), 15)
    (row,) = json.loads(board(collect([tmp_path]), "json"))["rows"]
    assert (row["robust"], row["n"], row["rank"], row["claimed"]) == (50.0, 30, None, None)
    low, high = Accuracy.of(15, 30).interval
    assert (row["robust_low"], row["robust_high"]) == pytest.approx((100 * low, 100 * high), abs=1e-3)
    assert row["warnings"] == "not ranked: zero-gradients"


def test_the_leaderboard_is_the_protocols_suite_on_the_most_images(tmp_path):
    make_run(tmp_path, defense="few", n=30).write()
    make_run(tmp_path, defense="many", n=60, protocol="many-images").write()
    make_run(
        tmp_path, defense="weak", n=90, protocol="more-images", suite=SuiteFacts("pgd", ("apgd", "square"))
    ).write()
    (found,) = leaderboards(collect([tmp_path]))
    assert [row.name for row in found.main.rows] == ["many"]
    assert [row.name for table in found.more for row in table.rows] == ["few", "weak"]


def test_rows_and_columns_are_chosen_and_ranks_stay(tmp_path):
    for name, correct in (("first-a", 28), ("second-b", 10), ("third-b", 2)):
        with_robust(make_run(tmp_path, defense=name), correct)
    records = collect([tmp_path])
    text = board(
        records, "latex", choice=Choice(only=["*-b"], columns=["rank", "defense", "robust"], header=False)
    )
    assert [line.split(" & ")[:2] for line in text.splitlines()] == [["2", "second-b"], ["3", "third-b"]]
    assert text.endswith(" \\\\\n") and "toprule" not in text
    flat = board(records, "csv", choice=Choice(only=["first-a", "suite=auto*"], columns=["defense", "clean"]))
    assert flat.splitlines()[0] == "defense,clean,clean_low,clean_high" and len(flat.splitlines()) == 2
    for only, message in ((["frist-a"], "did you mean first-a"), (["suite=pgd"], "no row matches --only suite=pgd"),
                          (["colour=red"], 'unknown field "colour"')):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            board(records, choice=Choice(only=only))
    with pytest.raises(UsageError, match='unknown column "height"'):
        board(records, choice=Choice(columns=["height"]))


def test_points_of_a_curve_are_one_row_and_no_tables(tmp_path):
    for eps in (0.01, 0.02, 0.05):
        make_run(tmp_path, protocol=f"digits-Linf-{eps}-n30", threat=f"Linf:{eps}").write()
    make_run(tmp_path).write()
    records = collect([tmp_path])
    text = board(records, "md")
    assert text.count("###") == 2 and len(lines(text, "Linf radius")) == 1
    (row,) = lines(text, "Linf radius")
    assert "0.01: " in row and "0.02: " in row and "0.04: " in row
    rows = json.loads(board(records, "json"))["rows"]
    assert sorted(row["table"] for row in rows) == ["leaderboard", "series", "series", "series"]


def test_a_sweep_of_a_setting_is_one_row(tmp_path):
    for name in ("de3-digits", "de3-digits(sigma=0)", "de3-digits(sigma=140)"):
        make_run(tmp_path, defense=name).write()
    (found,) = leaderboards(collect([tmp_path]))
    assert [row.name for row in found.main.rows] == ["de3-digits"]
    (one,) = found.series
    assert (one.setting, [value for value, _ in one.points]) == ("sigma", [0, 70, 140])
    assert len(one.sparkline) == 3 and one.values.startswith("0: ")
