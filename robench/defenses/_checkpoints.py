"""Checkpoints: fetch them (`_fetch`), read them without executing code (`_reading`), choose a set of weights
(`_weights`) and load it into a network (`_keys`)."""

from robench.defenses._fetch import Fetched, fetch, sha256_of, split_location
from robench.defenses._keys import load_into
from robench.defenses._weights import Weights, read_state, read_weights

__all__ = [
    "Fetched",
    "Weights",
    "fetch",
    "load_into",
    "read_state",
    "read_weights",
    "sha256_of",
    "split_location",
]
