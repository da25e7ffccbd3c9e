"""The command ``dlqat``: what it takes and shows, without TensorFlow, so that help appears at once.

Modules hold signatures, recipes and their evidence; what works is in :mod:`dlqat_tf` and imported
when a command starts. That package takes from here only plain values: the version, recipes, and the
options of comparisons.
"""

__version__ = "0.1.0"
