"""Names of the corruptions of ImageNet-C."""

from robench.core.errors import UsageError, unknown_name

# In the order of the paper: fifteen for the benchmark, then four for validation.
COMMON = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
VALIDATION = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)


def check_corruption(corruption: str, severity: int, known: tuple[str, ...]) -> None:
    """Check the name of a corruption and its severity.

    Raises:
        UsageError: if the name is not in `known` (the message lists the closest names), or the severity is not 1 to 5.
    """
    if corruption not in known:
        raise unknown_name("corruption", str(corruption), known)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise UsageError(f"severity {severity!r}: expected 1, 2, 3, 4 or 5")
