"""Counter-based random numbers: published values of the generator, and its guarantees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robench.core.rng import Stream, noise, normal_like, philox


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    # The known-answer tests of Random123, for philox4x32-10.
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_matches_published_values(counter, key, answer):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == answer


@given(st.integers(0, 2**31), st.permutations(range(6)), st.integers(1, 40))
def test_a_number_depends_on_its_row_only(seed, order, count):
    stream = Stream.of(seed, "test")
    sample, rank = torch.arange(6) * 1000, torch.arange(6) % 3
    together = stream.bits(sample, rank, 5, count)
    order = torch.tensor(order)
    assert torch.equal(stream.bits(sample[order], rank[order], 5, count), together[order])
    assert torch.equal(stream.bits(sample[:1], rank[:1], 5, count), together[:1])
    steps = torch.full((6,), 5)
    assert torch.equal(stream.bits(sample, rank, steps, count), together)


def test_numbers_depend_on_seed_purpose_sample_rank_and_step():
    here = (torch.tensor([3]), torch.tensor([1]), 7, 64)
    base = Stream.of(0, "apgd").bits(*here)
    others = [
        Stream.of(1, "apgd").bits(*here),
        Stream.of(0, "square").bits(*here),
        Stream.of(0, "apgd").bits(torch.tensor([4]), torch.tensor([1]), 7, 64),
        Stream.of(0, "apgd").bits(torch.tensor([3]), torch.tensor([2]), 7, 64),
        Stream.of(0, "apgd").bits(torch.tensor([3]), torch.tensor([1]), 8, 64),
    ]
    for other in others:
        assert (other != base).float().mean() > 0.9


def test_uniform_and_normal_numbers_have_their_moments():
    stream, rows = Stream.of(0, "moments"), torch.arange(100)
    uniform = stream.uniform(rows, rows * 0, 0, (3, 40, 40)).double()
    normal = stream.normal(rows, rows * 0, 0, (3, 40, 40)).double()
    n = uniform.numel()
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    # Five standard errors.
    assert abs(float(uniform.mean()) - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(float(uniform.var()) - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    assert abs(float(normal.mean())) < 5 * (1 / n) ** 0.5
    assert abs(float(normal.var()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float((normal**4).mean()) - 3) < 5 * (96 / n) ** 0.5


def test_noise_of_one_number_a_row_is_drawn_too():
    rows = torch.tensor([4, 2, 9])
    with noise(Stream.of(0, "judge"), rows, rows * 0, rows * 0):
        numbers = normal_like(torch.zeros(3))
    with noise(Stream.of(0, "judge"), rows[1:], rows[1:] * 0, rows[1:] * 0):
        assert torch.equal(normal_like(torch.zeros(2)), numbers[1:])


def test_noise_is_drawn_for_each_row():
    stream = Stream.of(0, "judge")
    x = torch.zeros(6, 3, 4, 4)

    def drawn(rows):
        index = torch.tensor(rows)
        with noise(stream, index, torch.zeros_like(index), torch.full_like(index, 2)):
            return normal_like(x[: len(rows)]), normal_like(x[: len(rows)])

    first, second = drawn([0, 1, 2, 3, 4, 5])
    assert not torch.equal(first, second) and first.flatten(1).unique(dim=0).shape[0] == 6
    again, _ = drawn([4, 1])
    assert torch.equal(again, first[[4, 1]])
    with noise(stream, torch.arange(6), torch.zeros(6).long(), torch.full((6,), 3)):
        assert not torch.equal(normal_like(x), first)
    assert not torch.equal(normal_like(x), first)
