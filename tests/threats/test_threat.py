import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.core.errors import UsageError
from robench.threats.threat import Threat, check_images, largest_distance, rownorm


@pytest.mark.parametrize(
    ("text", "norm", "eps"),
    [
        ("Linf:8/255", "Linf", 8 / 255),
        ("linf:0.1", "Linf", 0.1),
        ("L2:.5", "L2", 0.5),
        (" L1 : 1e1 ", "L1", 10),
    ],
)
def test_norm_and_radius_are_parsed(text, norm, eps):
    threat = Threat.parse(text)
    assert (threat.norm, threat.eps) == (norm, pytest.approx(eps, rel=1e-15))


@pytest.mark.parametrize(
    "text",
    [
        "Linf:-1",
        "L7:1",
        "Linf",
        "Linf:",
        "Linf:0",
        "Linf:1/0",
        "Linf:nan",
        "L2:inf",
        "L2:1/2/3",
        "L2:1e999",
        ":1",
    ],
)
def test_malformed_threats_are_refused(text):
    with pytest.raises(UsageError) as error:
        Threat.parse(text)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        *("elastic(factor=0)", "elastic(factor=1.5)", "fog(decay=0)", "fog(decay='x')", "gabor(sigma=-1)"),
        *(
            "gabor(sides=1.5)",
            "pixel(size=1.5)",
            "recolor(smooth=-1)",
            "stadv(smooth=-1)",
            "spatial(shift=-1)",
        ),
        *(
            "snow(layers=0)",
            "snow(grid=0)",
            "snow(power=-1)",
            "snow(bleach=2)",
            "snow(blur=-1)",
            "blur(kernel=1.5)",
        ),
    ],
)
def test_a_transformation_with_a_wrong_argument_is_refused(name):
    with pytest.raises(UsageError, match="expected"):
        Threat.parse(f"{name}:0.5")


@given(st.sampled_from(["Linf", "L2", "L1"]), st.integers(1, 255), st.integers(1, 1000))
def test_a_threat_is_printed_as_parsed(norm, numerator, denominator):
    threat = Threat.parse(f"{norm}:{numerator}/{denominator}")
    assert Threat.parse(str(threat)) == threat


@given(st.sampled_from(["Linf", "L2", "L1"]), st.floats(0.01, 10), st.integers(0, 2**31))
def test_clipped_perturbations_lie_in_the_ball(norm, eps, seed):
    threat = Threat.parse(f"{norm}:{eps:.6f}")
    delta = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    x = torch.zeros(4, 3, 5, 5)
    clipped = threat.clip(delta)
    assert (threat.distance(x, x + clipped) <= threat.eps * (1 + 1e-5)).all()
    assert torch.allclose(threat.clip(clipped), clipped, rtol=1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1", "L0", "patch"])
def test_the_largest_radius_reaches_from_black_to_white(norm):
    black, white = torch.zeros(1, 3, 4, 6), torch.ones(1, 3, 4, 6)
    assert rownorm(white - black, norm).item() == pytest.approx(largest_distance(norm, 3, 4, 6))


def test_containment_needs_both_the_ball_and_the_box():
    threat, x = Threat.parse("Linf:0.1"), torch.full((3, 1, 1, 1), 0.95)
    x_adv = torch.tensor([1.0, 1.04, 0.8]).view(3, 1, 1, 1)
    assert threat.contains(x, x_adv).tolist() == [True, False, False]


GOOD = torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (GOOD[0], torch.zeros(4).long(), "shape"),
        (GOOD.double(), torch.zeros(4).long(), "float64"),
        (GOOD[:0], torch.zeros(0).long(), "no images"),
        (GOOD, torch.zeros(3).long(), "labels have shape"),
        (GOOD, torch.zeros(4), "integers"),
        (GOOD + 0.5, torch.zeros(4).long(), "pixels lie in"),
        (
            GOOD.clone().index_fill(0, torch.tensor([2]), float("nan")),
            torch.zeros(4).long(),
            "image 2 has NaN",
        ),
        (GOOD, torch.tensor([0, 1, 2, 10]), "0..10"),
        (GOOD, torch.tensor([0, 1, 2, -1]), "-1..2"),
    ],
)
def test_errors_describe_invalid_images(x, y, says):
    with pytest.raises(UsageError, match=says):
        check_images(x, y, num_classes=10)


@given(
    st.sampled_from(["Linf", "L2", "L1", "L0", "fog", "nonsense", ""]),
    st.lists(
        st.tuples(
            st.integers(0, 10**70).map(str) | st.floats(0, 1e300).map(str) | st.text(max_size=5),
            st.sampled_from(["", "e", "E-", "e+"]),
            st.integers(0, 10**12).map(str) | st.just("9" * 70),
        ).map("".join),
        min_size=1,
        max_size=3,
    ),
)
def test_any_radius_is_parsed_or_refused_quickly(kind, parts):
    spec = f"{kind}:{'/'.join(parts)}"
    begun = time.perf_counter()
    try:
        threat = Threat.parse(spec)
    except UsageError as error:
        assert "expected" in str(error) or "unknown norm" in str(error)
    else:
        assert Threat.parse(str(threat)) == threat
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    "spec",
    ["Linf:1e-99999999/1e-9", "L2:1/1e99999999", "Linf:" + "1" * 65, "Linf:0." + "0" * 10**6, "a" * 10**6],
)
def test_expensive_numbers_are_refused_in_a_short_line(spec):
    with pytest.raises(UsageError, match="expected") as refused:
        Threat.parse(spec)
    assert len(str(refused.value)) < 400


def _float64(threat, x, points):
    """The distance, computed without robench."""
    delta = points.double().numpy() - x.double().numpy()
    flat = delta.reshape(len(delta), -1)
    sizes = {"Linf": abs(flat).max(1), "L2": (flat**2).sum(1) ** 0.5, "L1": abs(flat).sum(1)}
    return torch.from_numpy(sizes[threat.norm])


@given(
    st.sampled_from(["Linf:4/255", "Linf:0.3", "L2:0.25", "L2:3", "L1:2", "L1:40"]),
    st.sampled_from([4, 16, 48]),
    st.floats(0.5, 3),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_rounding_to_grains_never_leaves_the_ball(text, side, reach, seed):
    threat, generator = Threat.parse(text), torch.Generator().manual_seed(seed)
    x = torch.rand(4, 3, side, side, generator=generator)
    x[1] = (x[1] * 255).round() / 255
    x[2] = x[2].round()
    x[3] = 0.9
    delta = torch.randn(x.shape, generator=generator)
    delta[3] = delta[3].sign()
    scale = reach * threat.eps / rownorm(delta, threat.norm).clamp_min(1e-12)
    point = (x + threat.clip(delta * scale.view(-1, 1, 1, 1))).clamp(0, 1)
    rounded = threat.rounded(x, point)
    slack = 2**-24 if threat.norm == "Linf" else 0.0
    assert (_float64(threat, x, rounded) <= threat.eps * (1 + 1e-6) + slack).all()
    assert threat.contains(x, rounded).all()
    assert torch.equal(threat.rounded(x, rounded), rounded)
    # No pixel moves by more than a step, and none away from the clean image.
    step = threat.grain[0]
    assert ((rounded - point).abs() <= step * 1.01 + 1e-7).all()
    assert (((rounded - x) * (point - x)) >= -1e-7).all()


@pytest.mark.parametrize("text", ["Linf:8/255", "Linf:1/255", "L2:0.5", "L1:12"])
def test_points_beyond_a_millionth_of_the_radius_are_outside(text):
    threat = Threat.parse(text)
    x = torch.zeros(1, 3, 4, 4)
    one = torch.zeros_like(x)
    one[0, 0, 0, 0] = 1.0 if threat.norm != "L1" else 0.0
    if threat.norm == "L1":
        one += 1 / 48

    def at(factor):
        return (x.double() + threat.eps * factor * one.double()).float()

    beyond = 3e-6 if threat.norm != "Linf" else 3e-6 + 2**-23 / threat.eps
    assert threat.contains(x, at(1.0)).all() and not threat.contains(x, at(1 + beyond)).any()
    for point in (at(1.0), at(1 + beyond), -one):
        known = threat.contains(x, point, distance=threat.distance(x, point))
        assert torch.equal(known, threat.contains(x, point))
    if threat.slack:
        # Rounding moves a point of a search this far.
        point = at(1 + 5e-6)
        assert not threat.contains(x, point) and threat.contains(x, threat.as_recorded(x, point))
