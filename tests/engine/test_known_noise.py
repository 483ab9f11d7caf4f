"""An attacker who knows the noise draws of the verdict searches on exactly these draws."""

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.attacks.build import build_attacks
from robench.core.errors import UsageError
from robench.core.rng import normal_like
from robench.data import load_dataset
from robench.defenses import load
from robench.engine.attack_context import Samples
from robench.engine.knowledge import Attacker
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.threats.threat import Threat
from robench.verification.replay import Sample
from robench.verification.verify import report

STEP, SIDE, N = 0.05, 8, 8
# Enough to raise 25 of the 192 values by STEP, or the ten values of ten draws by more than that.
THREAT = Threat.parse("L2:0.25")


class Picks(nn.Module):
    """Looks at one value of the image, which the noise chooses: class 1 if it is above 0.5 + STEP."""

    stochastic = True

    def forward(self, x: Tensor) -> Tensor:
        chosen = normal_like(x).flatten(1).argmax(1, keepdim=True)
        excess = 20 * (x.flatten(1).gather(1, chosen)[:, 0] - 0.5 - STEP)
        return torch.stack([-excess, excess], 1)


def outcome(knows_noise: bool, attack: str, batch_size: int = 16):
    setup = Setup(
        Picks(), 0, torch.device("cpu"), batch_size, Attacker(knows_noise=knows_noise), stochastic=True
    )
    samples = Samples(torch.full((N, 3, SIDE, SIDE), 0.5), torch.zeros(N, dtype=torch.int64), torch.arange(N))
    return Run(setup, build_attacks([attack], THREAT), samples, THREAT).outcome()


def test_known_noise_breaks_what_fresh_noise_protects():
    attack = "pgd(steps=10, eot=10, random_start=False)"
    known, fresh = (outcome(knows, attack) for knows in (True, False))
    # Ten values of the image decide all ten draws.
    assert known.answers is not None and bool((known.answers == 1).all())
    changed = (known.x_adv[:] - 0.5).abs().flatten(1) > STEP / 10
    assert int(changed.sum(1).max()) <= 10
    # At most 25 of 192 values can be raised by STEP, so a fresh draw is wrong with probability at most 0.13.
    assert fresh.answers is not None and float((fresh.answers == 1).double().mean()) < 0.25
    assert bool((fresh.prediction == 0).all())


def test_one_draw_a_step_goes_through_all_of_them():
    known = outcome(True, "pgd(steps=40, step_size=0.05, random_start=False)")
    assert known.answers is not None and float((known.answers == 1).double().mean()) > 0.5


def test_batches_change_nothing():
    whole, small = (outcome(True, "pgd(steps=2, eot=10)", batch_size) for batch_size in (16, 3))
    assert torch.equal(whole.x_adv[:], small.x_adv[:]) and torch.equal(whole.answers, small.answers)


def test_a_record_is_verified_and_attacked_again(tmp_path):
    defense = "smoothed+standard-digits"
    record = robench.run(defense, "pgd(steps=3, eot=2)", threat="L2:0.5", samples=4, knowledge="known-noise",
                         results=tmp_path, workers=1)  # fmt: skip
    assert record.folder is not None and record.folder.name.endswith("@known-noise")
    assert record.extra["stochastic"]["draws"] == 10
    images, loaded = load_dataset("digits", "test", 4), load(defense, "digits")
    result = report(record.folder, loaded, images, sample=Sample.of(4, 0))
    assert result.broken == [] and "draws that the attacker knew, and" in result.proven


def test_a_defense_without_noise_is_refused(tmp_path):
    with pytest.raises(UsageError, match="known-noise needs a randomized defense"):
        robench.run("standard-digits", "pgd", samples=2, knowledge="known-noise", results=tmp_path)
