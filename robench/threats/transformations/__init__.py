"""Transformations, one in each file; importing this package registers the built-in ones."""

from robench.threats.transformations import (
    blur,
    elastic,
    fog,
    gabor,
    jpeg,
    low_frequency,
    pixel,
    recolor,
    snow,
    spatial,
    stadv,
)
from robench.threats.transformations._base import Transformation

__all__ = ["Transformation"]

# Imported to register them.
BUILT_IN = (blur, elastic, fog, gabor, jpeg, low_frequency, pixel, recolor, snow, spatial, stadv)
