"""The records that are shipped hold, and the boards beside them are made from them."""

import json
from dataclasses import replace

import pytest

from robench import catalog
from robench.catalog import find_suite
from robench.cli.main import main
from robench.core import specs
from robench.data import load_dataset
from robench.defenses import load
from robench.defenses._checkpoints import sha256_of
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Options, run_all
from robench.records import certificates, certification, randomized, samples
from robench.records.collection import collect
from robench.records.jobs import canonical
from robench.records.record import read_record
from robench.records.store import place_of, slug
from robench.reports.board import board
from robench.reports.paper_files import find_paper
from robench.reports.papers import text
from robench.verification.verify import verify
from tests.data.test_cifar10 import REAL

RESULTS = catalog.folder("result")
SHIPPED = RESULTS / "shipped"
# The digits first: they are on every machine.
EVERY = sorted(
    (path.parent for path in SHIPPED.rglob("record.json")),
    key=lambda folder: (not folder.parts[-3].startswith("digits"), folder),
)
RAW = {folder: json.loads((folder / "record.json").read_text("utf-8")) for folder in EVERY}
# Certificates of 224 px, and ReColorAdv's grids, weigh too much to be shipped: such a record says their digest, and its
# command makes them.
LARGE = [
    folder
    for folder in EVERY
    if certificates.FILE in RAW[folder]["files"] and not (folder / certificates.FILE).is_file()
]
RECORDS = [folder for folder in EVERY if folder not in LARGE]
CERTIFICATIONS = sorted(path.parent for path in SHIPPED.rglob(certification.FILE))
MEND = "stale: results/README.md says which command makes it anew"


def test_there_are_some():
    assert len(RECORDS) >= 8


# Ten draws through a chain of networks.
COSTLY = ("diffpure", "de3-cifar10")


def _passes(folder):
    """The number of images that its verification classifies."""
    raw = RAW[folder]
    return raw["n"] * raw.get(randomized.FIELD, {"draws": 1})["draws"]


def _cases():
    """The record of fewest passes with each dataset, family, attacker and threat; the others are slow, as are COSTLY
    purifiers and the corruptions, which are made again."""
    seen = set()
    for folder in sorted(
        RECORDS, key=lambda folder: (not folder.parts[-3].startswith("digits"), _passes(folder))
    ):
        raw = RAW[folder]
        defense, level = raw["defense"], raw["knowledge"].partition(":")[0]
        facts = (
            raw["dataset"]["name"],
            defense["family"],
            bool(defense["classifier"]),
            level,
            raw["threat"][:2],
        )
        new = set(enumerate(facts)) - seen
        costly = raw["threat"] == "none" or any(name in folder.parent.name for name in COSTLY)
        quick = bool(new) and not costly
        seen |= new if quick else set()
        yield pytest.param(
            folder, marks=() if quick else pytest.mark.slow, id=str(folder.relative_to(SHIPPED))
        )


@pytest.mark.parametrize("folder", RECORDS, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_the_files_of_a_shipped_record_are_those_it_was_made_with(folder):
    files = RAW[folder]["files"]
    assert files == {name: sha256_of(folder / name) for name in files} and samples.FILE in files


@pytest.mark.parametrize("folder", list(_cases()))
def test_a_shipped_record_holds(folder):
    job = read_record(folder).job
    if job.dataset.name == "cifar10" and not (REAL / "cifar-10-batches-py").is_dir():
        pytest.skip("CIFAR-10 is not here: ROBENCH_TEST_DATA names the folder with cifar-10-batches-py")
    data_dir = str(REAL) if job.dataset.name == "cifar10" else None
    images = load_dataset(job.dataset.name, job.dataset.split, job.n, data_dir)
    assert verify(folder, load(job.defense.name, job.dataset.name), images)


@pytest.mark.parametrize("folder", LARGE, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_a_large_record_is_whole_but_for_its_certificates(folder):
    record = read_record(folder)
    assert specs.parse(record.job.dataset.name).name == "imagenet" or record.job.protocol == "cifar10-recolor"
    assert sha256_of(folder / samples.FILE) == record.files[samples.FILE]
    robust = [row["fooled_by"] for row in samples.read_samples(folder).to_pylist()].count("")
    assert robust == record.robust_accuracy.correct


@pytest.mark.parametrize("folder", CERTIFICATIONS, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_a_shipped_certification_lies_in_its_place_with_the_files_it_was_made_with(folder):
    result = certification.read(folder)
    assert {name: sha256_of(folder / name) for name in result.files} == result.files
    assert folder == SHIPPED / result.protocol / slug(result.defense.name) / result.method
    assert result.attacked and result.attacked.accuracy.correct >= result.certified.correct


@pytest.mark.slow
@pytest.mark.parametrize("folder", CERTIFICATIONS, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_a_shipped_certification_holds(folder, capsys):
    options = []
    if certification.read(folder).dataset.name == "cifar10":
        if not (REAL / "cifar-10-batches-py").is_dir():
            pytest.skip("CIFAR-10 is not here: ROBENCH_TEST_DATA names the folder with cifar-10-batches-py")
        options = ["--data-dir", str(REAL)]
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(folder), *options])
    assert ended.value.code == 0, capsys.readouterr().out


AGAIN = (
    "digits-linf/standard-digits/autoattack",
    "digits-linf/mimir-digits/mimir-pgd-20",
    pytest.param("digits-linf-0.1/maep-digits/pgd", marks=pytest.mark.slow),
    pytest.param("digits-linf-0.1/maep-digits/pgd@bpda", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("name", AGAIN)
def test_a_shipped_record_comes_out_of_this_code_with_the_same_doubts(tmp_path, name):
    shipped = read_record(SHIPPED / name)
    job = shipped.job
    protocol = choose_protocol(None, job.dataset.name, job.threat, job.n)
    options = Options(results=tmp_path, workers=1)
    (made,) = run_all([job.defense.name], [job.suite.name], protocol, [job.knowledge], options)
    assert [mark.code for mark in made.health] == [mark.code for mark in shipped.health]
    told, told_then = (
        [row["fooled_by"] for row in samples.read_samples(record.folder).to_pylist()]
        for record in (made, shipped)
    )
    # Another processor's last bits may turn a row that stands on the edge.
    assert sum(now != then for now, then in zip(told, told_then, strict=True)) <= 0.02 * job.n


# Each is made from the shipped records; who adds one to results/ adds it here.
MADE = {
    "BOARD.md": lambda records: board(records, "md"),
    "DIFFBREAK.md": lambda records: text(find_paper("diffbreak"), records, "md"),
    "PURIFIERS.md": lambda records: text(find_paper("purifiers"), records, "md", "purifier-cheap"),
    **{
        f"{name.upper()}.md": lambda records, name=name: text(find_paper(name), records, "md")
        for name in ("mimir", "maep", "de3", "unforeseen", "transfer")
    },
}


@pytest.fixture(scope="module")
def records():
    return collect([SHIPPED])


@pytest.mark.parametrize("name", MADE)
def test_a_board_is_fresh(records, name):
    assert (RESULTS / name).read_text("utf-8") == MADE[name](records), MEND


def test_the_study_has_the_tables_of_the_records(records):
    written = (RESULTS / "STUDY.md").read_text("utf-8")
    for table in text(find_paper("study"), records, "md").split("\n### ")[1:]:
        assert table.removeprefix("### ").strip() in written, "stale: paste what robench table study prints"


def test_every_board_is_held_to_the_records():
    assert {path.name for path in RESULTS.glob("*.md")} == {"README.md", "STUDY.md", *MADE}


def test_the_readme_says_how_each_is_made():
    said = (RESULTS / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in said and f"> results/{name}" in said for name in MADE)


def test_no_two_shipped_records_are_of_one_job():
    keys = [read_record(folder).key for folder in EVERY]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("folder", EVERY, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_a_shipped_record_bears_canonical_names_and_lies_in_its_place(folder):
    record = read_record(folder)
    job = record.job
    raw = RAW[folder]
    assert find_suite(raw["suite"]["name"]).name == raw["suite"]["name"]
    # Shipped before an argument was renamed: the name that a record has stays.
    current = replace(
        job, defense=replace(job.defense, name=job.defense.name.replace("(fit=", "(size_mode="))
    )
    assert canonical(job) == current and job.key == record.key
    assert place_of(SHIPPED, record.job) == folder
