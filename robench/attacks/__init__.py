"""Attacks, one file per paper. Built-in attacks are imported on first use (`robench.core.registry`)."""

from typing import TYPE_CHECKING

from robench.core.lazy import lazily

if TYPE_CHECKING:
    from robench.attacks._base import Answer, Ask, Attack, OnFeatures, Problem, Rows, State

__all__ = ["Answer", "Ask", "Attack", "OnFeatures", "Problem", "Rows", "State"]

__getattr__ = lazily(__name__, dict.fromkeys(__all__, "_base"))
