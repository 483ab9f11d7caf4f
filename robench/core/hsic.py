"""Normalized Hilbert-Schmidt independence criterion, which MIMIR penalizes and attacks on MIMIR use.

Fukumizu et al. 2007, "Kernel Measures of Conditional Dependence". MIMIR uses it as a bound on the mutual
information between input and features: Xu et al., arXiv 2312.04960.
"""

import torch
from torch import Tensor

SIGMA = 5.0
RIDGE = 1e-5


def nhsic(x: Tensor, y: Tensor, sigma: float = SIGMA, ridge: float = RIDGE) -> Tensor:
    """tr(R_x R_y) with R = K H (K H + ridge m I)^-1, K Gaussian of width sigma sqrt(d), H centring.

    The value depends on all rows jointly and grows with their number. It is computed in at least float32, because
    squared norms of large images overflow half precision. If a matrix is singular or the result is not finite, the
    value is 0 without gradient, as MIMIR skips the penalty in that case.

    Args:
        x, y: (m, ...) with m >= 2; rows are flattened.

    Returns:
        A scalar, shape ().

    Raises:
        ValueError: if the lengths differ or are below 2.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"nhsic needs two batches of one length, at least 2: got {len(x)=} and {len(y)=}")
    products, failed = _products(x.flatten(1), y.flatten(1), sigma, ridge)
    value = products.sum()
    usable = (failed == 0) & torch.isfinite(value)
    return value if usable else value.new_zeros(())


def nhsic_shares(x: Tensor, y: Tensor, sigma: float = SIGMA, ridge: float = RIDGE) -> Tensor:
    """The contribution of each row to the nHSIC of its group: the diagonal of R_x R_y, whose sum is `nhsic`.

    The gradient of the sum over a group is the gradient of its nHSIC. A group that has one row, or whose matrices are
    singular or not finite, gives 0 without gradient. Computed in float64: in float32 the rounding error is 4 to 6 % of
    the gradient on latents of real images, because the small eigenvalues of the kernel are close to the ridge.

    Args:
        x, y: (groups, m, ...); groups are independent.

    Returns:
        (groups, m), float32 unless x is float64.
    """
    kind = x.dtype if x.dtype == torch.float64 else torch.float32
    products, failed = _products(x.double().flatten(2), y.double().flatten(2), sigma, ridge)
    shares = products.sum(-1).to(kind)
    usable = (failed == 0) & torch.isfinite(shares).all(-1)
    if bool(usable.all()):
        return shares
    # Masking would let a NaN into the gradient, so the usable groups are computed separately.
    zeros = shares.new_zeros(shares.shape)
    if not bool(usable.any()):
        return zeros
    return zeros.index_copy(0, usable.nonzero()[:, 0], nhsic_shares(x[usable], y[usable], sigma, ridge))


def _products(x: Tensor, y: Tensor, sigma: float, ridge: float) -> tuple[Tensor, Tensor]:
    """R_x * R_y^T, (..., m, m), and whether a solve failed, 0 for success."""
    right, failed = _ratio(x, sigma, ridge)
    left, failed_too = _ratio(y, sigma, ridge)
    return right * left.mT, failed.abs() + failed_too.abs()


def _ratio(x: Tensor, sigma: float, ridge: float) -> tuple[Tensor, Tensor]:
    """K H (K H + ridge m I)^-1, (..., m, m), and the status of the solve, 0 for success."""
    x = x if x.dtype == torch.float64 else x.float()
    m, d = x.shape[-2:]
    with torch.autocast(x.device.type, enabled=False):
        squares = x.square().sum(-1)
        distances = (squares[..., :, None] - 2 * x @ x.mT + squares[..., None, :]).abs()
        kernel = torch.exp(-distances / (2 * sigma**2 * d))
        centred = kernel - kernel.mean(-1, keepdim=True)
        shifted = centred + ridge * m * torch.eye(m, dtype=x.dtype, device=x.device)
        # Both factors are functions of one matrix and commute: A (A + c)^-1 = (A + c)^-1 A.
        solved, failed = torch.linalg.solve_ex(shifted, centred)
    return solved, failed
