"""Confidence intervals, paired and sequential tests, and the mean corruption error."""
