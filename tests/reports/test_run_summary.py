"""What a terminal shows: every figure, within 80 columns, names as they are."""

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from robench.core.formatting import count, duration, markdown
from robench.core.sanitize import plain
from robench.engine.outcome import ResultWarning
from robench.records.record import read_record
from robench.reports.run_summary import cost, describe, run_table
from robench.statistics.accuracy import Accuracy, interval, percent
from tests.fabricate import PARAMETERS

SHIPPED = Path(__file__).resolve().parents[2] / "results" / "shipped"
WARNING = ResultWarning("zero-gradients", "7 of 30 gradients are zero")


def shown(renderable, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


def test_a_run_shows_its_figures_attacks_cost_and_doubts(runs):
    record = runs(health=[WARNING]).write()
    text = shown(run_table([record]))
    for part in (
        "mimir-digits !",
        "autoattack",
        "Linf:0.04",
        percent(record.clean_accuracy),
        percent(record.robust_accuracy),
        interval(record.robust_accuracy),
        "apgd",
        "! zero-gradients: 7 of 30",
        cost(record),
    ):
        assert part in text
    survivors = [str(spent.survivors) for spent in record.attacks]
    lines = [line.split() for line in text.splitlines() if line.startswith(("apgd", "square"))]
    assert [line[-5] for line in lines] == survivors


def test_several_runs_share_one_table(runs):
    records = [runs().write(), runs(defense="pgd-at-digits", knowledge="oblivious", seed=2).write()]
    text = shown(run_table(records))
    assert text.count("robust %") == 1
    assert "@oblivious+seed2" in text
    assert "pgd-at-digits under autoattack@oblivious+seed2" in text


def test_long_and_hostile_names_neither_break_the_table_nor_reach_the_terminal(runs):
    text = shown(run_table([runs(defense="evil[/red]\x1b[2J" + "x" * 90).write()]))
    assert "\x1b" not in text
    assert "evil[/red]" in text


def test_a_description_says_where_the_figures_come_from(run):
    record = run.write()
    text = shown(describe(record))
    for part in (record.command, record.key[:12], record.finished, record.device[:12], f"{PARAMETERS}"):
        assert part in text


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (9.46, "9.5"),
        (9.6, "10"),
        (999, "999"),
        (999.7, "1k"),
        (12_345, "12.3k"),
        (999_700, "1M"),
        (4_560_000, "4.56M"),
    ],
)
def test_counts_are_written_short(number, expected):
    assert count(number) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.418, "0.42 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (11_220, "3 h 07 min"),
    ],
)
def test_durations_are_written_for_people(seconds, expected):
    assert duration(seconds) == expected


def test_names_are_made_safe():
    assert plain("a\x1b[31m\nb\u202ec") == "a�[31m�b�c"
    assert markdown("a|b*c<script>") == r"a\|b\*c\<script\>"


def test_figures_are_written_alike_everywhere():
    accuracy = Accuracy.of(2984, 5000)
    assert (percent(accuracy), interval(accuracy)) == ("59.68", "[58.3, 61.0]")


def test_a_run_too_short_to_time_claims_no_speed(run):
    record = dataclasses.replace(run.record(), seconds=0.4)
    assert "images/s" not in cost(record)
    assert "images/s" in cost(dataclasses.replace(record, seconds=2.0))


def test_a_randomised_defense_shows_its_accuracy_over_the_draws():
    record = read_record(SHIPPED / "digits-linf" / "nim-mim-digits" / "autoattack")
    text = shown(describe(record))
    lines = [line.strip() for line in text.splitlines()]
    for name, share in record.extra["stochastic"]["robust"].items():
        clean = record.extra["stochastic"]["clean"][name]["value"]
        (line,) = [line for line in lines if line.startswith(name.replace("_", " "))]
        figures = line.split()[len(name.split("_")) :]
        assert (figures[0], figures[3]) == (f"{100 * clean:.2f}", f"{100 * share['value']:.2f}")
    assert "10 fresh draws clean % robust %" in " ".join(text.split())
