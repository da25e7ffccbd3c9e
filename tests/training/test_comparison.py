"""Which cells a comparison has, and in which order it trains them."""

import dataclasses

import pytest

from dlqat_tf.training import comparison
from dlqat_tf.training.comparison import Comparison, Key, Swept, best_rates, chosen
from dlqat_tf.training.grid import Grid, Outcome
from dlqat_tf.training.recipe import Recipe

BASE = Recipe(width=8, float_epochs=7, epochs=5, reference_batch=768)
LOSSES = {
    "CEL": {"head": "linear", "learning_rate": 0.01},
    "GML": {"head": "gml", "learning_rate": 0.2, "gml_alpha": 0.3},
}
PLAN = Comparison(BASE, {"cifar10": ((1, 2),), "cifar100": ((2, 2), (1, 2))}, LOSSES, seeds=(0, 4))


def test_names_tell_what_a_cell_is():
    key = Key("cifar100", "GML", (1, 2), "tuned", 4)
    assert key.name == "cifar100-GML-W1A2-tuned-s4"
    assert Key.parse(key.name) == key
    assert Key.parse("rates-cifar100-GML-0.1") is None
    swept = Swept("cifar100", "GML", 0.0125)
    assert swept.name == "rates-cifar100-GML-0.0125"
    assert Swept.parse(swept.name) == swept
    assert Swept.parse(key.name) is None
    assert Swept.parse(Swept("cifar10", "CEL", 1e-5).name).learning_rate == 1e-5


def test_each_loss_has_a_float_cell_that_its_widths_start_from():
    cells = PLAN.cells({})
    assert len(cells) == 2 * 2 * (2 + 3)  # losses, seeds, widths of both datasets with float
    cell = cells[Key("cifar100", "GML", (1, 2), "paper", 4)]
    assert cell.starts_from == "cifar100-GML-W32A32-paper-s4"
    recipe = cell.recipe
    assert (recipe.dataset, recipe.head, recipe.seed) == ("cifar100", "gml", 4)
    assert (recipe.weight_bits, recipe.activation_bits, recipe.residual_bits) == (1, 2, 8)
    assert recipe.learning_rate == 0.2
    assert recipe.quantized_learning_rate == pytest.approx(0.08)
    assert (recipe.gml_alpha, recipe.width, recipe.validation_size) == (0.3, 8, None)
    source = cells[Key("cifar100", "GML", (32, 32), "paper", 4)]
    assert source.starts_from is None
    assert not source.recipe.is_quantized
    assert source.recipe.residual_bits == 32


def test_a_network_without_rounded_residuals_has_a_float_one_without():
    plan = dataclasses.replace(PLAN, base=dataclasses.replace(BASE, residual_bits=None))
    assert plan.cells({})[Key("cifar10", "CEL", (32, 32), "paper", 0)].recipe.residual_bits is None


def test_from_scratch_no_cell_starts_from_another():
    plan = dataclasses.replace(PLAN, base=dataclasses.replace(BASE, stages=1))
    cells = plan.cells({})
    assert {cell.starts_from for cell in cells.values()} == {None}
    # As many epochs as both stages have together.
    epochs = {key.widths: cell.recipe.epochs for key, cell in cells.items()}
    assert epochs == {(32, 32): 5, (1, 2): 12, (2, 2): 12}
    swept = dataclasses.replace(plan, rates=(0.1,), rate_epochs=(3, 2)).sweep()
    assert {cell.recipe.epochs for cell in swept.values()} == {5}


def test_what_is_asked_for_all_cells_goes_to_those_that_have_a_use_for_it(tmp_path):
    monitor = ("quantizers", "mixture")
    plan = dataclasses.replace(
        PLAN, base=dataclasses.replace(BASE, teacher="float", monitor=monitor), rates=(0.1,)
    )
    cells = plan.cells({})
    Grid([*plan.sweep().values(), *cells.values()], tmp_path)  # each can be trained
    teachers = {key.widths: cell.recipe.teacher for key, cell in cells.items()}
    assert teachers == {(32, 32): None, (1, 2): "float", (2, 2): "float"}
    monitored = {key.loss: cell.recipe.monitor for key, cell in cells.items()}
    assert monitored == {"CEL": ("quantizers",), "GML": monitor}
    # Where no loss has a mixture it stays, to be refused.
    without = dataclasses.replace(plan, losses={"CEL": LOSSES["CEL"]})
    with pytest.raises(ValueError, match=r"Cell 'cifar10-CEL-W32A32-paper-s0' cannot.*mixture"):
        Grid(list(without.cells({}).values()), tmp_path)


def test_tuned_rates_add_cells_for_the_losses_that_have_one():
    cells = PLAN.cells({("cifar10", "CEL"): 0.5})
    tuned = {key: cell for key, cell in cells.items() if key.rate == "tuned"}
    assert {(key.dataset, key.loss) for key in tuned} == {("cifar10", "CEL")}
    assert {cell.recipe.learning_rate for cell in tuned.values()} == {0.5}
    assert {cell.recipe.quantized_learning_rate for cell in tuned.values()} == {0.2}
    assert all("tuned" in (cell.starts_from or "tuned") for cell in tuned.values())


def test_a_sweep_is_measured_on_held_out_images_under_its_own_budget():
    plan = dataclasses.replace(
        PLAN, rates=(0.1, 0.3), rate_epochs=(3, 2), rate_widths=(2, 2), held_out=100
    )
    cells = plan.sweep()
    assert len(cells) == 2 * 2 * 2  # datasets, losses, rates
    recipe = cells[Swept("cifar10", "GML", 0.3)].recipe
    assert (recipe.float_epochs, recipe.epochs) == (3, 2)
    assert (recipe.weight_bits, recipe.activation_bits) == (2, 2)
    assert (recipe.learning_rate, recipe.head, recipe.seed) == (0.3, "gml", 0)
    assert recipe.validation_size == 100


def outcome(accuracy):
    return Outcome(None, accuracy, {"accuracy": accuracy})


def test_the_best_rate_is_the_lowest_of_the_best_and_never_one_that_diverged():
    outcomes = {
        Swept("d", "CEL", 0.3): outcome(0.5),
        Swept("d", "CEL", 0.1): outcome(0.5),
        Swept("d", "CEL", 0.9): outcome(0.4),
        Swept("d", "AMS", 0.1): outcome(0.0),
        Swept("d", "AMS", 0.3): outcome(None),
        Swept("d", "GML", 0.1): outcome(None),
    }
    assert best_rates(outcomes) == {("d", "CEL"): 0.1, ("d", "AMS"): 0.1}


def test_patterns_choose_names_in_their_order():
    names = ["a-x", "a-y", "b-x"]
    assert chosen(names, ["b-*", "*-x"]) == ["b-x", "a-x"]
    with pytest.raises(ValueError, match=r"Received: 'c-\*', which fits none of 3"):
        chosen(names, ["a-x", "c-*"])


@pytest.fixture
def grids(monkeypatch):
    """The cells of every grid that is made, each of which ends with its learning rate."""
    made = []

    class Recorded:
        def __init__(self, cells, folder, archive):
            self.cells = cells
            made.append(([cell.name for cell in cells], folder, archive))

        def run(self):
            return {cell.name: Outcome(cell, cell.recipe.learning_rate, {}) for cell in self.cells}

    monkeypatch.setattr(comparison, "Grid", Recorded)
    return made


def test_training_chooses_rates_first_and_only_where_a_chosen_cell_needs_them(tmp_path, grids):
    plan = dataclasses.replace(PLAN, rates=(0.1, 0.3), seeds=(0,))
    outcomes = plan.train(tmp_path, tmp_path / "kept", ["cifar10-GML-W1A2-*-s0"])
    assert grids[0][0] == ["rates-cifar10-GML-0.1", "rates-cifar10-GML-0.3"]
    assert grids[1] == (
        [
            "cifar10-GML-W32A32-tuned-s0",
            "cifar10-GML-W1A2-tuned-s0",
            "cifar10-GML-W32A32-paper-s0",
            "cifar10-GML-W1A2-paper-s0",
        ],
        tmp_path,
        tmp_path / "kept",
    )
    assert outcomes[Key("cifar10", "GML", (1, 2), "tuned", 0)].accuracy == 0.3
    grids.clear()
    plan.train(tmp_path, None, ["cifar10-GML-W32A32-paper-s0"])
    assert [names for names, _, _ in grids] == [[], ["cifar10-GML-W32A32-paper-s0"]]
