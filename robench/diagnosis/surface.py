"""Loss surfaces: the margin about a few images, along the gradient and a random direction, as a picture."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robench.attacks._losses import margin, normalize
from robench.core.rng import Stream
from robench.diagnosis._base import Case
from robench.diagnosis.gradients import gradients

# Points a side, and how far in radii.
SIDE, REACH = 25, 2.0
MOST = 4


@dataclass(frozen=True)
class Surface:
    """The margin (largest wrong logit minus the right one) about one image; fooled where it is above 0.

    Attributes:
        sample, label: of the image.
        values: (SIDE, SIDE) float32; rows along the random direction, columns along the gradient's.
    """

    sample: int
    label: str
    values: Tensor


def surfaces(case: Case) -> list[Surface]:
    """Of the first images of as many classes that are classified rightly.

    Directions have the threat's norm 1: signs in Linf; the random one is a sign or a Gaussian vector. Points outside
    [0, 1] are clipped, as an attack would.
    """
    right, chosen, seen = case.right.tolist(), [], set()
    for i, label in enumerate(case.y.tolist()):
        if right[i] and label not in seen and len(chosen) < MOST:
            chosen.append(i)
            seen.add(label)
    found = []
    norm = "Linf" if case.threat.norm == "Linf" else "L2"
    # An L2 step of the same length as L1's would leave the ball: unit vectors of the threat's own norm.
    reach = torch.linspace(-REACH, REACH, SIDE, device=case.x.device) * case.threat.eps
    for i in chosen:
        x, y, ids = case.x[i : i + 1], case.y[i : i + 1], case.ids[i : i + 1]
        alone = gradients(case, x, 1, slice(i, i + 1)).view_as(x).to(x.device)
        noise = Stream.of(case.seed, "diagnose", "surface").normal(
            ids, torch.zeros_like(ids), 0, tuple(x.shape[1:])
        )
        along, across = (_unit(each, norm, case.threat.norm) for each in (alone, noise))
        grid = (
            x + reach[:, None, None, None, None] * across + reach[None, :, None, None, None] * along
        ).flatten(0, 1)
        logits = case.judge.network.logits(grid.clamp(0, 1), ids.expand(len(grid)))
        values = margin(logits, y.expand(len(grid))).view(SIDE, SIDE).cpu()
        found.append(Surface(int(ids), case.images.classes[int(y)], values))
    return found


def _unit(direction: Tensor, norm: str, own: str) -> Tensor:
    unit = normalize(direction, norm)
    return unit / unit.abs().sum().clamp_min(1e-12) if own == "L1" else unit


def draw(found: list[Surface], case: Case, path: Path) -> Path:
    """Write the surfaces as PNG.

    Raises:
        ResourceError: when the file cannot be written.
    """
    from matplotlib.patches import Rectangle

    from robench.reports.plots import style

    figure = style.figure(2.9 * len(found) + 0.9, 3.5, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    finite = torch.cat([each.values[each.values.isfinite()] for each in found] or [torch.zeros(1)])
    most = float(finite.abs().max()) if len(finite) else 1.0
    image = None
    ends = (-REACH, REACH, -REACH, REACH)
    for axes, each in zip(panels, found, strict=True):
        values = each.values.numpy()
        image = axes.imshow(values, origin="lower", extent=ends, cmap="RdBu_r", vmin=-most, vmax=most)
        if (values > 0).any() and (values < 0).any():
            axes.contour(
                torch.linspace(-REACH, REACH, SIDE), torch.linspace(-REACH, REACH, SIDE), values, [0.0],
                colors="black", linewidths=1.2,
            )  # fmt: skip
        axes.add_patch(
            Rectangle((-1, -1), 2, 2, fill=False, linestyle="--", linewidth=1.0, edgecolor="#444444")
        )
        axes.plot(0, 0, marker="+", color="black", markersize=7)
        axes.set_title(f"image {each.sample}, class {style.literal(each.label)}", fontsize=9)
        axes.set_xlabel("along the gradient, radii", fontsize=8)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel("random direction, radii", fontsize=8)
    if image is not None:
        bar = figure.colorbar(image, ax=list(panels), shrink=0.85)
        bar.set_label("margin: fooled above 0", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    title = (
        f"{case.loaded.name}, {case.threat}: black line where the answer changes, dashed the radius each way"
    )
    figure.suptitle(style.literal(title), fontsize=10, x=0.01, ha="left")
    return style.save(figure, path)
