"""Export: a trained Keras model to files that compute what was trained."""
