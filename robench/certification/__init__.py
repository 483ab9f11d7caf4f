"""Lower bounds on robust accuracy: certifiers and the records of what they prove."""

from robench.certification._base import ABSTAINED, Bounds, Case, Certifier, find_certifier

__all__ = ["ABSTAINED", "Bounds", "Case", "Certifier", "find_certifier"]
