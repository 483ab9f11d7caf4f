"""Robust accuracy of your own CIFAR-10 model: `python cifar10.py`."""

import torch
import torchvision

import robench
from robench.data import load_dataset


def build():
    model = torchvision.models.resnet18(num_classes=10)
    model.load_state_dict(torch.load("weights.pt", weights_only=True))
    normalize = torchvision.transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return torch.nn.Sequential(normalize, model).eval()


if __name__ == "__main__":
    images = load_dataset("cifar10", "test", samples=1000)  # downloads 170 MB; or data_dir="..."
    result = robench.attack("autoattack", build(), images.x, images.y, threat="Linf:8/255", progress=True)
    print(result)
    result.save("results/mine", defense="python:cifar10.build", dataset="cifar10")
