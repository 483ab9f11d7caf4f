"""Attacks, one paper a file; importing this package registers those that are built in."""

from robench.attacks import apgd, fgsm, pgd, reference

__all__ = ["apgd", "fgsm", "pgd", "reference"]
