"""Image folders: order, labels, preprocessing and errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.data._names import CIFAR100_CLASSES, synsets
from tests.data.real import REAL, needs

VAL = "ILSVRC2012_val_{:08d}.JPEG"


def picture(path, size=(8, 8), seed=0, mode="RGB"):
    """Write a lossless image of random pixels and return them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return pixels


@pytest.fixture
def imagenet(tmp_path):
    """Six images of three ImageNet classes in the layout of the challenge."""
    for number, label in ((7, 5), (3, 5), (1, 900), (9, 0), (4, 900), (2, 0)):
        picture(tmp_path / "imagenet" / "val" / synsets()[label] / VAL.format(number), (40, 30), number)
    return tmp_path


def test_imagenet_is_in_the_order_of_the_numbers(imagenet):
    images = load_dataset('imagenet(preprocessing="none")', data_dir=str(imagenet))
    assert images.ids.tolist() == [0, 1, 2, 3, 6, 8]
    assert images.y.tolist() == [900, 0, 5, 900, 5, 0]
    assert len(images.classes) == 1000 and images.classes[0].startswith("tench")
    raw = Image.open(imagenet / "imagenet" / "val" / synsets()[5] / VAL.format(7))
    assert torch.equal(images.x[4], transforms.ToTensor()(raw))


def test_only_the_first_are_decoded(imagenet):
    (imagenet / "imagenet" / "val" / synsets()[0] / VAL.format(9)).write_bytes(b"no picture")
    name = 'imagenet(preprocessing="none")'
    assert len(load_dataset(name, samples=5, data_dir=str(imagenet))) == 5
    with pytest.raises(ResourceError, match="1 of 6 images"):
        load_dataset(name, samples=6, data_dir=str(imagenet))


@pytest.mark.parametrize(
    ("preprocessing", "reference"),
    [
        ("Res256Crop224", [transforms.Resize(256), transforms.CenterCrop(224)]),
        (
            "BicubicRes256Crop224",
            [transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)],
        ),
        ("Crop288", [transforms.CenterCrop(288)]),
    ],
)
def test_preprocessing_follows_its_name(tmp_path, preprocessing, reference):
    pixels = picture(tmp_path / "val" / synsets()[1] / VAL.format(1), (300, 400))
    images = load_dataset(f'imagenet(preprocessing="{preprocessing}")', data_dir=str(tmp_path))
    expected = transforms.Compose([*reference, transforms.ToTensor()])(Image.fromarray(pixels))
    assert torch.equal(images.x[0], expected)
    assert images.name == f'imagenet(preprocessing="{preprocessing}")'


def test_the_preprocessing_is_in_the_name_and_the_digest(tmp_path):
    picture(tmp_path / "val" / synsets()[1] / VAL.format(1), (300, 400))
    usual = load_dataset("imagenet", data_dir=str(tmp_path))
    assert usual.name == 'imagenet(preprocessing="Res256Crop224")'
    assert usual.digest == load_dataset(usual.name, data_dir=str(tmp_path)).digest
    other = load_dataset('imagenet(preprocessing="BicubicRes256Crop224")', data_dir=str(tmp_path))
    assert usual.digest != other.digest


def test_bad_images_are_counted_and_listed(imagenet):
    folder = imagenet / "imagenet" / "val" / synsets()[5]
    (folder / VAL.format(7)).write_bytes((folder / VAL.format(7)).read_bytes()[:200])
    (folder / VAL.format(3)).write_bytes(b"")
    with pytest.raises(ResourceError) as caught:
        load_dataset('imagenet(preprocessing="none")', data_dir=str(imagenet))
    text = str(caught.value)
    assert "2 of 6 images" in text and VAL.format(3) in text and VAL.format(7) in text and "\n" not in text


def test_mistakes_in_imagenet_are_reported(imagenet):
    said = {
        'imagenet(preprocessing="Rse224")': (UsageError, "did you mean Res224"),
        'imagenet(preprocessing="Crop288")': (
            ResourceError,
            r"6 of 6 .*too small for a crop of 288 px: 30x40 px",
        ),
        "imagenet(size=3)": (UsageError, "takes no argument size"),
        'imagenet(split="train")': (UsageError, "omit it"),
        "imagenet:here": (UsageError, "takes no path"),
        'imagenet-c(corruption="fog")': (UsageError, "needs severity"),
        'imagenet-c(corruption="fgo", severity=1)': (UsageError, "did you mean fog"),
        'imagenet-c(corruption="fog", severity=6)': (UsageError, "expected 1, 2, 3, 4 or 5"),
        'imagenet-c(corruption="fog", severity=1)': (ResourceError, "ImageNet-C/fog/1"),
    }
    for name, (kind, text) in said.items():
        with pytest.raises(kind, match=text):
            load_dataset(name, data_dir=str(imagenet))
    with pytest.raises(ResourceError, match="expected imagenet/train/<synset>"):
        load_dataset("imagenet", "train", data_dir=str(imagenet))
    picture(imagenet / "imagenet" / "val" / "n00000000" / VAL.format(20))
    with pytest.raises(ResourceError, match=r"1 of 4 folders .*n00000000"):
        load_dataset("imagenet", data_dir=str(imagenet))


def test_unexpected_files_are_reported(imagenet):
    folder = imagenet / "imagenet" / "val" / synsets()[5]
    (folder / ".DS_Store").write_text("hidden files do not matter")
    assert len(load_dataset('imagenet(preprocessing="none")', data_dir=str(imagenet))) == 6
    (folder / "notes.txt").write_text("")
    with pytest.raises(ResourceError, match=r"1 of .* are not images or are empty: .*notes\.txt"):
        load_dataset("imagenet", data_dir=str(imagenet))
    (folder / "notes.txt").unlink()
    picture(folder / "cat.JPEG")
    with pytest.raises(ResourceError, match=r"1 files .*not named"):
        load_dataset("imagenet", data_dir=str(imagenet))


def test_imagenet_c_in_the_layout_of_its_archives(tmp_path):
    pixels = picture(tmp_path / "ImageNet-C" / "blur" / "glass_blur" / "4" / synsets()[3] / VAL.format(12))
    images = load_dataset('imagenet-c(severity=4, corruption="glass_blur")', data_dir=str(tmp_path))
    assert images.name == 'imagenet-c(corruption="glass_blur", severity=4)'
    assert (images.ids.tolist(), images.y.tolist()) == ([11], [3])
    assert torch.equal((images.x[0] * 255).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1))


def test_folders_alternate_between_classes(tmp_path, monkeypatch):
    for i, place in enumerate(("b/1.png", "b/2.png", "b/3.png", "a/9.png", "c/5.png", "c/6.png")):
        picture(tmp_path / place, seed=i, mode="L" if place == "a/9.png" else "RGB")
    images = load_dataset(f"folder:{tmp_path}")
    assert images.y.tolist() == [0, 1, 2, 1, 2, 1]
    assert images.classes == ("a", "b", "c")
    assert images.ids.tolist() == list(range(6))
    assert torch.equal(images.x[0, 0], images.x[0, 2])  # the grey one
    assert load_dataset(f"folder:{tmp_path}", samples=4).digest == images.first(4).digest
    assert load_dataset(f"folder:{tmp_path.name}", data_dir=str(tmp_path.parent)).digest == images.digest
    picture(tmp_path / "a" / "10.png", (9, 8))
    with pytest.raises(UsageError, match="8x9 px"):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("channels", [3, 1])
def test_gray_images_of_16_bits_keep_their_upper_bits(tmp_path, channels):
    """Pillow's own conversion makes them white: radiographs and depth maps come like this."""
    gray = np.random.default_rng(0).integers(0, 2**16, (8, 8), dtype=np.uint16)
    for place in ("a/1.png", "b/2.png"):
        (tmp_path / place).parent.mkdir()
        Image.fromarray(gray).save(tmp_path / place)
    images = load_dataset(f"folder:{tmp_path}(channels={channels})")
    expected = torch.from_numpy((gray >> 8).astype(np.float32) / 255)
    assert torch.equal(images.x[0], expected.expand(channels, 8, 8))


def test_a_folder_of_some_of_imagenets_classes(tmp_path):
    for label in (17, 3):
        picture(tmp_path / synsets()[label] / "x.png")
    images = load_dataset(f'folder:{tmp_path}(classes="imagenet")')
    assert images.y.tolist() == [3, 17] and len(images.classes) == 1000
    assert load_dataset(f"folder:{tmp_path}").y.tolist() == [0, 1]
    picture(tmp_path / "dogs" / "x.png")
    with pytest.raises(ResourceError, match=r"not among ImageNet.s 1,000 synsets"):
        load_dataset(images.name)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("folder", UsageError, "write folder:PATH"),
        ('folder(path="x")', UsageError, "omit it"),
        ("folder:nowhere", ResourceError, "not a folder"),
        ('folder:.(classes="coco")', UsageError, "folders or imagenet"),
        ("folder:.", ResourceError, "no folders of images"),
        ("digits:x", UsageError, "takes no path"),
    ],
)
def test_mistakes_in_the_spec_of_a_folder_are_reported(tmp_path, monkeypatch, name, kind, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=said):
        load_dataset(name)


@pytest.fixture
def tiny(tmp_path):
    """Three validation images and three for training, in Tiny-ImageNet's layout."""
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for number, wnid in ((10, "n02"), (2, "n01"), (5, "n02")):
        picture(
            root / "val" / "images" / f"val_{number}.JPEG", seed=number, mode="L" if number == 2 else "RGB"
        )
        lines.append(f"val_{number}.JPEG\t{wnid}000000\t0\t32\t44\t62\n")
    for wnid, number in (("n02000000", 0), ("n01000000", 1), ("n01000000", 0)):
        picture(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", seed=number)
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n02000000\nn01000000\n")
    (root / "words.txt").write_text("n01000000\tgoldfish\nn02000000\tfrog\n")
    return tmp_path


def test_tiny_imagenet_in_its_layout(tiny):
    images = load_dataset("tiny-imagenet", data_dir=str(tiny))
    assert images.ids.tolist() == [2, 5, 10]
    assert images.y.tolist() == [0, 1, 1]
    assert images.classes == ("goldfish", "frog")
    assert torch.equal(images.x[0, 0], images.x[0, 1])
    train = load_dataset("tiny-imagenet", "train", data_dir=str(tiny))
    assert (train.ids.tolist(), train.y.tolist()) == ([0, 1, 2], [0, 1, 0])


def test_missing_files_of_tiny_imagenet_are_reported(tiny):
    (tiny / "tiny-imagenet-200" / "val" / "images" / "val_5.JPEG").unlink()
    with pytest.raises(ResourceError, match=r"1 of 3 images .*val_5\.JPEG \(missing\)"):
        load_dataset("tiny-imagenet", data_dir=str(tiny))
    (tiny / "tiny-imagenet-200" / "wnids.txt").unlink()
    with pytest.raises(ResourceError, match=r"wnids\.txt"):
        load_dataset("tiny-imagenet", data_dir=str(tiny))
    with pytest.raises(ResourceError, match="tiny-imagenet is not under"):
        load_dataset("tiny-imagenet", data_dir=str(tiny / "elsewhere"))


@needs("tiny-imagenet-200")
def test_real_tiny_imagenet():
    images = load_dataset("tiny-imagenet", samples=300, data_dir=str(REAL))
    assert images.x.shape == (300, 3, 64, 64) and len(images.classes) == 200
    # val_0 is of n03444034, number 109 of the sorted names.
    assert images.ids[0] == 0 and images.classes[images.y[0]] == "go-kart"
    grey = (images.x[:, 0] == images.x[:, 1]).flatten(1).all(1)
    assert 0 < int(grey.sum()) < 20


def test_the_lists_of_names_are_complete():
    assert len(set(CIFAR100_CLASSES)) == 100 and list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
    assert len(set(synsets())) == 1000 and list(synsets()) == sorted(synsets())
