"""Loaders: what each picks up, what it refuses and how, and that a record of one can be checked again."""

import hashlib
import json
import sys
from pathlib import Path

import numpy
import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from robench.cli.show import command as show
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.trust import Untrusted, trusting
from robench.defenses import Defense, find_card, load, load_defense
from robench.defenses._state import state_digest
from robench.defenses.loaders import Found, Source
from tests.defenses import files
from tests.models import small_net

# Real images and weights, no part of the project.
DATA = Path(__file__).parents[3] / "shared" / "data"


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def script(tmp_path):
    """A TorchScript file of an 8 px network, and the network."""
    network = small_net()
    files.write_torchscript(network, tmp_path / "net.pt", image_size=8)
    return tmp_path / "net.pt", network


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, with a module of one's own in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_module", raising=False)
    files.write_module(tmp_path)
    return tmp_path


targets = st.text(
    alphabet=st.characters(codec="ascii", exclude_characters="()", min_codepoint=33), min_size=1, max_size=20
)


@given(st.sampled_from(["timm", "onnx", "hf-hub"]), targets)
def test_a_target_may_be_any_path_or_address(scheme, target):
    spec = specs.parse(f"{scheme}:{target}(mean=0.5)")
    assert spec == specs.Spec(f"{scheme}:{target}", {"mean": 0.5})
    assert specs.parse(str(spec)) == spec


# Names: one resolution everywhere.


def test_an_unknown_scheme_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r'unknown scheme of a defense "tim": did you mean timm\?'):
        find_card("tim:resnet50")


def test_a_card_may_name_a_loader(tmp_path, script):
    path, network = script
    card = tmp_path / "mine.toml"
    card.write_text(
        f'builder = "torchscript:net.pt"\ndataset = "digits"\ncheckpoint = "net.pt"\nsha256 = "{sha256(path)}"\n'
    )
    with pytest.raises(Untrusted, match="--trust"):
        load(str(card))
    with trusting():
        loaded = load(str(card))
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(loaded.defense(x), network(x))
    assert loaded.checkpoint_sha256 == sha256(path) and loaded.name == "mine"
    card.write_text(card.read_text().replace('sha256 = "', 'sha256 = "0'))
    with trusting(), pytest.raises(ResourceError, match="the card mine has 0"):
        load(str(card))


def test_a_third_party_adds_a_scheme(monkeypatch):
    def flat(source: Source, shift: float = 0.0) -> Found:
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, int(source.target)))
        nn.init.constant_(network[1].weight, shift)
        nn.init.zeros_(network[1].bias)
        return Found(Defense(network, num_classes=int(source.target), image_size=2))

    monkeypatch.setattr(registry.loaders, "_builders", {**registry.loaders._builders, "flat": flat})
    assert load_defense("flat:4(shift=0.5)")(torch.ones(1, 3, 2, 2)).tolist() == [[6, 6, 6, 6]]
    with pytest.raises(UsageError, match="takes no argument width: it takes shift"):
        load("flat:4(width=1)")


def test_the_state_stands_for_a_file_where_there_is_none(here):
    one, same = load("python:tiny_module.build"), load("python:tiny_module.build()")
    assert one.checkpoint is None
    assert (one.card_digest, one.checkpoint_sha256) == (same.card_digest, same.checkpoint_sha256)
    other = load("python:tiny_module.build")
    with torch.no_grad():
        other.defense.classifier[0].bias[0] += 1e-3
    assert state_digest(other.defense) != one.checkpoint_sha256
    # What is subtracted and divided decides the logits as much as the weights do.
    other = load("python:tiny_module.build").defense
    other.mean.add_(0.1)
    assert state_digest(other) != one.checkpoint_sha256


# timm


def test_timm_says_normalisation_size_and_classes(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet").eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    defense = load("timm:test_resnet", checkpoint=tmp_path / "w.safetensors").defense
    said = network.pretrained_cfg
    assert (defense.num_classes, defense.image_size) == (said["num_classes"], said["input_size"][1])
    assert defense.mean.flatten().tolist() == pytest.approx(said["mean"])
    assert defense.std.flatten().tolist() == pytest.approx(said["std"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet5", r'unknown timm model "resnet5": did you mean resnet50.*timm\.list_models\(\)'),
        ("timm:test_vit(num_classes=10)", "published weights of timm:test_vit have 1000 classes"),
        ("timm:test_vit(num_classes=1)", "have 1000 classes"),
        ("timm:test_vit(mean=0.5)", "expected both or neither"),
        ("timm:test_vit(mean=0.5, std=0)", "one positive number, or three"),
        ("timm:test_vit(mean=[1, 2], std=1)", "or three, one per channel"),
        ("timm:test_vit(depth=3)", "takes no argument depth"),
        ("timm:", "malformed spec"),
        ("hf-hub:justaname", "expected hf-hub:OWNER/NAME"),
        ("torchvision:resnet5", r'unknown torchvision classifier "resnet5": did you mean'),
        ("torchvision:resnet18(num_classes=10)", "published weights of torchvision:resnet18 have 1000"),
        ("python:tiny_module", "expected python:module.function"),
        ("python:tiny_module.bild", r'unknown function of tiny_module "bild": did you mean build'),
        ("python:tiny_module.build(depth=2)", "takes no argument depth: it takes width"),
        ("python:tiny_module.number", "returns a int: expected a Defense or an nn.Module"),
        ("python:tiny_module.fails", "cannot be built: no width"),
        ("python:tiny_module.needs(image_size=8)", r"needs width: write"),
        ("python:tiny_module.network", "add image_size="),
        ("python:tiny_module.build(mean=0.5, std=0.5)", "returns a whole Defense: omit mean, std"),
    ],
)
def test_a_name_that_cannot_be_served_is_refused_in_one_line(here, monkeypatch, name, said):
    files.serve_hub(monkeypatch, here)
    with pytest.raises(UsageError, match=said) as caught:
        load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "timm:test_vit",
            r"weights of timm:test_vit cannot be downloaded \(no network in tests\).*--checkpoint",
        ),
        ("hf-hub:nobody/nothing", r"hf-hub:nobody/nothing cannot be reached \(no network in tests\)"),
        (
            "torchvision:resnet18",
            r"weights of torchvision:resnet18 cannot be downloaded \(.*no network.*--checkpoint",
        ),
        ("torchscript:gone.pt", r"gone\.pt is missing: put it there or choose another with --checkpoint"),
        ("python:no_such_module.build", "no module no_such_module: run robench in its folder"),
        ("torchscript:tiny_module.py", r"tiny_module\.py is not a complete TorchScript file"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(here, monkeypatch, name, said):
    def no_network(*arguments, **options):
        raise OSError("no network in tests")

    files.serve_hub(monkeypatch, here)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(ResourceError, match=said) as caught:
        load(name)
    assert "\n" not in str(caught.value)


# torchvision


def test_torchvisions_weights_are_read_without_unpickling_and_named_by_their_file(tmp_path, monkeypatch):
    """The archive is stood in for; what is checked is who reads it, how, and what the record says."""
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1().eval()
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / Path(weights.url).name
    torch.save(network.state_dict(), file)
    asked = []

    def read(url, progress=False, check_hash=False, weights_only=False, **options):
        asked.append((url, check_hash, weights_only))
        return torch.load(file, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", read)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", read)
    loaded = load("torchvision:squeezenet1_1")
    assert asked[0] == (weights.url, True, True)
    assert (loaded.checkpoint, loaded.checkpoint_sha256) == (file, sha256(file))
    assert (loaded.defense.image_size, loaded.defense.num_classes) == (224, 1000)


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "weights").is_dir(), reason=f"the real images and weights of {DATA} are absent"
)
def test_real_weights_tell_real_images_apart():
    from PIL import Image

    name = (
        "torchvision:squeezenet1_1(image_size=227, mean=[0.4823529, 0.4588235, 0.4078431], std=0.0039215686)"
    )
    weights = DATA / "weights" / "squeezenet1_1_imagenet.safetensors"
    loaded = load(name, checkpoint=weights)
    assert loaded.checkpoint_sha256 == sha256(weights)
    classes = (DATA / "imagenet" / "wnids.txt").read_text().split()
    paths = sorted((DATA / "imagenet" / "val").glob("*/*.JPEG"))[::10]
    assert len(paths) == 100
    right = 0
    for path in paths:
        with Image.open(path) as image:
            pixels = numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
        with torch.no_grad():
            right += int(loaded.defense(x).argmax()) == classes.index(path.parent.name)
    # The weights' own README: 72.4 % on all 1,000. On 100 of them three standard deviations are 13 points.
    assert 59 <= right <= 86


# torchscript


def test_torchscript_by_spec_by_note_and_by_checkpoint(tmp_path, script):
    path, network = script
    x = torch.rand(2, 3, 8, 8)
    loaded = load(f"torchscript:{path}")
    assert (loaded.defense.image_size, loaded.defense.num_classes, loaded.defense.mean) == (8, 10, None)
    assert (loaded.checkpoint, loaded.checkpoint_sha256) == (path, sha256(path))
    torch.testing.assert_close(loaded.defense(x), network(x))
    shifted = load_defense(f"torchscript:{path}(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])")
    torch.testing.assert_close(shifted(x), files.normalised(network, files.MEAN, files.STD)(x))
    # Another place for the same file: a record of it can be checked on another machine.
    moved = load("torchscript:elsewhere.pt", checkpoint=path)
    assert moved.checkpoint_sha256 == loaded.checkpoint_sha256
    files.write_torchscript(network, tmp_path / "mute.pt")
    with pytest.raises(UsageError, match="does not specify its image size: add image_size"):
        load(f"torchscript:{tmp_path / 'mute.pt'}")
    with pytest.raises(UsageError, match=r"cannot take two images of 9 px.*is image_size right"):
        load(f"torchscript:{path}(image_size=9)")


def test_a_module_without_logits_is_refused(tmp_path):
    files.write_torchscript(nn.Sequential(nn.Conv2d(3, 2, 1)), tmp_path / "map.pt", image_size=4)
    with pytest.raises(UsageError, match=r"returns \(2, 2, 4, 4\) for two images: expected logits"):
        load(f"torchscript:{tmp_path / 'map.pt'}")


def test_a_note_that_is_no_table_is_refused(tmp_path):
    files.write_torchscript(small_net(), tmp_path / "odd.pt", "[1")
    with pytest.raises(ResourceError, match=r"robench\.json that is not a JSON object"):
        load(f"torchscript:{tmp_path / 'odd.pt'}")


# python


def test_ones_own_code(here):
    network = files.write_module(here)
    x = torch.rand(2, 3, 8, 8)
    whole = load_defense("python:tiny_module.build(width=4)")
    torch.testing.assert_close(whole(x), network((x - 0.5) / 0.25))
    bare = load_defense("python:tiny_module.network(image_size=8, mean=0.5, std=0.25)")
    torch.testing.assert_close(bare(x), whole(x))
    save_file({k: v + 1 for k, v in network.state_dict().items()}, here / "other.safetensors")
    filled = load("python:tiny_module.network(image_size=8)", checkpoint=here / "other.safetensors")
    assert torch.equal(filled.defense.classifier[0].bias, network[0].bias + 1)
    assert filled.checkpoint == here / "other.safetensors"
    assert str(here) not in sys.path


def test_a_program_of_torch_export_is_loaded_as_it_is(here):
    (here / "exported.py").write_text(
        "import torch\n"
        "from torch import nn\n\n"
        "def program():\n"
        "    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval()\n"
        "    batch = torch.export.Dim('batch', min=1, max=64)\n"
        "    shapes = ({0: batch},)\n"
        "    return torch.export.export(network, (torch.rand(4, 3, 8, 8),), dynamic_shapes=shapes).module()\n"
    )
    defense = load_defense("python:exported.program(image_size=8, mean=0.5, std=0.25)")
    assert defense(torch.rand(3, 3, 8, 8)).shape == (3, 10)


# robench show


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("timm:test_vit", ["(N, 3, 160, 160)", "classes", "1000", "mean", "0.5"]),
        ("torchvision:squeezenet1_1", ["(N, 3, 224, 224)", "0.485, 0.456, 0.406", "1,235,496"]),
        ("python:tiny_module.build", ["(N, 3, 8, 8)", "std", "0.25", "classes", "10"]),
        ("mimir-digits", ["(N, 3, 16, 16)", "none: pixels are not normalized", "205,002", "arXiv"]),
        ("vit(image_size=32)", ["(N, 3, 32, 32)", "robench.defenses.vit"]),
        ("timm", ["robench.defenses.loaders.timm", "num_classes = None"]),
    ],
)
def test_show_prints_what_a_defense_takes_and_gives(here, monkeypatch, name, lines):
    files.serve_hub(monkeypatch, here)
    shown = CliRunner().invoke(show, [name])
    assert shown.exit_code == 0, shown.exception
    for line in lines:
        assert line in shown.output


# The whole way: run, answer, verify.


def test_a_record_of_a_loader_is_written_answered_and_verified(tmp_path, monkeypatch, capsys):
    from robench.cli import main

    def robench(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return end.value.code, out, err

    monkeypatch.chdir(tmp_path)
    files.write_traced(load_defense("standard").classifier, tmp_path / "standard.pt", 16)
    options = ["--attack", "fgsm", "--dataset", "digits", "--threat", "Linf:0.1", "--samples", "16", "--json"]
    name = "torchscript:standard.pt(image_size=16)"
    code, out, err = robench("run", "--defense", name, *options)
    assert code == 0, err
    (record,) = json.loads(out)["records"]
    assert record["defense"]["checkpoint_sha256"] == sha256("standard.pt")
    code, out, _ = robench("run", "--defense", "standard", *options)
    (shipped,) = json.loads(out)["records"]
    assert record["robust_accuracy"] == shipped["robust_accuracy"]
    code, _, err = robench("run", "--defense", name, *options)
    assert code == 0 and "using the saved record in" in err
    folder = next((tmp_path / "results").glob("*/torchscript*/fgsm"))
    code, _, err = robench("verify", folder)
    assert code == 2 and "--trust" in err
    assert robench("verify", folder, "--trust")[0] == 0
    (tmp_path / "standard.pt").rename(tmp_path / "moved.pt")
    code, _, err = robench("verify", folder, "--defense", name)
    assert code == 3 and "--checkpoint" in err
    assert robench("verify", folder, "--trust", "--checkpoint", "moved.pt")[0] == 0
    files.write_torchscript(small_net(side=16, seed=3), tmp_path / "standard.pt", image_size=16)
    code, _, err = robench("verify", folder, "--defense", name)
    assert code == 1 and "defense.checkpoint_sha256" in err
    # As a transfer surrogate a loader's name is taken too.
    code, out, err = robench(
        "run", "--defense", "pgd-at", *options, "--knowledge", "transfer:torchscript:moved.pt(image_size=16)"
    )
    assert code == 0, err
