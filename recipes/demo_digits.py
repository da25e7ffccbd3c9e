from pathlib import Path
from dlqat_tf.training import Recipe, main

main(
    Recipe(
        dataset="digits",
        head="gml",
        width=16,
        augment=("crop",),
        float_epochs=3,
        epochs=3,
        batch_size=64,
        learning_rate=0.05,
        reference_batch=64,
        output=Path("runs/demo"),
        final_gain=0.15,
    ),
    short={},
    description="x",
)
