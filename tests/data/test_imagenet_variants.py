"""ImageNet-A, -R, -Sketch, -3DCC, -C-bar, Tiny-ImageNet-C and lists of images, in their usual layouts."""

import json
import sys

import pytest
import torch
from torch import nn

from robench.cli import main
from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.data import imagenet_variants as variants
from robench.data import load_dataset
from robench.data._names import imagenet_classes, synsets, synsets_of
from robench.evaluation.options import Options
from robench.evaluation.planning import load_all
from robench.evaluation.protocol import choose_protocol
from tests.data.real import REAL, needs
from tests.data.test_image_files import VAL, picture


@pytest.fixture(scope="module")
def renditions(tmp_path_factory):
    """The 200 folders of ImageNet-R with one image each, and two in the first."""
    root = tmp_path_factory.mktemp("data")
    for k, synset in enumerate(synsets_of("r")):
        picture(root / "imagenet-r" / synset / "art_0.jpg", seed=k)
    picture(root / "imagenet-r" / synsets_of("r")[0] / "toy_1.jpg", seed=999)
    (root / "imagenet-r" / "README.txt").write_text("lies there in the archive")
    return root


PART = 'imagenet-r(partial=True, preprocessing="none")'


def test_labels_count_the_two_hundred_classes(renditions):
    images = load_dataset(PART, data_dir=str(renditions))
    assert images.y.tolist() == [*range(200), 0] and len(images.classes) == 200
    assert images.class_subset is not None and images.class_subset.of == 1000
    # Goldfish is class 1 of ImageNet and the first of ImageNet-R.
    assert images.class_subset.indices[0] == 1 and images.classes[0].startswith("goldfish")
    assert [synsets()[k] for k in images.class_subset.indices] == sorted(synsets_of("r"))
    assert load_dataset(PART, samples=3, data_dir=str(renditions)).class_subset == images.class_subset


def test_corrupted_images_of_some_classes_count_the_same_classes(renditions):
    small = PART.replace('"none"', '"Res32"').replace('"', "'")
    name = f'corrupted(dataset="{small}", corruption="contrast", severity=2)'
    images = load_dataset(name, samples=2, data_dir=str(renditions))
    assert images.class_subset == load_dataset(PART, samples=1, data_dir=str(renditions)).class_subset
    assert images.class_subset is not None


def test_missing_images_are_counted_and_listed(renditions, tmp_path):
    with pytest.raises(ResourceError, match=r"29799 of the 30000 images .* are missing; restore them, or"):
        load_dataset("imagenet-r", data_dir=str(renditions))
    picture(tmp_path / "imagenet-a" / synsets_of("a")[1] / "x.jpg")
    with pytest.raises(
        ResourceError, match=r"7499 of the 7500 .* 199 classes are missing: .*imagenet-a/n01498041"
    ):
        load_dataset("imagenet-a", data_dir=str(tmp_path))
    picture(tmp_path / "imagenet-a" / synsets()[0] / "x.jpg")
    with pytest.raises(ResourceError, match=r"1 of 2 folders .* not among its 200 classes"):
        load_dataset("imagenet-a(partial=True)", data_dir=str(tmp_path))
    with pytest.raises(
        ResourceError, match=r"expected sketch/<synset>/<picture> there, found imagenet-a; get it from"
    ):
        load_dataset("imagenet-sketch", data_dir=str(tmp_path))
    with pytest.raises(
        ResourceError, match=r"nowhere: expected .*found nothing \(no such file or directory\)"
    ):
        load_dataset("imagenet-a", data_dir=str(tmp_path / "nowhere"))


def test_a_complete_set_needs_no_argument(renditions, monkeypatch):
    whole = variants.Variant(variants.R.synsets, 201, variants.R.places, variants.R.facts)
    monkeypatch.setattr(variants, "R", whole)
    assert load_dataset('imagenet-r(preprocessing="none")', data_dir=str(renditions)).class_subset is not None


def test_all_classes_of_sketch_count(tmp_path):
    for label in (3, 700):
        picture(tmp_path / "sketch" / synsets()[label] / "sketch_0.JPEG", (40, 50))
    images = load_dataset('imagenet-sketch(partial=True, preprocessing="Res32")', data_dir=str(tmp_path))
    assert (images.y.tolist(), images.class_subset, images.x.shape) == ([3, 700], None, (2, 3, 32, 32))


class Favourite(nn.Module):
    """Prefers a class outside the 200, and among the 200 the one given by the first pixel."""

    def forward(self, x):
        first = (x[:, 0, 0, 0] * 199).round().long()
        logits = torch.zeros(len(x), 1000) + 0 * x.sum()
        logits[:, 0] = 9.0
        return logits.index_put((torch.arange(len(x)), INDICES[first]), torch.tensor(5.0))


def test_names_of_classes_are_timms():
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    assert synsets() == tuple(info.label_names())
    assert imagenet_classes() == tuple(info.label_descriptions())


INDICES = torch.tensor([synsets().index(each) for each in synsets_of("r")])


FAVOURITE = "python:tests.data.test_imagenet_variants.favourite(image_size=8)"


def favourite():
    return Favourite()


def test_certify_and_diagnose_load_the_two_hundred_too(renditions):
    protocol = choose_protocol(None, PART, "Linf:1/255", 20)
    options = Options(data_dir=str(renditions))
    ((loaded, images),) = load_all([FAVOURITE], protocol, options, torch.device("cpu"))
    assert loaded.defense.num_classes == len(images.classes) == 200


def test_only_the_logits_of_the_two_hundred_count(renditions, tmp_path, capsys, monkeypatch):
    images = load_dataset(PART, samples=20, data_dir=str(renditions))
    expected = ((images.x[:, 0, 0, 0] * 199).round() == images.y).float().mean()
    arguments = ["--dataset", PART, "--threat", "Linf:1/255", "--attack", "fgsm", "--samples", "20"]
    arguments += ["--data-dir", str(renditions), "--results", str(tmp_path), "--defense", FAVOURITE]
    with pytest.raises(SystemExit) as end:
        main(["run", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    (record,) = json.loads(out)["records"]
    assert record["clean_accuracy"]["value"] == pytest.approx(float(expected))
    assert record["classes"] == {"counted": 200, "of": 1000}
    assert "only the 200 of this dataset are used" in err
    folder = next(tmp_path.rglob("record.json")).parent
    with pytest.raises(SystemExit) as end:
        main(["verify", str(folder), "--data-dir", str(renditions), "--trust"])
    assert end.value.code == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("name", "place", "severities"),
    [
        ("imagenet-3dcc", "ImageNet-3DCC/fog_3d", "12345"),
        ("imagenet-c-bar", "imagenet-c-bar/sparkles", "12345"),
        ("imagenet-c-bar", "ImageNet-C-Bar/sparkles", ("10.00", "2.00", "3.50", "4.00", "5.00")),
    ],
)
def test_corruptions_by_folder(tmp_path, name, place, severities):
    for number, severity in enumerate(severities):
        picture(tmp_path / place / severity / synsets()[4] / VAL.format(number + 1), seed=number)
    corruption = place.partition("/")[2]
    found = [
        load_dataset(f'{name}(corruption="{corruption}", severity={k})', data_dir=str(tmp_path)).ids.item()
        for k in (1, 2, 5)
    ]
    # 10.00 is the most severe of five.
    assert found == ([0, 1, 4] if severities == "12345" else [1, 2, 0])
    with pytest.raises(UsageError, match="unknown corruption"):
        load_dataset(f'{name}(corruption="snow", severity=1)', data_dir=str(tmp_path))


def test_a_missing_severity_is_reported(tmp_path):
    picture(tmp_path / "imagenet-c-bar" / "sparkles" / "1" / synsets()[4] / VAL.format(1))
    with pytest.raises(ResourceError, match=r"has no folder 2: .* found 1"):
        load_dataset('imagenet-c-bar(corruption="sparkles", severity=2)', data_dir=str(tmp_path))


def test_tiny_imagenet_c(tmp_path, monkeypatch):
    folder = tmp_path / "Tiny-ImageNet-C" / "fog" / "2"
    for synset in synsets()[:199]:
        picture(folder / synset / "test_1.JPEG")
    name = 'tiny-imagenet-c(corruption="fog", severity=2)'
    with pytest.raises(ResourceError, match="folders of 199 classes"):
        load_dataset(name, data_dir=str(tmp_path))
    picture(folder / synsets()[500] / "test_1.JPEG")
    with pytest.raises(ResourceError, match=r"9800 of the 10000 images"):
        load_dataset(name, data_dir=str(tmp_path))
    monkeypatch.setattr("robench.data.tiny_imagenet.IMAGES", 200)
    images = load_dataset(name, data_dir=str(tmp_path))
    assert images.y.tolist() == list(range(200)) and images.classes[-1] == synsets()[500]
    # The clean dataset lists all classes, so that a missing folder does not shift labels.
    whole = tmp_path / "tiny-imagenet-200"
    whole.mkdir()
    (whole / "wnids.txt").write_text("\n".join(sorted([*synsets()[:199], synsets()[500]], reverse=True)))
    (whole / "words.txt").write_text(f"{synsets()[500]}\ta word\n")
    assert load_dataset(name, data_dir=str(tmp_path)).classes[-1] == "a word"
    for file in (folder / synsets()[0]).iterdir():
        file.unlink()
    (folder / synsets()[0]).rmdir()
    with pytest.raises(ResourceError, match=f"1 classes are missing: .*{synsets()[0]}"):
        load_dataset(name, data_dir=str(tmp_path))
    part = load_dataset(f"{name[:-1]}, partial=True)", data_dir=str(tmp_path))
    assert part.y.tolist() == list(range(1, 200))


@pytest.fixture
def five(tmp_path):
    for number in (1, 4, 6, 8, 9):
        picture(tmp_path / "val" / synsets()[number] / VAL.format(number), seed=number)
    return tmp_path


def test_a_list_selects_images_in_its_order(five):
    file = five / "list.txt"
    file.write_text(f"{synsets()[8]}/{VAL.format(8)}\n{VAL.format(1)}\nILSVRC2012_val_00000006\n")
    name = f'imagenet(ids="{file}", preprocessing="none")'
    images = load_dataset(name, data_dir=str(five))
    assert images.ids.tolist() == [7, 0, 5] and images.y.tolist() == [8, 1, 6] and images.name == name
    assert load_dataset(name, samples=2, data_dir=str(five)).ids.tolist() == [7, 0]
    for text, said in (
        (f"{VAL.format(2)}\n{VAL.format(1)}", r"1 of the 2 images .*: ILSVRC2012_val_00000002\.JPEG"),
        (f"{VAL.format(1)}\n{VAL.format(1)}", "entry 2 .*is repeated"),
        ("cat.jpg", 'entry 1 "cat.jpg": expected'),
        ("", "is empty"),
    ):
        file.write_text(text)
        with pytest.raises(ResourceError, match=said):
            load_dataset(name, data_dir=str(five))
    file.unlink()
    with pytest.raises(ResourceError, match="No such file"):
        load_dataset(name, data_dir=str(five))


def test_robustbenchs_list_is_read_without_importing_it(five, tmp_path, monkeypatch):
    package = tmp_path / "site" / "robustbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    name = 'imagenet(ids="robustbench", preprocessing="none")'
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "robustbench", raising=False)
    (package / "helper_files").mkdir()
    (package / "helper_files" / "imagenet_test_image_ids.txt").write_text(VAL.format(4))
    with pytest.raises(ResourceError, match=r"is not the list of robustbench 1\.1\.1"):
        load_dataset(name, data_dir=str(five))
    digest = "robench.data._image_lists._SHA256"
    monkeypatch.setattr(digest, "2a54f7ad3b1c3a94b2ec6f9ca15e6bd9a2c2ee3c3fbd5a1c6d6ef0f2a6c7a9d1")
    with pytest.raises(ResourceError, match="is not the list"):
        load_dataset(name, data_dir=str(five))
    import hashlib

    monkeypatch.setattr(digest, hashlib.sha256(VAL.format(4).encode()).hexdigest())
    assert load_dataset(name, data_dir=str(five)).ids.tolist() == [3]


def test_every_data_set_describes_its_files():
    silent = {name for name in registry.datasets if not registry.datasets.describe(name).facts.get("layout")}
    assert {name for name in silent if registry.datasets.holder(name).startswith("robench.data.")} <= {
        "corrupted"
    }


@needs("tiny-imagenet-200")
def test_the_classes_of_tiny_imagenet_are_imagenet_classes():
    wnids = (REAL / "tiny-imagenet-200" / "wnids.txt").read_text().split()
    assert len(wnids) == 200 and len({*wnids} - {*synsets()}) < 40
