"""Transformations compared with independent implementations: a codec, torchvision, SciPy, CIE formulas, plain loops."""

import io

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image
from scipy import fft, ndimage

from robench.threats.threat import Threat
from robench.threats.transformations.fog import diamond_square
from robench.threats.transformations.jpeg import YCBCR, from_blocks
from robench.threats.transformations.recolor import to_luv, to_rgb
from robench.threats.transformations.snow import lines
from tests.models import images


def smooth_images(n, side, seed=0):
    """8-bit images with structure at every scale."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, side // 4, side // 4, generator=generator)
    fine = torch.rand(n, 3, side, side, generator=generator)
    x = 0.8 * torch.nn.functional.interpolate(coarse, size=side, mode="bilinear") + 0.2 * fine
    return (x * 255).round() / 255


def one(spec, x, theta):
    """The image for the given parameters, which are the same for every row."""
    threat = Threat.parse(spec)
    return threat.image(x, theta.expand_as(threat.origin(x)), torch.arange(len(x)))


@pytest.mark.parametrize("quality", [30, 60, 80])
def test_jpeg_reproduces_the_errors_of_a_codec(quality):
    """With the rounding errors of a file's coefficients as parameters, the result is the image in the file."""
    # Far from black and white, because a decoder clips colours before converting them to RGB.
    x = (0.3 + 0.4 * smooth_images(3, 32)).mul(255).round() / 255
    for row in x:
        file = io.BytesIO()
        pixels = (row * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
        with Image.open(io.BytesIO(file.getvalue())) as picture:
            tables = [np.array(picture.quantization[min(c, 1)]).reshape(1, 1, 8, 8) for c in range(3)]
            picture.draft("YCbCr", (32, 32))
            held = np.array(picture).transpose(2, 0, 1) - 128.0
        with Image.open(file) as picture:
            decoded = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255

        def coefficients(maps):
            blocks = maps.reshape(3, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4)
            return fft.dctn(blocks, axes=(3, 4), norm="ortho")

        colours = np.einsum("rc,chw->rhw", np.array(YCBCR), row.double().numpy() * 255)
        colours[0] -= 128
        exact, table = coefficients(colours), np.stack(tables)
        stored = np.round(coefficients(held) / table)
        # Equal to our coefficients after rounding, except where integer arithmetic rounds a half the other way.
        assert (stored == np.round(exact / table)).mean() > 0.99
        errors = stored * table - exact
        theta = torch.from_numpy(errors.transpose(0, 1, 3, 2, 4).reshape(3, 32, 32) / 255).float()
        off = 255 * (one("jpeg:1", row[None], theta)[0] - decoded).abs()
        # Three colours of half a grey level each, rounded again.
        assert off.max() <= 3 and off.mean() <= 0.7


def test_the_dct_basis_matches_scipy():
    coefficients = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    blocks = coefficients.double().numpy().reshape(2, 3, 2, 8, 3, 8)
    theirs = fft.idctn(blocks, axes=(3, 5), norm="ortho").reshape(2, 3, 16, 24)
    assert np.allclose(from_blocks(coefficients).numpy(), theirs, atol=1e-5)


def test_low_frequencies_match_scipy_and_keep_the_norm():
    x = torch.full((2, 3, 16, 16), 0.5)
    threat = Threat.parse("low-frequency(ratio=0.25):1")
    theta = 0.1 * torch.randn(threat.origin(x).shape, generator=torch.Generator().manual_seed(0))
    padded = np.zeros((2, 3, 16, 16))
    padded[..., :4, :4] = theta.numpy()
    change = threat.coordinates.apply(x, theta, torch.arange(2)) - x
    assert np.allclose(change.numpy(), fft.idctn(padded, axes=(2, 3), norm="ortho"), atol=1e-6)
    assert torch.allclose(change.flatten(1).norm(dim=1), theta.flatten(1).norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("angle", [-30.0, 11.0, 90.0])
def test_rotations_match_torchvision(angle):
    x = smooth_images(2, 17)
    ours = one("rotation:90", x, torch.tensor([angle]).view(1, 1, 1, 1))
    theirs = tv.rotate(x, angle, interpolation=tv.InterpolationMode.BILINEAR)
    assert torch.allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("moved", [(2.0, -1.0), (0.5, 0.25)])
def test_translations_match_torchvision(moved):
    x = smooth_images(2, 16)
    ours = one("translation:3", x, torch.tensor(moved).view(1, 2, 1, 1))
    theirs = torch.from_numpy(
        ndimage.shift(x.numpy(), (0, 0, moved[1], moved[0]), order=1, mode="grid-constant", cval=0)
    )
    assert torch.allclose(ours, theirs, atol=1e-5)
    if moved == (2.0, -1.0):
        assert torch.allclose(ours, tv.affine(x, 0, [2, -1], 1, [0.0]), atol=1e-5)


def test_rotation_and_translation_match_torchvision():
    x = smooth_images(2, 16)
    # Parameters are in units of `shift` pixels at 30 degrees.
    ours = one("spatial(shift=3):30", x, torch.tensor([20.0, 20.0, -10.0]).view(1, 3, 1, 1))
    # The angle of torchvision's `affine` is clockwise.
    theirs = tv.affine(x, -20.0, [2, -1], 1.0, [0.0], interpolation=tv.InterpolationMode.BILINEAR)
    assert torch.allclose(ours, theirs, atol=2e-5)


def test_a_flow_of_whole_pixels_moves_pixels():
    x = smooth_images(2, 16)
    flow = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    ours = one("stadv:2", x, flow)
    assert torch.allclose(ours[..., 2:, :-1], x[..., :-2, 1:], atol=1e-5)
    # The unit of elastic is half an image.
    assert torch.allclose(one("elastic:9", x, flow / 8), ours, atol=1e-5)


def cubic(t):
    """Keys' kernel with -0.75, as in torch's bicubic interpolation."""
    t = np.abs(t)
    near = 1.25 * t**3 - 2.25 * t**2 + 1
    far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def test_elastic_samples_at_the_upsampled_displacements():
    x = smooth_images(1, 16)
    field = 0.2 * torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    place = (np.arange(16) + 0.5) / 2 - 0.5
    weights = np.zeros((16, 8))
    for near in range(-3, 12):
        weights[:, min(max(near, 0), 7)] += cubic(place - near)
    flow = np.einsum("iu,cuv,jv->cij", weights, field[0].double().numpy(), weights)
    down, across = np.mgrid[:16, :16]
    read = [down + 8 * flow[1], across + 8 * flow[0]]
    theirs = [ndimage.map_coordinates(c, read, order=1, mode="grid-constant", cval=0) for c in x[0].numpy()]
    assert np.allclose(one("elastic:9", x, field)[0].numpy(), np.stack(theirs), atol=1e-4)


def test_fog_is_the_diamond_square_algorithm():
    side, decay = 16, 3.0
    displacements = torch.randn(side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid, step, weight = np.zeros((side, side)), side, 1.0
    while step > 1:
        half = step // 2
        for i in range(half, side, step):
            for j in range(half, side, step):
                corners = [grid[(i + a) % side, (j + b) % side] for a in (-half, half) for b in (-half, half)]
                grid[i, j] = np.mean(corners) + weight * displacements[i, j]
        for i in range(0, side, half):
            for j in range((i + half) % step, side, step):
                near = [
                    grid[(i + a) % side, (j + b) % side]
                    for a, b in ((half, 0), (-half, 0), (0, half), (0, -half))
                ]
                grid[i, j] = np.mean(near) + weight * displacements[i, j]
        step, weight = half, weight / decay
    ours = diamond_square(displacements[None], decay)[0]
    assert np.allclose(ours.numpy(), grid, atol=1e-12)
    x = images(1, side=16)
    made = one("fog:9", x, displacements.float()[None, None])
    share = torch.from_numpy(np.minimum(np.abs(grid), 1)).float()
    grey = torch.tensor([0.485, 0.45, 0.406]).view(3, 1, 1)
    assert torch.allclose(made[0], x[0] * (1 - share) + grey * share, atol=1e-5)


def test_blur_at_full_share_matches_scipy():
    x = smooth_images(1, 16)
    share = torch.ones(1, 1, 16, 16)
    ours = one("blur(kernel=7, sigma=2, spread=3):1", x, share)[0]
    place = np.arange(-3, 4)
    weight = np.exp(-0.5 * (place / 2) ** 2)
    weight /= weight.sum()
    theirs = x[0].double().numpy()
    for axis in (1, 2):
        theirs = ndimage.correlate1d(theirs, weight, axis=axis, mode="mirror")
    assert np.allclose(ours.numpy(), theirs, atol=1e-5)
    assert torch.allclose(ours, tv.gaussian_blur(x[0], 7, 2.0), atol=1e-5)


def test_pixel_at_full_share_is_the_mean_of_squares():
    x = smooth_images(1, 16)
    made = one("pixel:9", x, torch.ones(1, 3, 4, 4))
    expected = x.view(1, 3, 4, 4, 4, 4).mean((3, 5))
    assert torch.allclose(made[..., ::4, ::4], expected, atol=1e-6)
    assert torch.allclose(made[..., 3::4, 3::4], expected, atol=1e-6)


def test_a_flake_is_a_line_at_its_position():
    kernel = lines(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([1.0]), 5)[0]
    assert torch.equal(kernel, kernel.flip(0, 1))
    # Pixels on the line have full value, and those two pixels away are empty.
    assert [float(kernel[i, j]) for i, j in ((0, 1), (2, 2), (4, 3))] == [1.0, 1.0, 1.0]
    assert float(kernel[0, 4]) == 0.0 and float(kernel[2, 0]) == 0.0
    black = torch.zeros(1, 3, 32, 32)
    threat = Threat.parse("snow(bleach=0, layers=1):1")
    theta = threat.origin(black).clone()
    theta[0, 0, 0, 3] = 0.5
    flake = threat.image(black, theta, torch.arange(1))
    assert float(flake.max()) == pytest.approx(0.5**4, rel=1e-5)
    assert 3 <= int((flake[0, 0] > 0).sum()) <= 9


def test_a_gabor_wave_matches_the_formula():
    grey = torch.full((1, 3, 33, 33), 0.5)
    threat = Threat.parse("gabor(sides=1, density=0.001, sigma=0.2):1")
    theta = threat.origin(grey).clone()
    assert theta.shape == (1, 3, 1, 1)
    theta[:, 0] = 0.4
    change = (threat.coordinates.apply(grey, theta, torch.arange(1)) - grey)[0]
    assert float(change[1:].abs().max()) == 0
    peak = divmod(int(change[0].argmax()), 33)
    assert float(change[0].max()) == pytest.approx(0.4, rel=1e-4)
    # Its spectrum has one pair of peaks, 3 to 5.75 waves in 22 pixels from the middle of the window.
    window = np.zeros((33, 33))
    window[:] = change[0].numpy()
    spectrum = np.abs(np.fft.rfft2(window, (256, 256)))
    down, across = np.unravel_index(spectrum.argmax(), spectrum.shape)
    waves = 22 * np.hypot(min(down, 256 - down), across) / 256
    assert 2.5 < waves < 6.3
    assert peak != (0, 0)


def test_colours_match_cieluv():
    # From the CIE's formulas at sRGB's primaries, two grays and black (D65), by an independent computation.
    known = {
        (1.0, 0.0, 0.0): (53.2408, 175.0151, 37.7564),
        (0.0, 1.0, 0.0): (87.7347, -83.0776, 107.3985),
        (0.0, 0.0, 1.0): (32.2970, -9.4054, -130.3423),
        (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
        (0.5, 0.5, 0.5): (53.3890, 0.0, 0.0),
        (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
    }
    x = torch.tensor(list(known)).T.reshape(1, 3, 1, -1)
    lower, upper = torch.tensor([0.0, -100.0, -100.0]), torch.tensor([100.0, 100.0, 100.0])
    expected = (torch.tensor(list(known.values())).clamp(lower, upper) - lower) / (upper - lower)
    ours = to_luv(x)[0, :, 0].T
    assert torch.allclose(ours, expected, atol=2e-3)
    # Without clipping the inverse restores the input.
    muted = images(2, side=16)
    assert torch.allclose(to_rgb(to_luv(muted)), muted, atol=2e-3)


def test_a_constant_map_moves_all_colours_equally():
    x = 0.35 + 0.3 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor([0.05, 0.0, 0.0]).view(3, 1, 1).expand(3, 16, 1024)[None]
    lighter = one("recolor:0.06", x, theta)
    change = to_luv(lighter) - to_luv(x)
    assert torch.allclose(change[:, 0], torch.full_like(change[:, 0], 0.05), atol=3e-3)
    assert change[:, 1:].abs().max() < 3e-3
