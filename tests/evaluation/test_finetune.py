"""A purifier that learns from a few images of another dataset: the cards it leaves, the curve, what is refused."""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robench.catalog import Card, End, read
from robench.cli.main import main
from robench.core.errors import UsageError
from robench.defenses import load_purifier
from robench.evaluation import finetune
from robench.evaluation.dataset_transfer import Cell
from robench.evaluation.run import Options
from robench.training import train

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="LoRA needs peft")


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        found = finetune.counts(text)
    except UsageError as error:
        assert "such as 0,10,50,100" in str(error)
        return
    assert len(found) >= 2 and list(found) == sorted(set(found)) and found[0] >= 0


def test_numbers_are_sorted():
    assert finetune.counts("50, 0,10") == (0, 10, 50)


def cell(threat="Linf:0.1", purifier='maep-digits(size_mode="tile")'):
    return Cell(purifier, f"{purifier}+standard-digits", End("digits", "standard-digits", threat, 5))


@needs_peft
def test_it_leaves_a_card_that_makes_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "STEPS", 2)
    monkeypatch.setattr(finetune, "PGD_STEPS", 1)
    notes = []
    options = Options(results=tmp_path, note=notes.append)
    assert finetune.finetuned(cell(), 0, options) == cell()
    tuned = finetune.finetuned(cell(), 6, options)
    card = read(Card, tmp_path / "finetuned" / "maep-digits-size_mode-tile-digits-6.toml")
    assert tuned.purifier == tuned.subject == str(card.path)
    assert (card.family, card.classifier, card.recipe["samples"]) == ("maep", "standard-digits", 6)
    before = load_purifier("maep-digits").state_dict()
    after = load_purifier(tuned.purifier).state_dict()
    changed = {key.split(".")[0] for key in after if not after[key].equal(before[key].half().float())}
    assert changed == {"decoder_embed", "decoder_blocks", "decoder_pred"}
    again = train(str(card.path), output=tmp_path / "again.safetensors", progress=False)
    assert again.sha256 == card.sha256
    assert finetune.finetuned(cell(), 6, options) == tuned and len(notes) == 1  # taken as it is


def test_what_cannot_be_fine_tuned_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="--finetune needs a threat in Linf: digits is evaluated at L2:1"):
        finetune.finetuned(cell("L2:1"), 6, Options(results=tmp_path))
    with pytest.raises(UsageError, match=r"purifying, stage 1: .*de3"):
        finetune.finetuned(cell(purifier="de3-digits"), 6, Options(results=tmp_path))


@needs_peft
@pytest.mark.slow
def test_the_command_shows_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune, "STEPS", 1)
    monkeypatch.setattr(finetune, "PGD_STEPS", 1)
    ladder = tmp_path / "ladder.toml"
    ladder.write_text('[[rungs]]\nname = "seen"\nattack = "pgd(steps=1)"\nknowledge = "bpda"\n')
    arguments = ["run", "--defense", "maep", "--from", "digits", "--to", "digits", "--samples", "4"]
    arguments += ["--attack", str(ladder)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--finetune", "0,3", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "maep-digits before standard-digits, fine-tuned on digits" in out
    lines = [line for line in out.splitlines() if line.strip()[:2].strip() in ("0", "3")]
    assert len(lines) == 2 and (tmp_path / "finetune-maep-digits-digits.png").read_bytes()[:4] == b"\x89PNG"
