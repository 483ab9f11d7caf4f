"""Attacks, one paper a file; importing this package registers those that are built in."""

from robench.attacks import apgd, apgd_l1, cw, fab, fgsm, pgd, reference, square
from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State

__all__ = ["Answer", "Ask", "Attack", "Problem", "Rows", "State"]

# Imported for their names in the registry.
BUILT_IN = (apgd, apgd_l1, cw, fab, fgsm, pgd, reference, square)
