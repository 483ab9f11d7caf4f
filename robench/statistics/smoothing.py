"""Statistics of randomized smoothing: what a number of votes proves.

Cohen, Rosenfeld and Kolter 2019, "Certified Adversarial Robustness via Randomized Smoothing", arXiv 1902.02918.
"""

from scipy.special import bdtr, betaincinv, ndtri


def lower_confidence(successes: int, draws: int, alpha: float) -> float:
    """One-sided lower confidence bound of a probability, by Clopper and Pearson; at least 1 - alpha of them hold.

    Args:
        successes: number of successes, 0 .. draws.
        draws: number of independent draws, at least 1.
        alpha: probability that the bound is wrong, in (0, 1).

    Raises:
        ValueError: if a number is out of range.
    """
    if draws < 1 or not 0 <= successes <= draws:
        raise ValueError(f"{successes=}, {draws=}: expected draws >= 1 and 0 <= successes <= draws")
    if not 0 < alpha < 1:
        raise ValueError(f"{alpha=}: expected a number between 0 and 1")
    return float(betaincinv(successes, draws - successes + 1, alpha)) if successes else 0.0


def certified_radius(successes: int, draws: int, sigma: float, alpha: float) -> float:
    """The L2 radius within which the majority vote is constant, with probability at least 1 - alpha.

    Arxiv 1902.02918, Theorem 1 and the procedure CERTIFY: sigma times the normal quantile of the lower bound of the
    probability of the chosen class. It is 0 where that bound does not exceed 1/2, so that the vote abstains.

    Args:
        successes: number of draws that were classified as the chosen class, 0 .. draws.
        draws: number of draws, none of which chose the class.
        sigma: standard deviation of the noise; the radius has the same unit.
        alpha: probability of an error, in (0, 1).

    Raises:
        ValueError: if a number is out of range.
    """
    probability = lower_confidence(successes, draws, alpha)
    return max(0.0, sigma * float(ndtri(probability))) if probability > 0.5 else 0.0


def vote_is_decided(first: int, second: int, alpha: float) -> bool:
    """Whether the most frequent of two classes is the true winner of the vote, with probability at least 1 - alpha.

    Arxiv 1902.02918, PREDICT (after Hung and Fithian 2019): the two-sided exact binomial test that both are equally
    likely.

    Args:
        first, second: number of votes for the two most frequent classes, first >= second >= 0.
        alpha: probability of an error, in (0, 1).

    Raises:
        ValueError: if a number is out of range.
    """
    if not first >= second >= 0:
        raise ValueError(f"{first=}, {second=}: expected first >= second >= 0")
    if not 0 < alpha < 1:
        raise ValueError(f"{alpha=}: expected a number between 0 and 1")
    return min(1.0, 2 * float(bdtr(second, first + second, 0.5))) <= alpha
