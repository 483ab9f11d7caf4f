"""Every fast corruption matches the library with the same random numbers."""

import inspect

import numpy as np
import pytest
from imagecorruptions import corrupt as library

from robench.corruption import quick
from tests.corruption.scenes import scene

ALL = {**quick.QUICK, "glass_blur": quick.glass_blur}
# One of each shape, and the severities that are tried on it.
PICTURES = {0: (scene(0, 64), (2, 4)), 1: (scene(1, 33), (1, 3, 5)), 2: (scene(2, 83)[:, :47].copy(), (5,))}


def both(name, image, severity, seed):
    """The images of the library and of robench, and whether both drew equally many random numbers."""
    given = {"seed": seed} if "seed" in inspect.signature(ALL[name]).parameters else {}
    np.random.seed(seed)  # noqa: NPY002
    theirs = library(image, severity=severity, corruption_name=name, **given)
    after = np.random.get_state()[1:3]  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    ours = ALL[name](image, severity, **given)
    same = [np.array_equal(a, b) for a, b in zip(after, np.random.get_state()[1:3], strict=True)]  # noqa: NPY002
    return theirs, ours, all(same)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "elastic_transform" else name for name in ALL],
)
def test_results_match_the_library_to_within_one_grey_level(name):
    near, equal, pixels = 0, 0, 0
    for number, (image, severities) in PICTURES.items():
        for severity in severities:
            theirs, ours, same_draws = both(name, image, severity, 7 * number + severity)
            assert ours.shape == theirs.shape == image.shape and ours.dtype == np.uint8
            assert same_draws
            difference = np.abs(theirs.astype(int) - ours)
            near += int((difference <= 1).sum())
            equal += int((difference == 0).sum())
            pixels += difference.size
    assert near >= 0.999 * pixels
    # Stricter than one gray level: nearly all pixels are equal.
    assert equal >= 0.9999 * pixels, f"{equal / pixels:.5f}"


@pytest.mark.parametrize("name", ALL)
def test_the_input_is_not_modified(name):
    image = scene(3)
    before = image.copy()
    both(name, image, 3, 0)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("value", [0, 255, 128])
@pytest.mark.parametrize(
    "name", ["brightness", "saturate", "contrast", "zoom_blur", "motion_blur", "glass_blur"]
)
def test_uniform_images(name, value):
    image = np.full((40, 40, 3), value, np.uint8)
    theirs, ours, _ = both(name, image, 4, 1)
    assert np.abs(theirs.astype(int) - ours).max() <= 1
