"""The estimates against mutual informations that are known, and what --mi makes of them."""

import json
import math

import pytest
import torch

from robench.cli import main
from robench.diagnosis import estimators, information
from robench.diagnosis.estimators import in_groups, infonce, plain_nhsic, renyi_entropy, renyi_information


def gaussians(n, d, rho, seed=0):
    """Pairs with I(x; y) = -d/2 log(1 - rho^2) nats."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise, -d / 2 * math.log(1 - rho**2)


@pytest.mark.parametrize(("d", "rho", "share"), [(4, 0.5, 0.6), (4, 0.8, 0.75), (2, 0.95, 0.75)])
def test_infonce_comes_near_a_known_information_from_below(d, rho, share):
    x, y, truth = gaussians(1200, d, rho)
    found = infonce(x, y, 0)
    # 512 judged pairs: its own noise is about 0.05.
    assert share * truth < found < truth + 0.1


def test_infonce_of_independent_rows_is_about_nothing_and_never_beyond_its_limit(monkeypatch):
    x, y, _ = gaussians(1200, 4, 0.0)
    assert -0.2 < infonce(x, y, 0) < 0.05
    assert 0.8 * math.log(32) < infonce(x, x, 0, group=32) <= math.log(32)
    monkeypatch.setattr(estimators, "STEPS", 2)
    found = infonce(x, x, 0, group=32)
    assert infonce(x, x, 0, group=32) == found, "the seed decides"
    assert infonce(x, x, 1, group=32) != found


def test_the_kernel_estimates_rise_with_the_information():
    pairs = [gaussians(256, 4, rho)[:2] for rho in (0.0, 0.5, 0.8, 0.95)]
    for estimate in (renyi_information, plain_nhsic):
        found = [in_groups(estimate, x, y, 0) for x, y in pairs]
        assert found == sorted(found) and found[-1] > 1.5 * found[0]


def test_unpaired_rows_are_anothers_and_forget_the_order():
    y = torch.arange(300)[:, None]
    others = estimators.unpaired(y, 0)
    assert sorted(others[:, 0].tolist()) == list(range(300)) and (others != y).all()
    assert not torch.equal(others, estimators.unpaired(y, 1))
    # Sorted by class: the next row tells the class as well as one's own does, another at random does not.
    labels = torch.arange(384) // 39
    x = torch.nn.functional.one_hot(labels).double()
    x += 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    paired, rolled, unpaired = (
        in_groups(renyi_information, x, each, 0) for each in (x, x.roll(1, 0), estimators.unpaired(x, 0))
    )
    assert unpaired < 0.4 * rolled and rolled > 0.5 * paired


def test_renyi_entropy_of_known_spectra():
    assert float(renyi_entropy(torch.eye(8).double() / 8)) == pytest.approx(3)
    assert float(renyi_entropy(torch.full((8, 8), 1 / 8).double())) == pytest.approx(0, abs=1e-6)
    values = torch.tensor([0.5, 0.25, 0.25]).double()
    by_hand = math.log2(0.5**2 + 2 * 0.25**2) / (1 - 2)
    assert float(renyi_entropy(torch.diag(values), 2.0)) == pytest.approx(by_hand)
    # Towards alpha = 1 it is Shannon's: 1.5 bits.
    assert float(renyi_entropy(torch.diag(values), 1.0001)) == pytest.approx(1.5, abs=1e-3)


def test_renyi_information_of_a_constant_is_none_and_of_itself_within_its_limit():
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    assert renyi_information(x, torch.ones(64, 3)) == pytest.approx(0, abs=1e-6)
    far = 100 * torch.eye(64)
    assert 0 < renyi_information(x, x) <= math.log2(64)
    assert renyi_information(far, far) <= math.log2(64)


def test_rows_in_another_order_are_the_same_rows_but_not_the_same_pairs():
    x, y, _ = gaussians(256, 4, 0.9)
    paired = in_groups(renyi_information, x, y, 3)
    assert paired == in_groups(renyi_information, x, y, 3)
    assert in_groups(renyi_information, x, y.roll(1, 0), 3) < 0.6 * paired
    with pytest.raises(ValueError, match="at least 256"):
        infonce(x[:255], y[:255], 0)


@pytest.mark.parametrize(
    ("names", "seeds"),
    [
        (["pgd-at-digits"], [0]),
        pytest.param(["pgd-at-digits", "standard-digits"], [0, 1], marks=pytest.mark.slow),
    ],
)
def test_the_command_measures_every_layer_of_every_defense(names, seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimators, "STEPS", 5)
    monkeypatch.setattr(estimators, "GROUP", 32)
    monkeypatch.setattr(information, "ATTACK_STEPS", 2)
    arguments = [
        "diagnose",
        "--mi",
        "--defense",
        ",".join(names),
        "--threat",
        "Linf:0.1",
        "--samples",
        "64",
    ]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--seeds", str(len(seeds)), "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    (found,) = json.loads(out)["information"]
    assert list(found["values"]) == names and found["seeds"] == seeds
    for layers in found["values"].values():
        assert len(layers) == 4
        for pairs in layers:
            assert list(pairs) == ["image", "adversarial", "perturbation"]
            for own in pairs.values():
                assert set(own) == {"nhsic", "nhsic at random", "renyi", "renyi at random", "infonce"}
                assert all(len(numbers) == len(seeds) for numbers in own.values())
    # A layer tells more of its own image than of another one.
    first = found["values"]["pgd-at-digits"][0]["image"]
    assert min(first["renyi"]) > max(first["renyi at random"])
    (folder,) = tmp_path.glob("results/*/information-*")
    assert json.loads((folder / "information.json").read_text()) == found
    assert (folder / "information.png").read_bytes().startswith(b"\x89PNG")


def test_a_defense_without_features_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["diagnose", "--mi", "--defense", "cnn(image_size=16, num_classes=10)", "--samples", "300"])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and "--checkpoint" in err
