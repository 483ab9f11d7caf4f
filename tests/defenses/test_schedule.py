"""The forward and reverse process of a diffusion model, against the papers' equations and `diffusers`."""

import math

import pytest
import torch

from robench.defenses._schedule import Schedule


def betas(schedule):
    steps = torch.arange(schedule.length, dtype=torch.float64) / max(1, schedule.length - 1)
    return schedule.beta_start + steps * (schedule.beta_end - schedule.beta_start)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_forward_marginal_is_the_chains():
    """Equation 4 of Ho et al. says in one step what equation 2 says in t: mean and variance of 4,000 chains."""
    schedule, n = Schedule(length=50, beta_end=0.1), 4000
    x0 = torch.linspace(-1, 1, 3 * 2 * 2, dtype=torch.float64).view(1, 3, 2, 2)
    chain = x0.expand(n, -1, -1, -1)
    for step, beta in enumerate(betas(schedule)[:30].tolist()):
        chain = (1 - beta) ** 0.5 * chain + beta**0.5 * drawn(n, 3, 2, 2, seed=step)
    jump = schedule.diffuse(x0.expand(n, -1, -1, -1), torch.full((n,), 30), drawn(n, 3, 2, 2, seed=99))
    kept = float((1 - betas(schedule)[:30]).prod())
    assert schedule.kept[30] == pytest.approx(kept, rel=1e-12)
    for x in (chain, jump):  # within five standard errors
        assert ((x.mean(0) - kept**0.5 * x0[0]).abs() < 5 * ((1 - kept) / n) ** 0.5).all()
        assert ((x.var(0) / (1 - kept) - 1).abs() < 5 * (2 / n) ** 0.5).all()


def test_each_row_has_its_own_time():
    schedule, x, noise = Schedule(), drawn(3, 3, 2, 2), drawn(3, 3, 2, 2, seed=1)
    noisy = schedule.diffuse(x, torch.tensor([0, 500, 1000]), noise)
    torch.testing.assert_close(noisy[0], x[0])
    assert (noisy[2] - noise[2]).abs().max() < 0.03 < (noisy[1] - noise[1]).abs().max()


@pytest.mark.parametrize("t", [1, 2, 100, 1000])
def test_ddpm_is_the_closed_form_of_ho(t):
    """Equation 7: the posterior's mean of x_{t-1} given x_t and the x_0 that equation 15 predicts, beta tilde."""
    schedule = Schedule()
    beta = betas(schedule)
    bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
    x, predicted, noise = drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=1), drawn(2, 3, 4, 4, seed=2)
    clean = (x - (1 - bar[t]).sqrt() * predicted) / bar[t].sqrt()
    mean = bar[t - 1].sqrt() * beta[t - 1] / (1 - bar[t]) * clean
    mean += (1 - beta[t - 1]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t]) * x
    tilde = float((1 - bar[t - 1]) / (1 - bar[t]) * beta[t - 1])
    assert schedule.sigma(t, t - 1, 1.0) == pytest.approx(math.sqrt(tilde), rel=1e-9, abs=1e-12)
    got = schedule.reverse(x, predicted, t, t - 1, 1.0, noise, clip=False)
    torch.testing.assert_close(got, mean + tilde**0.5 * noise, rtol=1e-9, atol=1e-9)


def test_a_perfect_prediction_leads_back_by_any_strides():
    schedule, x0, noise = Schedule(), drawn(2, 3, 4, 4).clamp(-1, 1), drawn(2, 3, 4, 4, seed=1)
    x = schedule.diffuse(x0, torch.full((2,), 300), noise)
    for t, before in ((300, 170), (170, 3), (3, 0)):
        x = schedule.reverse(x, noise, t, before, 0.0, None, clip=True)
    torch.testing.assert_close(x, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("clip", [True, False])
def test_a_step_is_that_of_diffusers(sampler, clip, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_ddpm

    schedule, noise = Schedule(), drawn(2, 3, 4, 4, seed=2).float()
    x, predicted = drawn(2, 3, 4, 4).float(), drawn(2, 3, 4, 4, seed=1).float()
    if sampler == "ddpm":
        theirs = diffusers.DDPMScheduler(clip_sample=clip)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: noise)
        eta, options = 1.0, {}
    else:
        theirs = diffusers.DDIMScheduler(clip_sample=clip)
        eta, options = 0.3, {"eta": 0.3, "variance_noise": noise, "use_clipped_model_output": True}
    theirs.set_timesteps(100)
    for t in (10, 200, 980):  # diffusers counts from 0: strides of ten
        wanted = theirs.step(predicted, t, x, **options).prev_sample
        got = schedule.reverse(x, predicted, t + 1, t - 9, eta, noise, clip)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 0}, "length=0: expected at least 1"),
        ({"beta_start": 0.0}, r"expected 0 < start <= end < 1"),
        ({"beta_start": 0.1, "beta_end": 0.01}, r"beta_start=0\.1 and beta_end=0\.01"),
        ({"beta_end": 1.0}, r"expected 0 < start <= end < 1"),
    ],
)
def test_what_makes_no_schedule_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Schedule(**settings)
