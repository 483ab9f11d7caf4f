"""Transformations, one a file; importing this package registers those that are built in."""

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

# Imported for their names in the registry.
BUILT_IN = (blur, elastic, fog, gabor, jpeg, low_frequency, pixel, recolor, snow, spatial, stadv)
