"""Evaluation of a trained defense: accuracy without an attack and under PGD-20."""

from torch import Tensor, nn

from robench.data._lazy_images import LazyImages
from robench.training.adversarial import correct, pgd
from robench.training.distributed import SINGLE_PROCESS, ProcessGroup
from robench.training.draws import cut


def measure(
    model: nn.Module,
    x: Tensor | LazyImages,
    y: Tensor,
    eps: float,
    batch_size: int = 512,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> tuple[int, ...]:
    """Count the images that are classified correctly: clean, and under PGD-20 with step size eps / 4, as MIMIR's.

    Args:
        model: in evaluation mode.
        x: (N, 3, H, W) in [0, 1].
        processes: each of them evaluates a part of every batch; the random starts do not depend on their number.
    """
    device = next(model.parameters()).device
    clean = robust = 0
    for i in range(0, len(x), batch_size):
        last = min(len(x), i + batch_size)
        part = cut(last - i, processes.size)[processes.rank]
        if not part.count:
            continue
        rows = slice(i + part.start, i + part.start + part.count)
        batch, labels = x[rows].to(device), y[rows].to(device)
        clean += correct(model, batch, labels)
        classified = model(batch).argmax(1) == labels
        with part.draws():
            x_adv = pgd(model, batch, labels, eps, eps / 4, 20)
        robust += int((classified & (model(x_adv).argmax(1) == labels)).sum())
    return processes.total((clean, robust))
