import torch

from robench.training.augment import augment
from robench.training.recipe import Recipe


def test_nothing_asked_nothing_done():
    x = torch.rand(4, 3, 16, 16)
    assert augment(x, Recipe()) is x


def test_shifts_are_the_nine_crops_of_the_padded_image():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 5, 5)
    found = {tuple(row.flatten().tolist()) for row in augment(image.expand(200, -1, -1, -1), Recipe(shift=1))}
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    crops = {tuple(padded[:, :, i : i + 5, j : j + 5].flatten().tolist()) for i in range(3) for j in range(3)}
    assert found == crops


def test_flips_mirror_about_half():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 4, 4)
    out = augment(image.expand(400, -1, -1, -1), Recipe(flip=True))
    mirrored = (out == image.flip(3)).flatten(1).all(1)
    assert torch.equal(out[~mirrored], image.expand(int((~mirrored).sum()), -1, -1, -1))
    assert 140 < int(mirrored.sum()) < 260


def test_turning_stays_in_range_and_keeps_the_middle():
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 15, 15)
    image[:, :, 5:10, 5:10] = 1
    out = augment(image.expand(50, -1, -1, -1), Recipe(rotation=20, scaling=0.1))
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    assert (out[:, 0, 7, 7] > 0.99).all()
    assert not torch.equal(out[0], out[1])
    mass = out.sum((1, 2, 3)) / 25
    assert float(mass.min()) > 0.75 and float(mass.max()) < 1.3


def test_resized_crops_are_parts_of_the_image_of_the_sizes_asked_for():
    """On a ramp along each axis a crop shows where it lies: its slope is its size, its mean its middle."""
    torch.manual_seed(0)
    ramp = (torch.arange(64) + 0.5) / 64
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)])[None].expand(500, -1, -1, -1)
    out = augment(image, Recipe(resized_crop=0.2))
    inner = out[:, :, 8:-8, 8:-8]
    # An image whose every pixel is the same along one axis: the difference between its ends is the crop's part.
    width = (inner[:, 0, 0, -1] - inner[:, 0, 0, 0]) * 64 / 47
    height = (inner[:, 1, -1, 0] - inner[:, 1, 0, 0]) * 64 / 47
    area, shape = width * height, width / height
    assert 0.18 < float(area.min()) < 0.25 and 0.9 < float(area.max()) < 1.02
    assert float(shape.min()) > 0.74 and float(shape.max()) < 1.35
    left = inner[:, 0].mean((1, 2)) - width / 2
    assert float(left.min()) > -0.01 and float((left + width).max()) < 1.01
    assert 0.4 < float((left / (1 - width).clamp_min(1e-6))[width < 0.9].mean()) < 0.6
