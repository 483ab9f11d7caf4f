"""Real images for some tests, and their location."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
REAL = Path(os.environ.get("ROBENCH_TEST_DATA") or CHECKOUT.parent / "shared" / "data")


def needs(place: str) -> pytest.MarkDecorator:
    """Skip a test if `place` is not below the folder of real images."""
    reason = f"{place} is not in {REAL}: name the folder that holds it in ROBENCH_TEST_DATA"
    return pytest.mark.skipif(not (REAL / place).exists(), reason=reason)
