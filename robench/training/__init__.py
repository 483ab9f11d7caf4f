"""Training: how the shipped checkpoints are made, and how one's own card makes its own."""

from robench.training.recipe import Finetuning, Pretraining, Recipe, read_recipe
from robench.training.trainer import TrainResult, train

__all__ = ["Finetuning", "Pretraining", "Recipe", "TrainResult", "read_recipe", "train"]
