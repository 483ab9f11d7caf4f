"""The normalised Hilbert-Schmidt independence criterion that MIMIR penalises.

Fukumizu et al. 2007, "Kernel Measures of Conditional Dependence"; its use as MIMIR's bound on the mutual
information of input and features: Xu et al., arXiv 2312.04960.
"""

import torch
from torch import Tensor

SIGMA = 5.0
RIDGE = 1e-5


def nhsic(x: Tensor, y: Tensor, sigma: float = SIGMA, ridge: float = RIDGE) -> Tensor:
    """tr(R_x R_y) with R = K H (K H + ridge m I)^-1, K Gaussian of width sigma sqrt(d), H centring.

    It couples the rows, and grows with their number. Computed in float32 at least: squared norms of large
    images overflow half precision. Where a matrix is singular or the outcome not finite it is 0, without
    gradient: MIMIR skips the penalty there.

    Args:
        x, y: (m, ...), flattened row by row; at least 2 rows.

    Returns:
        A number, shape ().
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"nhsic needs two batches of one length, at least 2: got {len(x)=} and {len(y)=}")
    right, failed = _ratio(x, sigma, ridge)
    left, failed_too = _ratio(y, sigma, ridge)
    value = (right * left.T).sum()
    usable = (failed == 0) & (failed_too == 0) & torch.isfinite(value)
    return value if usable else value.new_zeros(())


def _ratio(x: Tensor, sigma: float, ridge: float) -> tuple[Tensor, Tensor]:
    """K H (K H + ridge m I)^-1, (m, m), and LAPACK's word on the solve, 0 for success."""
    x = x.flatten(1)
    x = x if x.dtype == torch.float64 else x.float()
    m, d = x.shape
    with torch.autocast(x.device.type, enabled=False):
        squares = x.square().sum(1)
        distances = (squares[:, None] - 2 * x @ x.T + squares[None, :]).abs()
        kernel = torch.exp(-distances / (2 * sigma**2 * d))
        centred = kernel - kernel.mean(1, keepdim=True)
        shifted = centred + ridge * m * torch.eye(m, dtype=x.dtype, device=x.device)
        # Both factors are functions of one matrix and commute: A (A + c)^-1 = (A + c)^-1 A.
        solved, failed = torch.linalg.solve_ex(shifted, centred)
    return solved, failed
