"""Projections compared with the reference and with independent solvers in float64, and their defining properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import L1_projection
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from scipy.optimize import brentq, linprog

from robench.attacks._projections import project_hyperplane, project_l1_box
from robench.threats.threat import rownorm

REFERENCE = {"Linf": projection_linf, "L2": projection_l2, "L1": projection_l1}


def case(seed: int, n: int = 6, size: int = 30, reach: float = 0.3):
    """Points (some pixels at 0 or 1), normals (some entries 0) and gaps of either sign."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(n, size, generator=generator)
    t[:, ::4] = t[:, ::4].round()
    w = torch.randn(n, size, generator=generator)
    w[:, ::5] = 0
    gap = (2 * torch.rand(n, generator=generator) - 1) * reach * w.abs().sum(1)
    return t, w, gap


def reachable(t, w, gap):
    towards = w * gap.sign()[:, None]
    return (towards.clamp_min(0) * (1 - t) - towards.clamp_max(0) * t).sum(1)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@given(seed=st.integers(0, 10_000), reach=st.sampled_from([1e-4, 0.05, 0.3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_hyperplane_step_lands_on_the_plane_or_in_the_corner(norm, seed, reach):
    t, w, gap = case(seed, reach=reach)
    d = project_hyperplane(t, w, gap, norm)
    assert ((t + d >= -1e-6) & (t + d <= 1 + 1e-6)).all()
    went = (w * d).sum(1) * gap.sign()
    expected = torch.minimum(gap.abs(), reachable(t, w, gap))
    torch.testing.assert_close(went, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_row_that_goes_on_alone_gives_the_same_bits(norm):
    # Heavy tails take more steps than equal entries, which are done after one.
    t, w, gap = case(0, n=9, size=200, reach=0.2)
    w[1:] = 1
    w[0] = w[0] ** 5
    d = project_hyperplane(t, w, gap, norm)
    several = project_hyperplane(t[[0, 0, 1]], w[[0, 0, 1]], gap[[0, 0, 1]], norm)
    assert torch.equal(d[0], several[0])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_hyperplane_step_matches_the_reference(norm, seed):
    t, w, gap = case(seed)
    keep = reachable(t, w, gap) > 1.001 * gap.abs()
    t, w, gap = t[keep], w[keep], gap[keep]
    if not len(t):
        return
    ours = project_hyperplane(t, w, gap, norm)
    theirs = REFERENCE[norm](t, w, gap + (w * t).sum(1))
    torch.testing.assert_close(rownorm(ours, norm), rownorm(theirs, norm), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_hyperplane_step_is_the_smallest(seed):
    t, w, gap = case(seed)
    t, w, gap = (v.double() for v in (t, w, gap))
    sign = gap.sign()[:, None] * w.sign()
    room = torch.where(sign > 0, 1 - t, t)
    for i in range(len(t)):
        if reachable(t, w, gap)[i] < gap[i].abs() * 1.01:
            continue
        for norm, rate in (("Linf", torch.ones_like(w[i])), ("L2", w[i].abs())):

            def went(m, i=i, rate=rate):
                return float((w[i].abs() * torch.minimum(m * rate, room[i])).sum() - gap[i].abs())

            m = brentq(went, 0, 1e6, xtol=1e-14)
            best = sign[i] * torch.minimum(m * rate, room[i])
            ours = project_hyperplane(
                t[i : i + 1].float(), w[i : i + 1].float(), gap[i : i + 1].float(), norm
            )
            torch.testing.assert_close(ours[0].double(), best, rtol=1e-4, atol=1e-5)
        least = linprog(
            torch.ones(w.shape[1]).numpy(),
            A_eq=w[i].abs()[None].numpy(),
            b_eq=[float(gap[i].abs())],
            bounds=[(0, float(r)) for r in room[i]],
        )
        ours = project_hyperplane(t[i : i + 1].float(), w[i : i + 1].float(), gap[i : i + 1].float(), "L1")
        assert float(ours.abs().sum()) == pytest.approx(least.fun, rel=1e-4)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_hyperplane_normals_of_any_scale_and_kind(norm):
    t, w, gap = case(3)
    d = project_hyperplane(t, w, gap, norm)
    for scale in (1e-30, 1e-12, 1e20):
        torch.testing.assert_close(project_hyperplane(t, w * scale, gap * scale, norm), d)
    for bad in (0.0, float("nan"), float("inf")):
        spoilt = w.clone()
        spoilt[0] = 0
        spoilt[0, 3] = bad
        moved = project_hyperplane(t, spoilt, gap, norm)
        assert (moved[0] == 0).all()
        assert torch.equal(moved[1:], d[1:])
    assert (project_hyperplane(t, w, torch.zeros_like(gap), norm) == 0).all()


@given(
    seed=st.integers(0, 10_000), eps=st.sampled_from([0.05, 1.0, 5.0, 50.0]), size=st.sampled_from([0.1, 2])
)
@settings(max_examples=60, deadline=None)
def test_l1_ball_and_box(seed, eps, size):
    x, delta, _ = case(seed)
    delta = delta * size
    ours = project_l1_box(x, delta, eps)
    assert (ours.abs().sum(1) <= eps * (1 + 1e-6)).all()
    assert ((x + ours >= -1e-6) & (x + ours <= 1 + 1e-6)).all()
    theirs = delta + L1_projection(x, delta, eps)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # Projecting again only changes the last bits.
    torch.testing.assert_close(project_l1_box(x, ours, eps), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_l1_ball_and_box_projection_is_the_nearest_point(seed):
    x, delta, _ = case(seed)
    ours = project_l1_box(x.view(6, 5, 6), delta.view(6, 5, 6), 1.5)
    assert ours.shape == (6, 5, 6)
    for i in range(6):
        size = delta[i].double().abs()
        room = torch.where(delta[i] > 0, 1 - x[i], x[i]).double()

        def excess(m, size=size, room=room):
            return float((size - m).clamp_min(0).minimum(room).sum() - 1.5)

        m = brentq(excess, 0, float(size.max()), xtol=1e-14) if excess(0) > 0 else 0.0
        best = delta[i].sign().double() * (size - m).clamp_min(0).minimum(room)
        torch.testing.assert_close(ours[i].flatten().double(), best, rtol=1e-4, atol=1e-5)


def test_l1_ball_and_box_of_zero():
    x = torch.rand(2, 7)
    assert (project_l1_box(x, torch.zeros(2, 7), 1.0) == 0).all()
