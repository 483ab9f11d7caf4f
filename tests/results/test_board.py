"""Boards are made from records alone, rank like with like, and never rank a doubtful row silently."""

import re

import pytest

from robench.engine.outcome import Mark
from robench.errors import ResourceError, UsageError
from robench.results.board import NO_RANK, board, collect, sections
from robench.results.statistics import Accuracy
from tests.results.fabricate import make_run

DOUBT = Mark("zero-gradients", "7 of 30 gradients are zero")


def with_robust(run, correct, **changes):
    """The run's record as it would be with another robust accuracy; written as it is."""
    import dataclasses
    import json

    record = run.write(**changes)
    content = dataclasses.replace(record, robust_accuracy=Accuracy.of(correct, 30)).to_dict()
    (run.folder / "record.json").write_text(json.dumps(content), "utf-8")


def lines(text, word):
    return [line for line in text.splitlines() if word in line]


def test_rows_are_ranked_by_robust_accuracy_and_ties_share_a_rank(tmp_path):
    for name, correct in (("low", 3), ("high", 20), ("same", 20)):
        with_robust(make_run(tmp_path, defense=name), correct)
    text = board(collect([tmp_path]))
    rows = [line.split()[:2] for line in text.splitlines() if "autoattack" in line]
    assert rows == [["1", "high"], ["1", "same"], ["3", "low"]]
    assert "digits-linf · Linf:0.04" in text
    assert "66.67 [48.8, 80.8]" in text


def test_a_doubtful_row_has_no_rank_and_its_doubt_stands_beneath(tmp_path):
    with_robust(make_run(tmp_path, defense="doubtful", health=[DOUBT]), 29)
    with_robust(make_run(tmp_path, defense="sound"), 5)
    for form in ("text", "md"):
        text = board(collect([tmp_path]), form)
        (doubtful, note) = lines(text, "doubtful")
        assert NO_RANK in doubtful and "(1)" in doubtful
        assert "(1) doubtful: zero-gradients: 7 of 30" in note
        (sound,) = lines(text, "sound")
        assert re.search(r"^\W*1\b", sound)


def test_oblivious_and_adaptive_figures_are_never_ranked_together(tmp_path):
    with_robust(make_run(tmp_path, defense="easy", knowledge="oblivious"), 28)
    with_robust(make_run(tmp_path, defense="hard"), 3)
    (section,) = sections(collect([tmp_path]))
    assert [[row.rank for row in group] for group in section.groups] == [["1"], ["1"]]
    assert [group[0].record.job.defense.name for group in section.groups] == ["hard", "easy"]


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
    assert "bad/autoattack/record.json is truncated or not JSON" in text


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
    (row,) = lines(md, "autoattack")
    assert len(re.findall(r"(?<!\\)\|", row)) == 9
    assert r"\<img" in row


def test_a_board_ends_in_one_newline_and_has_no_trailing_spaces(run):
    run.write()
    for form in ("text", "md"):
        text = board([run.record()], form)
        assert text.endswith("\n") and not text.endswith("\n\n")
        assert all(line == line.rstrip() for line in text.splitlines())
