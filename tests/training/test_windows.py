import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.swin_transformer import get_relative_position_index

from robench.training.encoders.windows import fill, group_windows, pack

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@given(SIZES, st.integers(0, 40))
def test_every_window_is_in_one_group_that_holds_it(sizes, more):
    capacity = max(sizes) + more
    groups = fill(sizes, capacity)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in group) <= capacity for group in groups)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(0, 30))
def test_the_first_group_is_as_full_as_can_be(sizes, more):
    capacity = max(sizes) + more
    sums = {0}
    for size in sizes:
        sums |= {s + size for s in sums}
    best = max(s for s in sums if s <= capacity)
    assert sum(sizes[i] for i in fill(sizes, capacity)[0]) == best


@given(SIZES)
def test_packing_costs_no_more_than_windows_alone_or_all_together(sizes):
    groups = pack(sizes)
    cost = len(groups) * max(sum(sizes[i] for i in group) for group in groups) ** 2
    assert cost <= len(sizes) * max(sizes) ** 2
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))


def test_small_windows_share_a_group():
    """Two groups of 8 cost 2 * 8^2, three windows alone 3 * 8^2 and all together 16^2."""
    assert sorted(map(sorted, pack([8, 1, 7]))) == [[0], [1, 2]]


def test_groups_say_who_sees_whom():
    """A 4 x 4 grid less one corner, windows of 2 shifted by 1: a middle one of 4, edges of 2, corners of 1."""
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4))[1:]
    groups = group_windows(places, (2, 2), (1, 1))
    index = get_relative_position_index(2, 2)
    window = [tuple(((p + 1) // 2).tolist()) for p in places]
    seen = {}
    flat = groups.members.flatten()
    assert torch.equal(flat[groups.slots], torch.arange(15))
    length = groups.members.shape[1]
    for token, slot in enumerate(groups.slots.tolist()):
        group, i = divmod(slot, length)
        allowed = groups.allowed[group, i].nonzero()[:, 0]
        others = groups.members[group, allowed].tolist()
        assert len(others) == len(set(others))
        seen[token] = set(others)
        for j, other in zip(allowed.tolist(), others, strict=True):
            a, b = ((places[k] + 1) % 2 for k in (token, other))
            expected = index[int(a[0] * 2 + a[1]), int(b[0] * 2 + b[1])]
            assert groups.bias[group, i, j] == expected
    assert seen == {t: {u for u in range(15) if window[u] == window[t]} for t in range(15)}
    assert groups.allowed.any(2).all()  # no slot is left without anything to attend to
