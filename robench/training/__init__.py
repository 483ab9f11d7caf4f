"""Training of defenses by the recipes of their cards."""

from robench.training.recipe import Finetuning, Pretraining, Recipe, read_recipe
from robench.training.trainer import TrainResult, train

__all__ = ["Finetuning", "Pretraining", "Recipe", "TrainResult", "read_recipe", "train"]
