import subprocess
import sys

CODE = """
import sys, dlqat_tf
early = {"analysis", "packed", "plots", "tfmot", "training", "zoo"} & {
    name.removeprefix("dlqat_tf.") for name in sys.modules
}
assert not early, early
dlqat_tf.analysis.features, dlqat_tf.packed.save_packed, dlqat_tf.plots.latent_weights
dlqat_tf.tfmot.Scheme, dlqat_tf.training.Recipe, dlqat_tf.zoo.load
try:
    dlqat_tf.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
    assert (error.name, error.obj) == ("nothing", dlqat_tf)  # for Python's "Did you mean"
else:
    raise AssertionError
"""


def test_modules_are_imported_when_they_are_asked_for():
    """In a process of its own, where no other test has imported them."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
