"""Images that a certifier proves are not attacked, and every verdict is as without it."""

import json
import shutil
import signal
import time

import pytest

import robench
from robench.cli import main
from robench.core.errors import UsageError
from robench.data import load_dataset
from robench.defenses import load
from robench.evaluation.certify_first import check_method
from robench.records.samples import read_samples
from robench.threats.threat import Threat
from robench.verification.replay import Sample
from robench.verification.verify import report
from tests.certification.cases import write_images
from tests.processes import Command

NETWORK, DATA = "python:tests.certification.cases.relus", "npz:own.npz(classes=2)"
CHOICE = {"dataset": DATA, "threat": "Linf:0.01", "samples": 12, "workers": 1}
ATTACK = 'apgd(loss="ce", steps=8)+square(queries=30)'
WORDS = (
    "run",
    "--defense",
    NETWORK,
    "--attack",
    ATTACK,
    "--dataset",
    DATA,
    "--threat",
    "Linf:0.01",
    "--samples",
    "12",
)
FIRST = (*WORDS, "--certify-first", "crown")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with images, the record with a certifier and the record without one."""
    place = tmp_path_factory.mktemp("first")
    write_images(place / "own.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        first = robench.run(NETWORK, ATTACK, **CHOICE, certify_first="crown", results=place / "first")
        plain = robench.run(NETWORK, ATTACK, **CHOICE, results=place / "plain")
    return place, first, plain


def rows_of(record):
    return read_samples(record.folder).to_pydict()


def test_verdicts_are_the_same_and_proven_images_cost_nothing(both):
    _, first, plain = both
    with_proofs, without = rows_of(first), rows_of(plain)
    for name in ("id", "fooled_by", "prediction", "steps", "distance"):
        assert with_proofs[name] == without[name]
    proven = [row for row, by in enumerate(with_proofs["proven_by"]) if by]
    assert 0 < len(proven) < 12 and {with_proofs["proven_by"][row] for row in proven} == {"crown"}
    assert "proven_by" not in without and "proven" not in plain.extra
    for row in range(12):
        spent = 0 if row in proven else without["forward"][row]
        assert with_proofs["forward"][row] == spent
    assert (first.robust_accuracy, first.key) == (plain.robust_accuracy, plain.key)
    saved = plain.passes["forward"] - first.passes["forward"]
    assert first.extra["proven"]["images"] == len(proven) and saved > 0
    assert first.attacks[0].attacked == plain.attacks[0].attacked - len(proven)


def test_a_record_with_proofs_is_verified_and_attacked_again(both, monkeypatch):
    place, first, _ = both
    monkeypatch.chdir(place)
    images, loaded = load_dataset(DATA, "test", 12), load(NETWORK, DATA, image_size=8)
    result = report(first.folder, loaded, images, sample=Sample.of(12, 0))
    assert result.broken == [] and {"proven.by", "proven.images", "samples.proven_by"} <= set(result.held)
    assert any("proven again" in finding.detail for finding in result.findings)


@pytest.mark.parametrize("change", ["images", "by", "none", "all"])
def test_a_false_proof_fails_verification(both, monkeypatch, tmp_path, change):
    place, first, _ = both
    monkeypatch.chdir(place)
    shutil.copytree(first.folder, tmp_path / "false")
    file = tmp_path / "false" / "record.json"
    content = json.loads(file.read_text())
    if change == "images":
        content["proven"]["images"] += 1
    elif change == "by":
        content["proven"]["by"] = "ibp"
    elif change == "none":
        del content["proven"]
    else:
        # Proofs of a larger ball than the certifier can prove.
        content["threat"] = "Linf:0.5"
    file.write_text(json.dumps(content))
    result = report(tmp_path / "false", load(NETWORK, DATA, image_size=8), load_dataset(DATA, "test", 12))
    named = {finding.field for finding in result.broken}
    assert named & {"proven", "proven.images", "proven.by", "samples.proven_by"}


def test_shares_and_interruptions_change_nothing(both, monkeypatch):
    place, first, _ = both
    monkeypatch.chdir(place)
    command = Command(*FIRST, "--workers", "2", "--results", "again", cwd=place, saves=True)
    deadline = time.monotonic() + 120
    while (
        not list((place / "again").rglob("state")) and command.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    command.send_signal(signal.SIGKILL)
    command.wait()
    again = robench.run(
        NETWORK, ATTACK, **{**CHOICE, "workers": 2}, certify_first="crown", results=place / "again"
    )
    assert rows_of(again) == rows_of(first) and again.extra["proven"] == first.extra["proven"]
    assert not list((place / "again").rglob("*.partial"))


def test_the_summary_says_what_was_proven(both, monkeypatch, capsys):
    place, first, _ = both
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as end:
        main([*FIRST, "--results", str(place / "first")])
    out = capsys.readouterr().out
    assert (
        end.value.code == 0
        and f"{first.extra['proven']['images']} images proven by crown and not attacked" in out
    )


def test_what_proves_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="majority vote"):
        robench.run("standard-digits", "pgd", samples=2, certify_first="smoothing")
    with pytest.raises(UsageError, match="mimir-digits: no bound known for LayerNorm"):
        robench.run("mimir-digits", "pgd", samples=2, certify_first="crown")
    with pytest.raises(UsageError, match="no bound known by crown for fog"):
        robench.run("standard-digits", "pgd", threat="fog:0.1", samples=2, certify_first="crown")


def test_a_method_proves_no_threat_but_its_own():
    with pytest.raises(UsageError, match="no bound known by crown for fog"):
        check_method("crown", Threat.parse("fog:0.1"))
    assert check_method("crown", Threat.parse("Linf:0.1"))[0] == "crown"
