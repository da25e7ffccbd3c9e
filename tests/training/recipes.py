"""A run of seconds."""

from dlqat_tf.training.recipe import Recipe

# 1437 digits of 8x8 pixels, a ResNet-18 of 4 to 32 channels: seconds an epoch.
TINY = Recipe(
    dataset="digits",
    augment=("crop",),
    width=4,
    batch_size=64,
    learning_rate=0.05,
    reference_batch=64,
    float_epochs=2,
    epochs=2,
    final_gain=0.15,
    margin_warmup_epochs=1,
)
