"""From a recipe to a trained network: data, stages, results, and the recipes' command line."""

from dlqat_tf.training.callbacks import TrainingDiverged
from dlqat_tf.training.recipe import Recipe, read_recipe
from dlqat_tf.training.results import TrainingResult
from dlqat_tf.training.stages import run

__all__ = ["Recipe", "TrainingDiverged", "TrainingResult", "read_recipe", "run"]
