"""Commands that were options of `robench run`: both spellings make the same records, and help fits a screen."""

import json

import click
import pytest
from click.testing import CliRunner

from robench.cli import main
from robench.cli.main import cli
from robench.records.record import VOLATILE

SMALL = ["--samples", "8", "--threat", "Linf:0.1", "--json"]
LADDER = """[[rungs]]
name = "obl"
attack = "pgd(steps=1)"
knowledge = "oblivious"
"""
SPELLINGS = {
    "sweep": (
        ["sweep", "attack.steps=1,2", "--defense", "standard", "--attack", "pgd"],
        ["run", "--sweep", "attack.steps=1,2", "--defense", "standard", "--attack", "pgd"],
    ),
    "curve": (
        ["curve", "0:0.1:2", "--defense", "standard", "--attack", "fgsm"],
        ["run", "--curve", "0:0.1:2", "--defense", "standard", "--attack", "fgsm"],
    ),
    "transfer": (
        ["transfer", "--from", "digits", "--to", "digits", "--defense", "maep", "--attack", "LADDER"],
        ["run", "--from", "digits", "--to", "digits", "--defense", "maep", "--attack", "LADDER"],
    ),
}


def records(capsys, folder, arguments: list[str]) -> list[dict]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *SMALL, "--results", str(folder)])
    output = capsys.readouterr()
    assert ended.value.code == 0, output.err
    made = json.loads(output.out)["records"]
    return [{key: value for key, value in record.items() if key not in VOLATILE} for record in made]


@pytest.mark.parametrize("name", SPELLINGS)
def test_both_spellings_make_the_same_records(name, capsys, tmp_path):
    (tmp_path / "ladder.toml").write_text(LADDER)
    new, old = (
        records(
            capsys,
            tmp_path / str(i),
            [word.replace("LADDER", str(tmp_path / "ladder.toml")) for word in words],
        )
        for i, words in enumerate(SPELLINGS[name])
    )
    for record in (*new, *old):
        for attack in record["attacks"]:
            attack.pop("seconds")
    assert new and new == old


@pytest.mark.parametrize("name", ["run", "sweep", "curve", "transfer", "diagnose"])
def test_help_fits_a_terminal(name):
    text = CliRunner().invoke(cli, [name, "--help"], terminal_width=80).output
    assert len(text.splitlines()) <= 50 and max(map(len, text.splitlines())) <= 80


def test_help_has_groups_and_hides_the_options_of_before():
    text = CliRunner().invoke(cli, ["run", "--help"], terminal_width=80).output
    for title in ("What to run:", "How to run it:", "Records and output:"):
        assert title in text
    assert not any(option in text for option in ("--sweep", "--curve", "--from", "--to", "--finetune"))
    command = cli.get_command(click.Context(cli), "run")
    assert command and {"swept", "radii", "sources", "targets"} <= {item.name for item in command.params}
