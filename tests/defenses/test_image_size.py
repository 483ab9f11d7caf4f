"""Purifiers before images of another size: the same two ways for all of them, noise included."""

import pytest
import torch

from robench.core import specs
from robench.core.rng import Stream, noise
from robench.defenses import build_purifier

TINY = {
    "maep": "maep(image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, "
    "decoder_heads=2)",
    "de3": "de3(image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, "
    "decoder_heads=2, sigma=40)",
    "de3 by mask": "de3(image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, "
    'decoder_heads=2, noise="mask", sigma=50)',
    "diffpure": "diffpure(image_size=8, widths=[4, 8], layers=1, attention=[], groups=4, t=20, steps=2)",
}
STEPS = {"maep": 4, "de3": 4, "de3 by mask": 4, "diffpure": 2}


def tiny(kind, size_mode):
    if kind == "diffpure":
        pytest.importorskip("diffusers")
    spec = specs.parse(TINY[kind])
    torch.manual_seed(0)
    return build_purifier(specs.Spec(spec.name, {**spec.arguments, "size_mode": size_mode})).eval()


def images(n, side):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(side))


def called(purifier, x, samples):
    """One call in which row i's noise is that of sample `samples[i]`."""
    ids = torch.tensor(samples)
    with noise(Stream.of(0, "test"), ids, ids * 0, ids * 0):
        return purifier(x)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("size_mode", ["tile", "interpolate"])
def test_noise_hangs_on_the_sample_alone(kind, size_mode):
    purifier, x = tiny(kind, size_mode), images(3, 16)
    together = called(purifier, x, [5, 6, 7])
    assert together.shape == x.shape and together.min() >= 0 and together.max() <= 1
    for i in range(3):
        alone = called(purifier, x[i : i + 1], [5 + i])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)
    if purifier.stochastic:
        assert not torch.allclose(called(purifier, x, [8, 9, 10]), together, atol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in TINY if kind != "maep"])
def test_each_tile_has_noise_of_its_own(kind):
    """Four equal tiles come out different."""
    purifier = tiny(kind, "tile")
    x = images(1, 8).repeat(1, 1, 2, 2)
    out = called(purifier, x, [0])
    quarters = [out[..., a : a + 8, b : b + 8] for a in (0, 8) for b in (0, 8)]
    assert all(not torch.allclose(quarters[0], other, atol=1e-3) for other in quarters[1:])


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("size_mode", ["tile", "interpolate"])
def test_its_own_size_is_as_before(kind, size_mode):
    x = images(2, 8)
    assert torch.equal(called(tiny(kind, size_mode), x, [1, 2]), called(tiny(kind, "exact"), x, [1, 2]))


@pytest.mark.parametrize("kind", ["de3", "diffpure"])
def test_tiles_do_not_see_each_other_and_an_interpolated_image_is_whole(kind):
    x = images(1, 16)
    other = x.clone()
    other[..., 8:, 8:] = 0.5
    here = (..., slice(0, 8), slice(0, 8))
    for size_mode, reaches in (("interpolate", True), ("tile", False)):
        purifier = tiny(kind, size_mode)
        first, second = called(purifier, x, [0]), called(purifier, other, [0])
        assert torch.equal(first[here], second[here]) != reaches


@pytest.mark.parametrize("kind", TINY)
def test_sizes_that_do_not_divide_are_refused(kind):
    step = STEPS[kind]
    for size_mode, side, said in (
        (
            "exact",
            16,
            f'takes images of 8 px, not of 16 px: size_mode="tile" .* 8 px, size_mode="interpolate" of {step} px',
        ),
        ("tile", 12, "multiple of 8 px, not of 12 px"),
        ("tile", 4, "multiple of 8 px, not of 4 px"),
        ("interpolate", 15, f"multiple of {step} px, not of 15 px"),
    ):
        purifier = tiny(kind, size_mode)
        for refuse in (lambda p=purifier, s=side: p.check(s), lambda p=purifier, s=side: p(images(1, s))):
            with pytest.raises(ValueError, match=said):
                refuse()
