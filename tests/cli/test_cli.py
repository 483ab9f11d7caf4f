"""The command line's contract: exit codes, one clear line for a mistake, nothing else on stdout with --json."""

import json
import sys
from pathlib import Path

import numpy
import pytest
import torch

import robench
import robench.evaluation.planning
from robench.cli import main

QUICK = ["--attack", "pgd(steps=2)", "--samples", "16", "--threat", "Linf:0.1"]


@pytest.fixture
def robench_cli(capsys, tmp_path, monkeypatch):
    """Call the command line in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return end.value.code, out, err

    return call


@pytest.mark.parametrize(("installed", "expected"), [("1.2.3", "1.2.3"), (None, "0")])
def test_the_version_of_a_checkout_that_is_not_installed_is_0(robench_cli, monkeypatch, installed, expected):
    monkeypatch.setattr("robench.records.provenance.installed_version", lambda name: installed)
    assert robench.__version__ == expected
    assert robench_cli("--version") == (0, f"robench, version {expected}\n", "")


def test_run_writes_a_record_and_answers_from_it(robench_cli, tmp_path, monkeypatch):
    code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK, "--json")
    assert code == 0, err
    (record,) = json.loads(out)["records"]
    folder = tmp_path / "results" / "digits-Linf-0.1-n16" / "pgd-at-digits"
    (path,) = folder.glob("*/record.json")
    assert json.loads(path.read_text()) == record
    assert record["n"] == 16 and record["defense"]["name"] == "pgd-at-digits"
    before = path.stat().st_mtime_ns
    code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK)
    assert (
        code == 0 and "using the saved record in" in err and "made by" not in err and "pgd-at-digits" in out
    )
    assert path.stat().st_mtime_ns == before
    with monkeypatch.context() as patch:
        patch.setattr("robench.evaluation.reuse.robench_version", lambda: "99.0")
        code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK)
    assert code == 0 and f"made by robench {record['robench_version']} (this is 99.0)" in err
    code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK, "--fresh")
    assert code == 0 and path.stat().st_mtime_ns > before
    code, out, err = robench_cli("verify", path.parent)
    assert code == 0, err
    code, out, err = robench_cli("board", "--format", "md")
    assert code == 0 and "pgd-at-digits" in out
    files = sorted(path.parent.iterdir())
    code, out, err = robench_cli("show", path.parent)
    assert code == 0 and "pgd-at-digits" in out and sorted(path.parent.iterdir()) == files
    code, out, err = robench_cli("show", path.parent, "--picture", "picture.png")
    assert code == 0 and Path("picture.png").stat().st_size > 1000


def test_several_defenses_and_attacks_at_once(robench_cli):
    code, out, _ = robench_cli(
        "run", "--defense", "pgd-at,standard", "--attack", "fgsm,pgd(steps=2)", "--samples", "8", "--json"
    )
    records = json.loads(out)["records"]
    assert code == 0
    assert [(r["defense"]["name"], r["suite"]["name"]) for r in records] == [
        ("pgd-at-digits", "fgsm"),
        ("pgd-at-digits", "pgd(steps=2)"),
        ("standard-digits", "fgsm"),
        ("standard-digits", "pgd(steps=2)"),
    ]


@pytest.mark.parametrize(
    ("suite", "same"),
    [
        ('reference(attack="apgd-ce")', "apgd"),
        pytest.param(
            'reference(attack="apgd-ce")+reference(attack="fab-t")',
            "apgd+fab(targets=9)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_reference_runs_into_the_same_kind_of_record(robench_cli, suite, same):
    pytest.importorskip("pyautoattack")
    options = ["--samples", "5", "--threat", "Linf:0.02", "--json"]
    code, out, err = robench_cli("run", "--defense", "standard", "--attack", suite, *options)
    assert code == 0, err
    theirs = json.loads(out)["records"][0]
    code, out, err = robench_cli("run", "--defense", "standard", "--attack", same, *options)
    ours = json.loads(out)["records"][0]
    assert theirs["robust_accuracy"] == ours["robust_accuracy"]
    assert 0 < theirs["robust_accuracy"]["correct"] < 5
    assert theirs["passes"]["forward"] > ours["passes"]["forward"]
    assert theirs["suite"]["attacks"] == suite.split("+")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "--defense", "mimr", "--attack", "fgsm"], 2, 'unknown defense "mimr": did you mean mimir'),
        (["run", "--defense", "pgd-at", "--attack", "autoatack"], 2, "did you mean autoattack"),
        (["run", "--defense", "pgd-at", "--attack", "pgd(steps=0)"], 2, "steps=0"),
        (["show", "pgd(steps=0)"], 2, "steps=0"),
        (["run", "--defense", "pgd-at", "--attack", "pgd(step=3)"], 2, "takes no argument step"),
        (["run", "--defense", "pgd-at", "--attack", "pgd(steps=3"], 2, "malformed"),
        (["run", "--defense", "pgd-at", "--attack", "apgd", "--threat", "L1:5"], 2, "apgd is defined in"),
        (["run", "--defense", "pgd-at", *QUICK, "--threat", "Linf:-1"], 2, "malformed radius"),
        (["run", "--defense", "pgd-at", *QUICK, "--threat", "L7:1"], 2, "unknown norm"),
        (["run", "--defense", "mimir-cifar10-short", "--attack", "fgsm"], 2, "use --protocol cifar10-linf"),
        (["run", "--defense", "standard-cifar10", "--attack", "fgsm"], 2, "use --protocol cifar10-linf"),
        (["run", "--defense", "pgd-at", "--attack", "fgsm", "--samples", "540"], 2, "539"),
        (["run", "--defense", "pgd-at", "--attack", "fgsm", "--samples", "0"], 2, "at least 1"),
        (["run", "--defense", "pgd-at", *QUICK, "--protocol", "nope"], 2, "unknown protocol"),
        (["run", "--defense", "pgd-at", *QUICK, "--dataset", "nope", "--threat", "L2:1"], 2, "nope"),
        (["run", "--defense", "pgd-at", "--attack", "fgsm", "--dataset", "cifar10"], 2, "needs a threat"),
        (["run", "--defense", "pgd-at", *QUICK, "--device", "tpu"], 2, "unknown device"),
        (["run", "--defense", "pgd-at", *QUICK, "--device", "cuda:99"], 2, "no device"),
        (["run", "--defense", "pgd-at", *QUICK, "--batch-size", "0"], 2, "batch size"),
        (["run", "--defense", "pgd-at", *QUICK, "--precision", "int8"], 2, "unknown precision"),
        (["run", "--defense", "pgd-at", *QUICK, "--knowledge", "psychic"], 2, "unknown knowledge"),
        (["run", "--defense", "pgd-at", *QUICK, "--knowledge", "bpda"], 2, "needs a purifier"),
        (["run", "--defense", "pgd-at", *QUICK, "--seed", "-1"], 2, "seed"),
        (["run", "--attack", "fgsm"], 2, "--defense"),
        (["rnu"], 2, "did you mean run"),
        (["list", "defences"], 2, "expected one of defenses, attacks, "),
        (["table"], 2, "which table? de3, "),
        (["show", "mimr"], 2, "mimir"),
        (["show", "nowhere/record.json"], 3, "nowhere"),
        (["verify", "nowhere"], 3, "nowhere"),
        (["train", "no-such-card"], 2, "no-such-card"),
        (
            ["run", "--defense", "pgd-at", *QUICK, "--checkpoint", "missing.safetensors"],
            3,
            "missing.safetensors",
        ),
        (["run", "--defense", "broken.toml", *QUICK], 2, "broken.toml is not valid TOML"),
        (["run", "--defense", "strange.toml", *QUICK], 2, 'unknown field "colour"'),
        (["run", "--defense", "none.toml", *QUICK], 3, "none.toml"),
    ],
)
def test_a_mistake_ends_in_one_clear_line_and_the_right_code(robench_cli, tmp_path, arguments, code, says):
    (tmp_path / "broken.toml").write_text("name = ")
    (tmp_path / "strange.toml").write_text('builder = "vit"\ndataset = "digits"\ncolour = "red"')
    found, out, err = robench_cli(*arguments)
    assert (found, says in err, out) == (code, True, ""), err
    lines = [line for line in err.splitlines() if not line.startswith("robench: see ")]
    assert len(lines) == 1 and lines[0].startswith("robench: ")


def checkpoint(name):
    from robench import catalog

    return catalog.cards()[name].path.parent / catalog.cards()[name].checkpoint


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[: len(data) // 2], "weights.safetensors"),
        (lambda data: b"not a checkpoint", "weights.safetensors"),
        (lambda data: b"", "weights.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_refused(robench_cli, tmp_path, spoil, says):
    (tmp_path / "weights.safetensors").write_bytes(spoil(checkpoint("pgd-at-digits").read_bytes()))
    code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK, "--checkpoint", "weights.safetensors")
    assert (code, out) == (3, "") and says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_checkpoint_that_is_not_the_cards_is_refused(robench_cli, tmp_path):
    from robench import catalog

    card = catalog.cards()["pgd-at-digits"].path.read_text()
    (tmp_path / "checkpoints").mkdir()
    data = bytearray(checkpoint("pgd-at-digits").read_bytes())
    data[-1] ^= 1
    (tmp_path / "checkpoints" / "pgd-at-digits.safetensors").write_bytes(bytes(data))
    (tmp_path / "card.toml").write_text(card)
    code, out, err = robench_cli("run", "--defense", "card.toml", *QUICK)
    assert (code, out) == (3, "") and "sha256" in err and len(err.splitlines()) == 1


def test_a_checkpoint_of_another_network_is_refused(robench_cli, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(checkpoint("pgd-at-digits"))
    state["head.weight"] = torch.zeros(7, 64)
    save_file(state, tmp_path / "other.safetensors")
    code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK, "--checkpoint", "other.safetensors")
    assert (code, out) == (3, "") and "head.weight" in err and "(7, 64)" in err


def test_a_results_folder_that_cannot_be_written_is_found_out_at_once(robench_cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK, "--results", "file/results")
    assert (code, out) == (3, "") and "--results" in err and len(err.splitlines()) == 1


def test_two_runs_cannot_write_one_record_at_once(robench_cli, tmp_path):
    from robench.core.io import claim
    from robench.records.store import record_folder

    folder = record_folder("results", "digits-Linf-0.1-n16", "pgd-at-digits", "pgd(steps=2)")
    with claim(folder):
        code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK)
    assert (code, out) == (3, "") and "another run is writing" in err
    assert robench_cli("run", "--defense", "pgd-at", *QUICK)[0] == 0


def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(robench_cli, monkeypatch):
    from robench.engine import checkpoint as store
    from robench.engine.attack_loop import Loop

    monkeypatch.setattr(store, "_INTERVAL", 0)
    monkeypatch.setattr(store, "_RATIO", 0)
    turn, left = Loop._turn, [5]

    def interrupted(self):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        turn(self)

    monkeypatch.setattr(Loop, "_turn", interrupted)
    command = ["run", "--defense", "pgd-at", "--attack", "apgd(steps=8)", "--samples", "16", "--json"]
    code, out, err = robench_cli(*command)
    assert (code, out) == (130, "") and "again to resume" in err
    code, out, err = robench_cli(*command)
    assert code == 0 and "resuming" in err
    resumed = json.loads(out)["records"][0]
    code, out, err = robench_cli(*command, "--fresh")
    fresh = json.loads(out)["records"][0]
    from robench.records.record import stable

    assert stable(resumed) == stable(fresh)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda images: images.x.__setitem__((3, 0, 0, 0), float("nan")), "image 3 has NaN"),
        (lambda images: images.x.mul_(255), "expected [0, 1]"),
        (lambda images: images.y.__setitem__(0, 10), "labels lie in"),
    ],
)
def test_images_and_labels_that_cannot_be_used_are_refused(robench_cli, monkeypatch, spoil, says):
    load = robench.evaluation.planning.load_dataset

    def spoiled(*arguments):
        images = load(*arguments)
        images.x.data = images.x.clone()
        images.y.data = images.y.clone()
        spoil(images)
        return images

    monkeypatch.setattr(robench.evaluation.planning, "load_dataset", spoiled)
    code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK)
    assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1


def test_arrays_are_taken_and_bytes_refused():
    import robench
    from robench.core.errors import UsageError
    from robench.data import load_dataset

    images = load_dataset("digits", "test", 8)
    model = robench.load_defense("standard")
    one = robench.attack("fgsm", model, images.x.numpy(), images.y.numpy(), threat="Linf:0.1")
    two = robench.attack("fgsm", model, images.x, images.y, threat="Linf:0.1")
    assert torch.equal(one.x_adv, two.x_adv)
    with pytest.raises(UsageError, match="divide by 255"):
        robench.attack(
            "fgsm", model, (images.x.numpy() * 255).astype(numpy.uint8), images.y, threat="Linf:0.1"
        )
    with pytest.raises(UsageError, match="expected a tensor"):
        robench.attack("fgsm", model, "images", images.y, threat="Linf:0.1")


def test_a_checkpoint_as_released_runs_by_its_familys_name(robench_cli, tmp_path):
    """A ViT that no card has: its name, in the record, is its spec; its sha256 is there too."""
    import argparse
    import hashlib

    from tests.defenses import layouts

    state = layouts.filled(layouts.vit(64, 4, 16, 2, 10))
    torch.save({"model": state, "epoch": 49, "args": argparse.Namespace(lr=1.0)}, "checkpoint-49.pth")
    asked = ("run", "--defense", "mimir", *QUICK, "--json", "--checkpoint", "checkpoint-49.pth")
    code, out, err = robench_cli(*asked)
    (record,) = json.loads(out)["records"]
    digest = hashlib.sha256((tmp_path / "checkpoint-49.pth").read_bytes()).hexdigest()
    assert code == 0
    assert record["defense"]["name"].startswith("vit(depth=4, heads=4, ")
    assert (record["defense"]["family"], record["defense"]["checkpoint_sha256"]) == ("mimir", digest)
    assert "checkpoint-49.pth is not that of the card mimir-digits: it is recorded as vit(" in err
    code, out, err = robench_cli(*asked)
    assert code == 0 and "using the saved record in" in err
    (folder,) = [path.parent for path in (tmp_path / "results").rglob("record.json")]
    code, out, err = robench_cli("verify", folder, "--checkpoint", "checkpoint-49.pth")
    assert code == 0, err


def test_a_released_defense_without_its_file_says_where_to_get_it(robench_cli):
    code, out, err = robench_cli("run", "--defense", "mimir-vit-t-cifar10", *QUICK)
    assert (code, out) == (3, "") and len(err.splitlines()) == 1
    assert "https://drive.google.com/drive/folders/1i40L0tK4UY16DVXljZV2X2fo2PniwsBV" in err
    assert "--checkpoint" in err


def test_claims_are_listed_and_shown(robench_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = robench_cli("list", "defenses")
    (row,) = [line for line in out.splitlines() if line.startswith("mimir-swin-l-imagenet ")]
    assert code == 0 and row.split()[2:] == ["Linf:4/255", "78.62", "/", "59.68", "AutoAttack"]
    code, out, _ = robench_cli("show", "mimir-swin-l-imagenet")
    assert code == 0 and all(word in out for word in ("clean = 78.62", "README of", "drive.google.com"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("clean = 101", "a claim: clean = 101: expected a percentage"),
        ("clean = 80.0\nauthor = 'me'", """a claim: unknown field "author": expected some of"""),
        ("", "a claim: the field clean is missing"),
        ("clean = 80.0\nthreat = 'Linf:x'", 'malformed radius "x"'),
    ],
)
def test_a_claim_that_is_no_claim_is_refused(robench_cli, tmp_path, line, says):
    threat = "" if "threat" in line else "threat = 'Linf:8/255'\n"
    card = "builder = 'vit'\ndataset = 'digits'\n"
    claim = f"[[claims]]\nrobust = 50\nattack = 'fgsm'\nsource = 'me'\n{threat}{line}\n"
    (tmp_path / "card.toml").write_text(card + claim)
    code, out, err = robench_cli("run", "--defense", "card.toml", *QUICK)
    assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1


def test_a_ladder_is_shown_a_line_a_run(robench_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = robench_cli("show", "de3")
    assert (
        "de3-cifar10  (cifar10: --defense de3 selects it)\n" in out
        and "de3-fixed-cifar10  (cifar10)\n" in out
    )
    code, out, _ = robench_cli("show", "purifier")
    assert code == 0 and "undefended: autoattack on the classifier alone" in out and "Rung(" not in out
    assert "bpda+EOT: pgd(steps=20, eot=20) @bpda (randomized defenses)" in out


def test_a_protocol_of_transfer_is_shown_a_line_a_data_set(robench_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = robench_cli("show", "transfer")
    assert code == 0 and "digits: standard-digits, Linf:0.1, 100 images" in out and "End(" not in out


def test_documentation_is_wrapped_once_at_the_width_of_the_terminal(robench_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = robench_cli("show", "pgd")
    assert code == 0
    lines = out.partition("Args:\n")[2].partition("\n\n")[0].splitlines()
    assert all(len(line) <= 60 for line in lines)
    steps = next(i for i, line in enumerate(lines) if line.startswith("    steps: iterations, "))
    assert len(lines[steps]) > 40 and lines[steps + 1].startswith("        ")


def test_a_threat_without_an_attack_to_count_is_refused(robench_cli):
    code, out, err = robench_cli("show", "pgd-at-digits", "--threat", "L2:1")
    assert (code, out) == (2, "") and "--threat needs an attack or a suite" in err


RUN = ("run", "--defense", "standard", "--attack", "pgd", "--samples", "2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "pgd-at-digits", "--classes", "5"), "--classes needs an attack or a suite"),
        (("show", "pgd-at-digits", "--picture", "a.png"), "--picture needs the folder of a record"),
        (("show", "digits", "--data-dir", "."), "--data-dir needs the folder of a record"),
        ((*RUN, "--sweep", "attack.steps=1,2", "--address", "ray://x"), "need --engine ray"),
        ((*RUN, "--curve", "0:0.1:3", "--gpus-per-worker", "1"), "need --engine ray"),
        ((*RUN, "--address", ""), "need --engine ray"),
        ((*RUN, "--share", ""), '--share "": expected I/K'),
        ((*RUN, "--certify-first", ""), "expected"),
        (("verify", "somewhere", "--replay-seed", "3"), "--replay-seed chooses the images of --replay"),
        (
            ("results", "export", ".", "--output", "a.zip", "--data-dir", "."),
            "--data-dir finds the images of",
        ),
        (("sweep", "attack.steps=5", *RUN[1:]), '"attack.steps=5" is no sweep: expected NAME='),
        (("curve", "0:1", *RUN[1:]), '"0:1" is no range of radii: expected START:STOP:COUNT'),
    ],
)
def test_options_without_effect_and_other_mistakes_are_one_line(robench_cli, arguments, said):
    code, out, err = robench_cli(*arguments)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("knowledge", ["transfer:nobody", "half"])
def test_an_attacker_that_cannot_be_leaves_no_folder(robench_cli, tmp_path, knowledge):
    code, out, err = robench_cli("run", "--defense", "pgd-at", *QUICK, "--knowledge", knowledge)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_an_empty_threat_is_not_the_default_one(robench_cli):
    code, out, err = robench_cli("run", "--defense", "pgd-at", "--attack", "fgsm", "--threat", "")
    assert (code, out) == (2, "") and "threat" in err and len(err.splitlines()) <= 2


@pytest.mark.parametrize(("attack", "threat"), [("fgsm", "Linf:8"), ("patch-rs(queries=9)", "patch:17")])
def test_a_radius_that_holds_every_image_is_pointed_out(robench_cli, attack, threat):
    code, out, err = robench_cli(
        "run", "--defense", "standard", "--attack", attack, "--threat", threat, "--samples", "4", "--json"
    )
    assert code == 0 and f"{threat} contains every possible image" in err and json.loads(out)["records"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out of memory: repeat with a smaller --batch-size",
        ),
        (
            ImportError("libxcb.so.1: cannot open shared object file"),
            "a package cannot be imported (libxcb.so.1: cannot open shared object file): robench doctor says",
        ),
    ],
)
def test_errors_of_the_system_are_one_line(robench_cli, monkeypatch, error, says):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("robench.data.load_dataset", fails)
    monkeypatch.setattr("robench.evaluation.planning.load_dataset", fails)
    code, _, err = robench_cli("run", "--defense", "pgd-at-digits", "--attack", "fgsm", "--samples", "2")
    first, *others = err.splitlines()
    assert code == 3 and first.startswith(f"robench: {says}")
    # An import that fails is located where it is in somebody's own code, as this one.
    assert [line[: line.rindex("/")] for line in others] == [
        f"robench: the error began in {Path(__file__).parent}"
    ] * isinstance(error, ImportError)


BROKEN = """
import torch

class Broken(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(3, 4) @ x.flatten(1)

def build(fail=False):
    if fail:
        raise ValueError("no weights")
    return Broken()
"""


@pytest.mark.parametrize(("arguments", "line"), [("", 6), ("(fail=True)", 10)])
def test_an_error_of_ones_own_code_is_located(robench_cli, tmp_path, monkeypatch, arguments, line):
    (tmp_path / "broken_defense.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_defense", raising=False)
    defense = f"python:broken_defense.build{arguments}"
    code, _, err = robench_cli("run", "--defense", defense, "--attack", "fgsm", "--threat", "Linf:0.1")
    said, place = err.splitlines()
    assert code == 2 and "broken_defense" in said
    assert place == f"robench: the error began in {tmp_path / 'broken_defense.py'}, line {line}"
