"""`robench challenge`: adversarial images from elsewhere lower the best known accuracy, and no others do."""

import shutil

import pytest
import torch

import robench
from robench.cli import main
from robench.core.errors import UsageError
from robench.data import load_dataset
from robench.defenses import load
from robench.evaluation.challenge import challenge
from robench.records.certificates import read_certificates
from robench.records.collection import collect
from robench.records.inputs import images_of
from robench.records.samples import read_samples
from robench.records.submission import Submission
from robench.reports.board import sections
from robench.verification.verify import verify

N, THREAT, EPS = 20, "Linf:0.13", 0.13


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    """A record of a weak attack, which leaves images for others to fool."""
    place = tmp_path_factory.mktemp("weak")
    robench.run("mimir-digits", "fgsm", samples=N, threat=THREAT, results=place / "results", workers=1)
    return place


@pytest.fixture(scope="module")
def stronger():
    """Images of a stronger attack, from plain torch."""
    images = load_dataset("digits", "test", N)
    model = robench.load_defense("mimir", dataset="digits")
    x_adv = images.x.clone()
    for _ in range(30):
        x_adv.requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x_adv), images.y)
        (grad,) = torch.autograd.grad(loss, x_adv)
        step = (x_adv + 0.02 * grad.sign()).detach()
        x_adv = (images.x + (step - images.x).clamp(-EPS, EPS)).clamp(0, 1)
    return x_adv


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch, weak):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weak, tmp_path, dirs_exist_ok=True)
    (record,) = collect([tmp_path / "results"])

    def call(*arguments: str):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return end.value.code, out, err

    return lambda *rest: call(rest[0], str(record.folder), *rest[1:])


def survivors(record):
    rows = read_samples(record.folder).to_pydict()
    return {sample for sample, by in zip(rows["id"], rows["fooled_by"], strict=True) if by == ""}


def test_stronger_images_lower_the_best_known_accuracy_and_verify(cli, tmp_path, stronger):
    torch.save({"adv_complete": stronger}, tmp_path / "mine.pt")
    code, out, err = cli("challenge", "mine.pt", "--finder", "A. Turing")
    assert code == 0, err
    records = {record.job.suite.name: record for record in collect([tmp_path / "results"])}
    fgsm, new = records.pop("fgsm"), records.popitem()[1]
    assert 'finder="A. Turing"' in new.job.suite.name
    fooled = survivors(fgsm) - survivors(new)
    assert len(fooled) >= 3, "the attack of this test must be stronger"
    assert f"{len(fooled)} of them survived fgsm" in out
    both = len(survivors(fgsm) & survivors(new))
    assert f"best known robust accuracy {100 * both / N:.2f} %" in out
    rows = [row for section in sections([fgsm, new]) for group in section.groups for row in group]
    assert {row.best_known.correct for row in rows} == {both}
    # The kept examples are those submitted, up to the rounding of records.
    held = read_certificates(new.folder)
    images = load_dataset("digits", "test", N)
    rows_of = [images.ids.tolist().index(sample) for sample in held.ids.tolist()]
    delta = (stronger - images.x)[rows_of]
    assert (held.delta[list(range(len(held)))] - delta).abs().max() <= EPS / 100
    with pytest.raises(SystemExit) as end:
        main(["verify", str(new.folder)])
    assert end.value.code == 0


def test_a_few_images_are_named_by_their_ids(cli, tmp_path, stronger):
    ids = load_dataset("digits", "test", N).ids
    torch.save({"x_adv": stronger[[3, 1]], "ids": ids[[3, 1]]}, tmp_path / "two.pt")
    assert cli("challenge", "two.pt", "--finder", "me")[0] == 0
    (new,) = [r for r in collect([tmp_path / "results"]) if "submitted" in r.job.suite.name]
    rows = read_samples(new.folder).to_pydict()
    fooled = {sample for sample, by in zip(rows["id"], rows["fooled_by"], strict=True) if "submitted" in by}
    assert fooled <= {int(ids[1]), int(ids[3])}


def test_our_own_images_challenge_back(cli, tmp_path):
    (record,) = collect([tmp_path / "results"])
    with pytest.raises(SystemExit) as end:
        main(["results", "export", str(record.folder), "--images", "--output", "ours.pt"])
    assert end.value.code == 0
    assert cli("challenge", "ours.pt", "--finder", "ourselves")[0] == 0
    (new,) = [r for r in collect([tmp_path / "results"]) if "submitted" in r.job.suite.name]
    assert survivors(new) == survivors(record)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.flip(0), "outside Linf:0.13 around the images of digits"),
        (lambda x: (x + 0.02 * torch.sign(x - 0.5)).clamp(0, 1), "outside Linf:0.13"),
        (lambda x: x[:5], "5 images for a record of 20"),
        (lambda x: x[:, :, 1:], "images of shape"),
    ],
)
def test_other_images_are_refused_in_one_line(cli, tmp_path, stronger, change, reason):
    torch.save({"adv_complete": change(stronger)}, tmp_path / "mine.pt")
    before = sorted((tmp_path / "results").rglob("*"))
    code, _, err = cli("challenge", "mine.pt", "--finder", "me")
    assert code == 2 and reason in err and len(err.strip().splitlines()) == 1
    assert sorted((tmp_path / "results").rglob("*")) == before


def test_unknown_ids_and_empty_names_are_refused(cli, tmp_path, stronger):
    torch.save({"x_adv": stronger, "ids": torch.arange(N) + 5000}, tmp_path / "mine.pt")
    code, _, err = cli("challenge", "mine.pt", "--finder", "me")
    assert code == 2 and "not among the record's 20 images" in err
    torch.save({"x_adv": stronger}, tmp_path / "mine.pt")
    assert cli("challenge", "mine.pt", "--finder", " ")[0] == 2


def test_a_submission_is_not_an_attack_to_run(tmp_path):
    with pytest.raises(UsageError, match="robench challenge judges a file"):
        robench.run("mimir-digits", 'submitted(finder="me", sha256="0")', samples=4, results=tmp_path)


def test_a_record_with_images_of_its_own_is_challenged_with_them(tmp_path):
    """The new record has the images beside it, so that it can be verified alone."""
    images, model = load_dataset("digits", "test", 6), robench.load_defense("mimir", dataset="digits")
    result = robench.attack("fgsm", model, images.x, images.y, threat=THREAT)
    record = result.save(tmp_path / "mine", defense="mimir-digits")
    own = images_of(record)
    new = challenge(
        record,
        Submission(own.x[:], None),
        "me",
        load("mimir-digits"),
        own,
        torch.device("cpu"),
        tmp_path / "results",
    )
    assert torch.equal(images_of(new).x[:], own.x[:])
    assert verify(new.folder, load("mimir-digits"), images_of(new))[-1].held
