"""Names are resolved at the door: one run reads each text once, however far down its meaning is needed."""

from collections import Counter

import robench
from robench import catalog
from robench.core import specs
from robench.defenses import resolution
from robench.threats.threat import Threat


def counted(monkeypatch, owner, name: str, counts: Counter) -> None:
    """Count the calls of a function by the text that it is given; a value that is read already does not count."""
    function = getattr(owner, name)

    def wrapped(text, *rest, **named):
        counts[str(text)] += isinstance(text, str)
        return function(text, *rest, **named)

    monkeypatch.setattr(owner, name, staticmethod(wrapped) if isinstance(owner, type) else wrapped)


def test_a_run_reads_each_name_once(monkeypatch, tmp_path):
    # What ships with robench is read when it is first needed, not for a run.
    for shipped in (catalog.cards, catalog.suites, catalog.protocols):
        shipped()
    cards, parsed, threats = Counter(), Counter(), Counter()
    counted(monkeypatch, resolution, "_meaning", cards)
    counted(monkeypatch, specs, "parse", parsed)
    counted(monkeypatch, Threat, "parse", threats)
    record = robench.run(
        "maep-digits+pgd-at-digits", "pgd(steps=2)", threat="Linf:0.1", samples=8, results=tmp_path
    )
    assert record.job.defense.name == "maep-digits+pgd-at-digits"
    assert cards == {"maep-digits": 1, "pgd-at-digits": 1}
    assert +threats == {"Linf:0.1": 1}
    assert {"digits", "maep-digits", "pgd-at-digits", "pgd(steps=2)"} <= parsed.keys()
    assert not {text: count for text, count in parsed.items() if count > 1}
