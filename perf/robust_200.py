"""A small robust network of 200 classes, for `quick.py`: no weights of such a network were available.

It is trained adversarially on 1,000 images of Tiny-ImageNet's validation split and attacked on the same images. It has
learned them by heart, so its accuracy says nothing about other images: only how attacks compare on 200 classes.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from robench.data import Images, load_dataset

IMAGES, EPS, STEPS, EPOCHS, BATCH = 1000, 4 / 255, 3, 150, 50


def images(data: Path, samples: int = IMAGES) -> Images:
    """The first images of the split, 64 px averaged to 32."""
    full = load_dataset("tiny-imagenet", "test", samples, str(data))
    return Images(full.name, full.split, F.avg_pool2d(full.x[:], 2), full.y, full.ids, full.classes)


def network(data: Path, weights: Path) -> nn.Module:
    """The network; it is trained if there is no file with its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, 200),
    )  # fmt: skip
    if weights.exists():
        model.load_state_dict(load_file(weights))
    else:
        train(model, images(data))
        save_file(model.state_dict(), weights)
    return model.eval()


def train(model: nn.Module, chosen: Images) -> None:
    """PGD adversarial training (Madry et al. 2017, arXiv 1706.06083) in Linf."""
    x, y = chosen.x[:], chosen.y
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, EPOCHS * (IMAGES // BATCH))
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = F.cross_entropy(model(attacked(model, x[rows], y[rows])), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            total += float(loss.detach()) * len(rows) / len(x)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}/{EPOCHS}: adversarial loss {total:.3f}")


def attacked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """PGD with a random start."""
    point = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(STEPS):
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
        point = point.detach() + 2 * EPS / STEPS * gradient.sign()
        point = torch.max(torch.min(point, x + EPS), x - EPS).clamp(0, 1)
    return point.detach()
