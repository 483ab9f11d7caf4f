"""Transformations, one per file. Built-in ones are imported on first use (`robench.core.registry`)."""

from typing import TYPE_CHECKING

from robench.core.lazy import lazily

if TYPE_CHECKING:
    from robench.threats.transformations._base import Transformation

__all__ = ["Transformation"]

__getattr__ = lazily(__name__, {"Transformation": "_base"})
