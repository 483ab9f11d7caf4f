"""Loss surfaces: a picture of the margin around a few images, along the gradient and a random direction."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robench.attacks._losses import margin, normalize
from robench.core.rng import Stream
from robench.diagnosis._base import Case
from robench.diagnosis.gradients import gradients

# Points per side, and extent in radii.
SIDE, REACH = 25, 2.0
MOST = 4


@dataclass(frozen=True)
class Surface:
    """The margin (largest wrong logit minus the correct one) around one image; above 0 the defense is fooled.

    Attributes:
        sample, label: sample id and label of the image.
        values: (SIDE, SIDE) float32; rows follow the random direction, columns the gradient.
    """

    sample: int
    label: str
    values: Tensor


def surfaces(case: Case) -> list[Surface]:
    """Compute the surfaces around the first correctly classified image of up to four classes.

    Directions have norm 1 in the norm of the threat model: signs in Linf, Gaussian vectors otherwise. Points outside
    [0, 1] are clipped, as in an attack.
    """
    right, chosen, seen = case.right.tolist(), [], set()
    for i, label in enumerate(case.y.tolist()):
        if right[i] and label not in seen and len(chosen) < MOST:
            chosen.append(i)
            seen.add(label)
    results = []
    norm = "Linf" if case.threat.norm == "Linf" else "L2"
    # Unit vectors in the norm of the threat model, because an L2 step of the L1 radius would leave the ball.
    reach = torch.linspace(-REACH, REACH, SIDE, device=case.x.device) * case.threat.eps
    for i in chosen:
        x, y, ids = case.x[i : i + 1], case.y[i : i + 1], case.ids[i : i + 1]
        gradient = gradients(case, x, 1, slice(i, i + 1)).view_as(x).to(x.device)
        stream, shape = Stream.of(case.seed, "diagnose", "surface"), tuple(x.shape[1:])
        noise = stream.normal(ids, torch.zeros_like(ids), 0, shape)
        along, across = (_unit(vector, norm, case.threat.norm) for vector in (gradient, noise))
        grid = x + reach[:, None, None, None, None] * across + reach[None, :, None, None, None] * along
        grid = grid.flatten(0, 1)
        logits = case.judge.network.logits(grid.clamp(0, 1), ids.expand(len(grid)))
        values = margin(logits, y.expand(len(grid))).view(SIDE, SIDE).cpu()
        results.append(Surface(int(ids), case.images.classes[int(y)], values))
    return results


def _unit(direction: Tensor, norm: str, threat_norm: str) -> Tensor:
    unit = normalize(direction, norm)
    return unit / unit.abs().sum().clamp_min(1e-12) if threat_norm == "L1" else unit


def draw(surfaces: list[Surface], case: Case, path: Path) -> Path:
    """Write the surfaces as PNG.

    Raises:
        ResourceError: when the file cannot be written.
    """
    from matplotlib.patches import Rectangle

    from robench.reports.plots import style

    figure = style.figure(2.9 * len(surfaces) + 0.9, 3.5, layout="constrained")
    panels = figure.subplots(1, len(surfaces), squeeze=False, sharey=True)[0]
    values = torch.cat([surface.values.flatten() for surface in surfaces])
    finite = values[values.isfinite()]
    limit = float(finite.abs().max()) if len(finite) else 1.0
    image = None
    ends = (-REACH, REACH, -REACH, REACH)
    for axes, surface in zip(panels, surfaces, strict=True):
        values = surface.values.numpy()
        image = axes.imshow(values, origin="lower", extent=ends, cmap="RdBu_r", vmin=-limit, vmax=limit)
        if (values > 0).any() and (values < 0).any():
            axes.contour(
                torch.linspace(-REACH, REACH, SIDE), torch.linspace(-REACH, REACH, SIDE), values, [0.0],
                colors="black", linewidths=1.2,
            )  # fmt: skip
        square = {"fill": False, "linestyle": "--", "linewidth": 1.0, "edgecolor": "#444444"}
        axes.add_patch(Rectangle((-1, -1), 2, 2, **square))
        axes.plot(0, 0, marker="+", color="black", markersize=7)
        axes.set_title(f"image {surface.sample}, class {style.literal(surface.label)}", fontsize=9)
        axes.set_xlabel("along the gradient, radii", fontsize=8)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel("random direction, radii", fontsize=8)
    if image is not None:
        bar = figure.colorbar(image, ax=list(panels), shrink=0.85)
        bar.set_label("margin (above 0: fooled)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    title = f"{case.loaded.name}, {case.threat}: the black line is the decision boundary, the dashed square the radius"
    figure.suptitle(style.literal(title), fontsize=10, x=0.01, ha="left")
    return style.save(figure, path)
