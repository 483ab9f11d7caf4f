"""The real images that some tests need, and where they are looked for."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
REAL = Path(os.environ.get("ROBENCH_TEST_DATA") or CHECKOUT.parent / "shared" / "data")


def needs(place: str) -> pytest.MarkDecorator:
    """Skip a test where `place` is not below the folder of real images."""
    reason = f"{place} is not in {REAL}: name the folder that holds it in ROBENCH_TEST_DATA"
    return pytest.mark.skipif(not (REAL / place).exists(), reason=reason)
