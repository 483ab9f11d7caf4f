"""Attacker knowledge: the texts of options and records, and the levels they name."""

import pytest

from robench.core.errors import UsageError
from robench.threats.knowledge import LEVELS, SPELLINGS, Knowledge, check_knowledge


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_text_comes_back_as_it_was_written(spelling):
    text = spelling.replace("NAME", "standard")
    knowledge = check_knowledge(text)
    assert str(knowledge) == text
    assert knowledge.level is LEVELS[knowledge.name]
    assert ("standard" in knowledge.description) == knowledge.level.needs_name


@pytest.mark.parametrize("text", ["", "ful", "full:standard", "transfer", "transfer:", "grey:standard"])
def test_an_option_with_a_wrong_text_is_refused(text):
    with pytest.raises(UsageError):
        check_knowledge(text)


def test_a_level_of_a_later_release_still_reads():
    knowledge = Knowledge.of("grey:standard")
    assert str(knowledge) == "grey:standard"
    assert knowledge.description == "grey (standard)"
    assert not (knowledge.level.feedback or knowledge.level.adaptive)
