"""Attacks, one paper a file; importing this package registers those that are built in."""

from robench.attacks import apgd, apgd_l1, fgsm, pgd, reference, square
from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State

__all__ = [
    "Answer",
    "Ask",
    "Attack",
    "Problem",
    "Rows",
    "State",
    "apgd",
    "apgd_l1",
    "fgsm",
    "pgd",
    "reference",
    "square",
]
