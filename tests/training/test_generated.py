import numpy as np
import pytest
import torch

from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.training import train
from robench.training.batches import InMemory
from robench.training.generated import Mixture, with_generated

CARD = """
builder = "vit(image_size=16, patch_size=8, width=8, depth=1, heads=2, num_classes=10)"
dataset = "digits"
[recipe]
samples = 64
measured = 8
evaluation = "Linf:0.1"
{more}
[recipe.finetuning]
epochs = 2
batch_size = 20
steps = 0
"""


@pytest.fixture
def archive(tmp_path):
    """The layout of the published images of EDM."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "edm.npz", image=images, label=np.arange(30) % 10)
    return tmp_path / "edm.npz"


def test_a_batch_has_its_share_of_generated_images():
    """As in the official code: 39 of 128 real images, without repetition, and 89 generated ones."""
    torch.manual_seed(0)
    batches = Mixture(1000, 0.7).order(1500, 128).split(128)
    assert len(batches) == 1000 // 128
    real = torch.cat([batch[batch < 1000] for batch in batches])
    assert all(int((batch < 1000).sum()) == 128 - int(128 * 0.7) == 39 for batch in batches)
    assert len(real) == len(real.unique())
    assert all((batch >= 1000).diff().any() for batch in batches)  # in random order


def test_generated_images_follow_the_real_ones(archive):
    images = load_dataset("digits", "train", 20)
    x, y, digest = with_generated(images, archive)
    assert x.shape == (50, 3, 16, 16) and len(y) == 50 and images.digest in digest
    with np.load(archive) as arrays:
        expected = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(x[[21, 3, 49]], torch.stack([expected[1], images.x[3], expected[29]]))
    assert y[25].item() == 5
    assert len(InMemory(x[:], y, Mixture(20, 0.5))) == 20


def test_training_with_generated_images(archive, tmp_path):
    card = tmp_path / "card.toml"
    card.write_text(CARD.format(more="generated = 0.7"))
    with pytest.raises(UsageError, match="needs --generated FILE"):
        train(str(card), output=tmp_path / "x.safetensors", progress=False)
    results = [
        train(str(card), output=tmp_path / "x.safetensors", progress=False, generated=archive)
        for _ in range(2)
    ]
    assert results[0].sha256 == results[1].sha256
    card.write_text(CARD.format(more=""))
    with pytest.raises(UsageError, match="no other recipe may have it"):
        train(str(card), output=tmp_path / "x.safetensors", progress=False, generated=archive)
    plain = train(str(card), output=tmp_path / "x.safetensors", progress=False)
    assert plain.sha256 != results[0].sha256


def test_generated_images_of_another_size(archive, tmp_path):
    images = load_dataset("digits", "train", 20)
    np.savez(tmp_path / "small.npz", image=np.zeros((2, 8, 8, 3), np.uint8), label=[0, 1])
    with pytest.raises(UsageError, match=r"has images of shape \(3, 8, 8\), but those of digits"):
        with_generated(images, tmp_path / "small.npz")
    np.savez(tmp_path / "few.npz", image=np.zeros((2, 16, 16, 3), np.uint8), label=[0])
    with pytest.raises(ResourceError, match="2 images and 1 labels"):
        with_generated(images, tmp_path / "few.npz")


def test_a_network_that_normalises_pixels_is_not_trained(tmp_path):
    card = tmp_path / "card.toml"
    card.write_text(
        CARD.format(more="").replace("num_classes=10", "num_classes=10, mean=(0.5, 0.5, 0.5), std=(1, 1, 1)")
    )
    with pytest.raises(UsageError, match="card: training takes pixels in"):
        train(str(card), output=tmp_path / "x.safetensors", progress=False)
