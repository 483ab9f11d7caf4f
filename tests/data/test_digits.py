import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from robench.core import registry
from robench.core.errors import UsageError
from robench.data import load_dataset

DIGEST = "86843a462c795b1427b10b064eb8c7d2c4f2995b19820bd8dc690c650d3ba826"


def test_splits_partition_the_images_in_canonical_order():
    train, test = load_dataset("digits", "train"), load_dataset("digits")
    assert (len(train), len(test)) == (1258, 539)
    assert set((test.ids % 10).tolist()) == {2, 5, 8}
    both = torch.cat([train.ids, test.ids]).sort().values
    assert torch.equal(both, torch.arange(1797))
    assert torch.equal(test.ids, test.ids.sort().values)


def test_pixels_are_the_original_ones_enlarged():
    test = load_dataset("digits")
    assert test.x.shape == (539, 3, 16, 16)
    assert test.x.dtype == torch.float32
    assert test.y.dtype == test.ids.dtype == torch.int64
    assert 0 <= float(test.x.min()) < float(test.x.max()) <= 1
    bunch = load_digits()
    np.testing.assert_array_equal(test.y, bunch.target[test.ids.numpy()])
    small = torch.from_numpy(bunch.images[test.ids.numpy()]) / 16
    # Bilinear doubling with half-pixel centers: pixels 2k and 2k + 1 have weights 3 : 1.
    left = torch.cat([small[:, :, :1], small[:, :, :-1]], 2)
    right = torch.cat([small[:, :, 1:], small[:, :, -1:]], 2)
    rows = torch.stack([0.75 * small + 0.25 * left, 0.75 * small + 0.25 * right], 3).flatten(2)
    assert torch.equal(test.x[:, 0, 0].double(), rows[:, 0])
    assert torch.equal(test.x[:, 0], test.x[:, 2])


def test_the_digest_depends_on_the_pixels():
    # Records contain it: a change would invalidate every record on digits.
    assert load_dataset("digits").digest == DIGEST
    assert load_dataset("digits", samples=7).digest == load_dataset("digits").first(7).digest
    assert load_dataset("digits", samples=7).digest != load_dataset("digits", samples=8).digest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "digit"}, "did you mean digits"),
        ({"name": "digits", "split": "valid"}, "expected train or test"),
        ({"name": "digits", "samples": 540}, "has 539"),
        ({"name": "digits", "samples": 0}, "at least 1"),
    ],
)
def test_mistakes_are_reported(arguments, said):
    with pytest.raises(UsageError, match=said):
        load_dataset(**arguments)


def test_both_datasets_are_registered():
    assert {"digits", "cifar10"} <= set(registry.datasets)
