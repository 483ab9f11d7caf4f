"""Transfer across datasets: which cells there are, the matrix made of their records, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from robench import catalog
from robench.catalog import Protocol, read
from robench.cli.main import main
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.trust import trusting
from robench.data import load_dataset
from robench.defenses._checkpoints import sha256_of
from robench.evaluation.dataset_transfer import plan, run_cells
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Options, run_all
from robench.records.collection import collect
from robench.reports.dataset_transfer import grid, matrices, picture
from robench.reports.plots import PLOTS
from robench.reports.plots.style import encode
from robench.reports.table import FORMATS, render

BUILDER = "cnn(image_size=32, width=4, hidden=8)"
ENDS = """
name = "small"
suites = ["purifier-cheap"]
[[ends]]
dataset = "digits"
classifier = "standard-digits"
threat = "Linf:0.1"
samples = 6
[[ends]]
dataset = "npz:wide.npz"
classifier = "{card}"
threat = "Linf:0.05"
samples = 4
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The path of a protocol with two ends, the second's classifier for images of 32 px."""
    place = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    spec = specs.parse(BUILDER)
    network = specs.build(spec, registry.defenses.get(spec.name)).classifier
    save_file(network.state_dict(), place / "net.safetensors")
    lines = f'name = "wide"\nbuilder = "{BUILDER}"\ndataset = "digits"\ncheckpoint = "net.safetensors"\n'
    (place / "wide.toml").write_text(lines + f'sha256 = "{sha256_of(place / "net.safetensors")}"\n')
    images = load_dataset("digits(size=32)").first(10)
    np.savez(
        place / "wide.npz", x=images.x[:].numpy(), y=images.y.numpy(), classes=[str(k) for k in range(10)]
    )
    (place / "small.toml").write_text(ENDS.format(card=place / "wide.toml"))
    return place / "small.toml"


@pytest.fixture(scope="module", autouse=True)
def trusted():
    """The protocol names files of ours."""
    with trusting():
        yield


@pytest.fixture(scope="module")
def played(own, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    protocol, notes = read(Protocol, own), []
    options = Options(results=results, note=notes.append, data_dir=str(own.parent))
    cells = plan(protocol, ["maep"], ["digits"], ["digits", "npz:wide.npz"], options)
    return cells, list(run_cells(cells, protocol, options)), results, notes


def test_every_fit_is_a_cell_and_its_own_classifier_needs_no_plus(played):
    cells, found, _, notes = played
    assert [cell.purifier for cell in cells] == [
        "maep-digits",
        'maep-digits(size_mode="tile")',
        'maep-digits(size_mode="interpolate")',
    ]
    assert cells[0].subject == "maep-digits"
    assert [cell.subject.partition("+")[2] == cell.end.classifier for cell in cells] == [False, True, True]
    assert [r.job.defense.name for c, r in found if c is cells[1]][1] == 'maep-digits(size_mode="tile")+wide'
    assert [note for note in notes if "standard has no card for npz:wide.npz" in note]
    assert {record.job.protocol for _, record in found} == {
        "digits-Linf-0.1-n6",
        "npz:wide.npz-Linf-0.05-n4",
    }


def test_the_matrix_is_the_records(played):
    _, found, results, _ = played
    (matrix,) = matrices(collect([results]))
    assert matrix.family == "maep" and [str(s) for s in matrix.sources] == [
        "digits, interpolate",
        "digits, tile",
    ]
    home, target = matrix.targets
    assert (home.dataset, target.dataset) == ("digits", "npz:wide.npz")
    # Images of the purifier's own size stand in the row of each fit.
    kept = [matrix.cells[source, home]["full"] for source in matrix.sources]
    assert kept[0] == kept[1]
    for source in matrix.sources:
        mine = [r for cell, r in found if cell.purifier == source.purifier]
        for level in ("oblivious", "bpda", "full"):
            lowest = [r for r in mine if r.job.knowledge == level and r.job.defense.classifier]
            assert matrix.cells[source, target][level].value == min(r.robust_accuracy.value for r in lowest)
    alone = next(r for _, r in found if not r.job.defense.classifier and r.job.n == 4)
    assert matrix.bare[target]["undefended"] == alone.robust_accuracy


def test_who_goes_nowhere_has_a_matrix_where_it_is_asked_for(played):
    at_home = [record for record in collect([played[2]]) if record.job.dataset.name == "digits"]
    assert matrices(at_home) == []
    (matrix,) = matrices(at_home, whole=True)
    assert [target.dataset for target in matrix.targets] == ["digits"]


def test_other_cards_of_a_family_are_not_taken_for_its_first(tmp_path):
    shipped = catalog.folder("result") / "shipped"
    records = collect([shipped / "cifar10-linf-100", shipped / "digits-linf-0.1"])
    labels = {record.job.defense.name.partition("(")[0] for record in records}
    second = {label for label in labels if label.startswith("de3-") and label.endswith("-cifar10")} - {
        "de3-cifar10"
    }
    assert {"de3-fixed-cifar10", "de3-uniform-cifar10"} <= second < labels
    for whole, others in ((False, set()), (True, second)):
        (de3,) = (matrix for matrix in matrices(records, whole=whole) if matrix.family == "de3")
        assert others == {source.label for source in de3.sources if source.label.endswith("-cifar10")}
        (source,) = (source for source in de3.sources if source.label == "cifar10")
        (target,) = (target for target in de3.targets if target.dataset == "cifar10")
        first = next(
            r for r in records if (r.job.defense.name, r.job.knowledge) == ("de3-cifar10", "oblivious")
        )
        assert de3.cells[source, target]["oblivious"] == first.robust_accuracy


def test_it_is_written_in_every_format_and_drawn(played):
    (matrix,) = matrices(collect([played[2]]))
    for form in FORMATS:
        text = render(grid(matrix), form)
        assert "interpolate" in text and "bpda" in text
    figure = picture(matrix)
    drawn = [axes for axes in figure.axes if axes.get_title(loc="left")]
    wanted = ["clean", "attacker: oblivious", "attacker: bpda", "attacker: full"]
    assert [axes.get_title(loc="left") for axes in drawn] == wanted
    target = matrix.targets[0]
    numbers = [text.get_text() for text in drawn[0].texts]
    assert numbers[0] == f"{100 * matrix.bare[target]['clean'].value:.0f}" and len(numbers) == 6
    (again,) = PLOTS["datasets"].draw(collect([played[2]])).values()
    assert encode(again) == encode(figure)


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_the_commands_answer_from_the_records(own, played, capsys):
    _, found, results, _ = played
    run = ("run", "--defense", "maep", "--protocol", str(own), "--from", "digits", "--to", "npz:wide.npz")
    run += ("--data-dir", str(own.parent))
    code, out, _ = command(capsys, *run, "--results", str(results))
    assert code == 0 and "digits, tile" in out and "plot: " in out
    assert list(results.glob("transfer-*.png"))
    code, out, _ = command(capsys, *run, "--results", str(results), "--json")
    assert {r["finished"] for r in json.loads(out)["records"]} <= {r.finished for _, r in found}
    code, out, _ = command(capsys, "table", "transfer", str(results), "--format", "md")
    assert code == 0 and out.startswith("### maep")


def test_what_does_not_divide_is_left_out_with_a_reason(own):
    notes = []
    protocol = read(Protocol, own)
    cells = plan(protocol, ["maep"], ["cifar10"], ["digits"], Options(note=notes.append))
    assert [cell.purifier for cell in cells] == ['maep-cifar10(size_mode="interpolate")']
    assert notes == [
        'skipped: maep-cifar10 on images of 16 px: size_mode="tile" takes images of a multiple of 32 px, '
        "not of 16 px"
    ]
    with pytest.raises(UsageError, match='on images of 16 px: size_mode="tile" takes'):
        plan(protocol, ['maep(size_mode="tile")'], ["cifar10"], ["digits"], Options())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "digits"], "is a transfer protocol: --to is missing"),
        (["--to", "digits"], "--from is missing"),
        (["--protocol", "transfer"], "--from and --to is missing"),
        (["--from", "digits", "--to", "digit"], 'unknown dataset "digit": did you mean digits'),
        (["--from", "digit", "--to", "digits"], 'unknown dataset "digit"'),
        (
            ["--from", "digits", "--to", "cifar100"],
            "transfer has no classifier for cifar100, only for digits",
        ),
        (["--from", "cifar100", "--to", "digits"], "the family maep has no card for cifar100"),
        (["--from", "digits", "--to", "digits", "--dataset", "digits"], "cannot be combined with --dataset"),
        (["--from", "digits", "--to", "digits", "--sweep", "a=1,2"], "cannot be combined"),
        (["--from", "digits", "--to", "digits", "--protocol", "digits-linf"], "has one dataset"),
        (["--from", "digits", "--to", "digits", "--attack", "pgd"], "needs a ladder of runs"),
        (["--from", "digits", "--to", "digits", "--finetune", "1"], "two or more numbers of images"),
    ],
)
def test_mistakes_end_in_one_line(arguments, said, capsys, tmp_path):
    code, _, err = command(capsys, "run", "--defense", "maep", "--results", str(tmp_path), *arguments)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_only_purifiers_travel(capsys, tmp_path):
    for name, said in (
        ("mimir", "mimir-digits is not a card or family of purifiers"),
        ("maep-digits", "is trained on digits"),
    ):
        source = "digits" if name == "mimir" else "cifar10"
        code, _, err = command(
            capsys, "run", "--defense", name, "--from", source, "--to", "digits", "--results", str(tmp_path)
        )
        assert code == 2 and said in err


def test_weights_that_a_person_brings_are_looked_for(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("ROBENCH_CHECKPOINTS", raising=False)
    from robench.core.errors import ResourceError
    from robench.defenses import load

    with pytest.raises(ResourceError, match="the folder that the variable ROBENCH_CHECKPOINTS names"):
        load("squeezenet-imagenet")
    (tmp_path / "squeezenet1_1_imagenet.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    monkeypatch.setenv("ROBENCH_CHECKPOINTS", str(tmp_path))
    with pytest.raises(ResourceError, match=r"squeezenet1_1_imagenet.safetensors lacks features.0.weight"):
        load("squeezenet-imagenet")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the field dataset is missing"),
        ('dataset = "digits"\n', "the field threat is missing"),
        (
            'dataset = "digits"\n[[ends]]\ndataset = "a"\nclassifier = "b"\nthreat = "Linf:1"\nsamples = 1\n',
            "either",
        ),
        ("ends = [1]\n", "expected tables"),
        ('[[ends]]\ndataset = "digits"\n', "the field classifier is missing"),
        ('[[ends]]\ndataset = "a"\nclassifier = "b"\nthreat = "Linf:1"\nsamples = 0\n', "at least 1"),
        ('[[ends]]\ndataset = "a"\nclassifier = "b"\nthreat = "L9:1"\nsamples = 1\n', "L9"),
    ],
)
def test_a_protocol_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read(Protocol, tmp_path / "own.toml")


def test_a_source_of_another_size_is_one_clear_line(own, tmp_path):
    name, protocol = str(own.with_name("wide.toml")), choose_protocol(None, "digits(size=32)", "Linf:0.1", 4)
    with pytest.raises(
        UsageError, match="standard takes images of 16 px, but the attacked defense takes 32 px"
    ):
        list(
            run_all(
                [name], ["pgd(steps=1)"], protocol, ["transfer:standard-digits"], Options(results=tmp_path)
            )
        )


def test_a_protocol_of_transfer_is_no_ordinary_one():
    with pytest.raises(UsageError, match="robench transfer with --from and --to"):
        choose_protocol("transfer", None, None, None)
