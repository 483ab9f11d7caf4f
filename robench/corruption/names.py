"""What ImageNet-C's corruptions are called."""

from robench.core.errors import UsageError, unknown_name

# In the paper's order: the fifteen of its benchmark, then four for validation.
COMMON = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
VALIDATION = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)


def check_corruption(corruption: str, severity: int, known: tuple[str, ...]) -> None:
    """Refuse a corruption that is not among `known`, and a severity that is not 1 .. 5.

    Raises:
        UsageError: with the nearest names.
    """
    if corruption not in known:
        raise unknown_name("corruption", str(corruption), known)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise UsageError(f"severity {severity!r}: expected 1, 2, 3, 4 or 5")
