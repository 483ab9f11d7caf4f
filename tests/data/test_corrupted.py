"""Corruptions are determined by seed and sample, and written in standard layouts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from robench.cli import main
from robench.core.errors import ResourceError, UsageError
from robench.corruption.cache import Cache
from robench.corruption.make import corrupt, decode_jpeg, to_jpeg
from robench.corruption.names import COMMON, VALIDATION
from robench.data import Images, load_dataset
from robench.data._names import synsets
from robench.data.corrupted import corrupt_all
from robench.data.export_corrupted import write_corrupted
from tests.corruption.scenes import scene, some

RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "speckle_noise",
    "spatter",
}


@pytest.mark.parametrize("corruption", COMMON + VALIDATION)
def test_a_corruption_is_determined_by_seed_and_sample(corruption):
    def made(severity=3, sample=7, seed=0):
        # The state of the generator has no effect and is not changed.
        np.random.seed(np.random.default_rng().integers(2**32))  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        found = corrupt(scene(), corruption, severity, sample, seed)
        assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
        return found

    found = made()
    assert found.shape == (32, 32, 3) and found.dtype == np.uint8
    assert np.array_equal(found, made())
    assert not np.array_equal(found, scene())
    for other in (made(sample=8), made(seed=1)):
        assert np.array_equal(found, other) != (corruption in RANDOM)
    assert not np.array_equal(found, made(severity=5))


def test_the_order_of_work_changes_nothing():
    images = some()
    whole = list(corrupt_all(images, "glass_blur", 2))
    back = Images("scenes", "test", images.x.flip(0), images.y.flip(0), images.ids.flip(0), images.classes)
    assert np.array_equal(whole[::-1], list(corrupt_all(back, "glass_blur", 2)))
    assert np.array_equal(whole[:2], list(corrupt_all(images.first(2), "glass_blur", 2)))


@pytest.mark.slow
def test_workers_change_nothing():
    images = some(40)
    for corruption in ("impulse_noise", "frost"):
        alone = list(corrupt_all(images, corruption, 4))
        assert np.array_equal(alone, list(corrupt_all(images, corruption, 4, workers=2)))


def test_a_small_image_is_corrupted_at_a_multiple_of_its_size():
    small = scene(side=16)
    large = corrupt(small.repeat(2, 0).repeat(2, 1), "gaussian_noise", 3, 5)
    expected = np.rint(large.reshape(16, 2, 16, 2, 3).mean((1, 3)))
    assert np.array_equal(corrupt(small, "gaussian_noise", 3, 5), expected)
    assert corrupt(scene(side=9), "fog", 1, 0).shape == (9, 9, 3)


def test_spatter_without_drops_leaves_the_image_unchanged():
    # Sample 23 of seed 0 is the first whose drops are all too small, where the library divides by zero.
    missed = [i for i in range(200) if np.array_equal(corrupt(scene(), "spatter", 1, i), scene())]
    assert len(missed) < 20
    assert all(not np.array_equal(corrupt(scene(), "spatter", 4, i), scene()) for i in missed)


def test_the_cache_is_shared_and_changes_nothing(tmp_path, monkeypatch):
    cache = Cache(tmp_path, 10**8)
    images = some(140)
    first = list(corrupt_all(images, "frost", 2, cache=cache))
    assert cache.usage()[0] == 2  # chunks of 128
    monkeypatch.setattr("robench.corruption.tasks.corrupt", lambda *a: pytest.fail("made again"))
    assert np.array_equal(first, list(corrupt_all(images, "frost", 2, cache=cache)))
    # Fewer images share complete chunks.
    assert np.array_equal(first[:128], list(corrupt_all(images.first(128), "frost", 2, cache=cache)))


def test_a_jpeg_round_trip_matches_a_file(tmp_path):
    plain, lossy = (corrupt(scene(), "gaussian_noise", 3, 0, jpeg=jpeg) for jpeg in (False, True))
    Image.fromarray(plain).save(tmp_path / "a.jpg", quality=85, optimize=True)
    assert np.array_equal(lossy, np.array(Image.open(tmp_path / "a.jpg")))
    assert not np.array_equal(plain, lossy)


def test_mistakes_are_reported(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="did you mean glass_blur"):
        corrupt(scene(), "glas_blur", 1, 0)
    with pytest.raises(UsageError, match="severity 0"):
        corrupt(scene(), "fog", 0, 0)
    monkeypatch.setattr("robench.corruption.make.PACKAGE", "no-such-package")
    with pytest.raises(ResourceError, match="pip install no-such-package"):
        corrupt(scene(), "fog", 1, 0)


@pytest.fixture
def archive(tmp_path):
    """An archive of four images, as a dataset."""
    np.savez(tmp_path / "mine.npz", x=np.stack([scene(i) for i in range(4)]), y=np.array([0, 1, 1, 0]))
    return f"npz:{tmp_path}/mine.npz"


def test_the_name_describes_how_images_were_corrupted(archive):
    name = f'corrupted(severity=2, corruption="impulse_noise", dataset="{archive}")'
    found = load_dataset(name, samples=3)
    assert found.name == f'corrupted(corruption="impulse_noise", dataset="{archive}", severity=2)'
    assert found.digest == load_dataset(found.name).first(3).digest
    expected = corrupt(scene(2), "impulse_noise", 2, 2)
    assert torch.equal((found.x[2] * 255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))
    lossy = load_dataset(name.replace("severity=2", "severity=2, jpeg=True"), samples=3)
    assert "jpeg=True" in lossy.name and lossy.digest != found.digest


def test_arrays_in_the_layout_of_cifar10_c(archive, tmp_path):
    images = load_dataset(archive, samples=3)
    folder = write_corrupted(images, tmp_path / "CIFAR-10-C", ["fog", "glass_blur"])
    assert {each.name for each in folder.iterdir()} == {
        "fog.npy",
        "glass_blur.npy",
        "labels.npy",
        "robench-corrupt.json",
    }
    found = load_dataset('cifar10-c(corruption="glass_blur", severity=4)', data_dir=str(tmp_path))
    assert found.y.tolist() == [0, 1, 1]
    expected = corrupt(scene(1), "glass_blur", 4, 1)
    assert torch.equal((found.x[1] * 255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))
    assert json.loads((folder / "robench-corrupt.json").read_text())["jpeg"] is None
    with pytest.raises(ResourceError, match="different seed"):
        write_corrupted(images, folder, ["fog"], seed=1)
    with pytest.raises(UsageError, match="all five"):
        write_corrupted(images, folder, ["fog"], [3])
    with pytest.raises(ResourceError, match=r"already contains mine\.npz"):
        write_corrupted(images, tmp_path, ["fog"])


@pytest.mark.parametrize("file", ["fog.npy", "labels.npy"])
@pytest.mark.parametrize("damage", ["pixel", "truncated", "shape", "pickle"])
def test_arrays_that_exist_are_kept_only_if_they_are_the_same(archive, tmp_path, file, damage):
    images, output, lines = load_dataset(archive, samples=2), tmp_path / "C", []
    write_corrupted(images, output, ["fog"], note=lines.append)
    assert lines[-1] == f"fog is in {output}/fog.npy"
    before = (output / file).read_bytes()
    write_corrupted(images, output, ["fog"], note=lines.append)
    assert lines[-1] == f"fog is kept in {output}/fog.npy" and (output / file).read_bytes() == before
    array = np.load(output / file)
    if damage == "pixel":
        array[-1] += 1  # the last image at the last severity
        np.save(output / file, array)
    elif damage == "truncated":
        (output / file).write_bytes(before[:-1])
    elif damage == "shape":
        np.save(output / file, array[1:])
    else:
        np.save(output / file, np.array([{}]), allow_pickle=True)
    with pytest.raises(ResourceError, match=rf"{file} differs from what would be written: remove it"):
        write_corrupted(images, output, ["fog"])


def test_folders_in_the_layout_of_imagenet_c_after_an_interruption(tmp_path, capsys, monkeypatch):
    for number, label in ((3, 0), (1, 7), (2, 0)):
        path = tmp_path / "val" / synsets()[label] / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(number)).save(path, format="PNG")
    output = tmp_path / "ImageNet-C"
    arguments = ["corrupt", "--dataset", 'imagenet(preprocessing="none")', "--data-dir", str(tmp_path)]
    arguments += ["--output", str(output), "--corruption", "snow", "--severity", "5", "--workers", "1"]

    def call():
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return end.value.code, capsys.readouterr()

    with monkeypatch.context() as patch:
        import robench.data.export_corrupted as module

        real = module.write_quickly

        def killed(path, content):
            if path.name == "ILSVRC2012_val_00000003.JPEG":
                raise KeyboardInterrupt
            real(path, content)

        patch.setattr(module, "write_quickly", killed)
        assert call()[0] == 130
    written = sorted(output.rglob("*.JPEG"))
    assert [each.name[-7:-5] for each in written] == ["02", "01"]
    before = [each.stat().st_mtime_ns for each in written]
    code, (out, err) = call()
    assert code == 0, err
    assert str(output) in out and [each.stat().st_mtime_ns for each in written] == before
    found = load_dataset('imagenet-c(corruption="snow", severity=5)', data_dir=str(tmp_path))
    assert (found.ids.tolist(), found.y.tolist()) == ([0, 1, 2], [7, 0, 0])
    expected = decode_jpeg(to_jpeg(corrupt(scene(1), "snow", 5, 0)))
    assert torch.equal((found.x[0] * 255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))
    assert "snow 5 is in" in err and "snow 5 is kept in" in call()[1].err
    # Another image in its place is refused.
    for name in ("n01514668/ILSVRC2012_val_00000001.JPEG", "n01440764/ILSVRC2012_val_00000003.JPEG"):
        file = output / "snow" / "5" / name
        content = file.read_bytes()
        Image.fromarray(scene(9)).save(file, format="JPEG")
        code, (_, err) = call()
        assert code == 3 and "differs from what would be written" in err and len(err.splitlines()) == 1
        file.write_bytes(content)
    # A file truncated by a power cut is written again.
    whole = [each.read_bytes() for each in written]
    written[0].write_bytes(b"")
    written[1].write_bytes(whole[1][:-100] + bytes(100))
    assert call()[0] == 0
    assert [each.read_bytes() for each in written] == whole
