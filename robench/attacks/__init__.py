"""Attacks, one paper in each file; importing this package registers the built-in ones."""

from robench.attacks import (
    apgd,
    apgd_feature,
    apgd_l1,
    apgd_mi,
    cw,
    ddn,
    fab,
    fgsm,
    fmn,
    grid,
    hopskipjump,
    mifgsm,
    nes,
    pgd,
    pgd_feature,
    pgd_mi,
    reference,
    sigma_zero,
    sparse_rs,
    spsa,
    square,
)
from robench.attacks._base import Answer, Ask, Attack, OnFeatures, Problem, Rows, State

__all__ = ["Answer", "Ask", "Attack", "OnFeatures", "Problem", "Rows", "State"]

# Imported to register them.
BUILT_IN = (
    apgd,
    apgd_feature,
    apgd_l1,
    apgd_mi,
    cw,
    ddn,
    fab,
    fgsm,
    fmn,
    grid,
    hopskipjump,
    mifgsm,
    nes,
    pgd,
    pgd_feature,
    pgd_mi,
    reference,
    sigma_zero,
    sparse_rs,
    spsa,
    square,
)
