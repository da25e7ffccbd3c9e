"""Clusters with known values, and what a network's classifier reads."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import dlqat_tf
from dlqat_tf.analysis import (
    cluster_statistics,
    delta_p,
    embed,
    features,
    mixture_statistics,
    per_class,
)
from dlqat_tf.training.comparison import Key

import tensorflow as tf  # isort: skip

# Around (0, 0), (6, 0) and (0, 8): each class mean is its centre, every point is 1 away from it,
# and the fifth lies on it, so the mean squared distance is 4 / 5.
CROSS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]], np.float32)
CENTRES = np.array([[0, 0], [6, 0], [0, 8]], np.float32)
POINTS = np.concatenate([CROSS + centre for centre in CENTRES])
LABELS = np.repeat([7, 3, 5], 5)  # classes need not be numbered from zero


def test_statistics_of_three_crosses():
    result = cluster_statistics(POINTS, LABELS)
    assert (result.images, result.classes) == (15, 3)
    assert result.intra_class_variance == pytest.approx(0.8)
    assert result.smallest_distance == pytest.approx(6)
    assert result.mean_distance == pytest.approx((6 + 8 + 10) / 3)
    assert result.separation == pytest.approx(8 / np.sqrt(0.8))
    assert result.probe_accuracy == 1.0


def test_separation_ignores_the_scale_of_the_features():
    small, large = cluster_statistics(POINTS, LABELS), cluster_statistics(100 * POINTS, LABELS)
    assert large.separation == pytest.approx(small.separation)
    assert large.intra_class_variance == pytest.approx(1e4 * small.intra_class_variance)


def test_probe_cannot_separate_one_cluster():
    generator = np.random.default_rng(0)
    points, labels = generator.normal(size=(200, 2)), np.arange(200) % 2
    assert 0.3 < cluster_statistics(points, labels).probe_accuracy < 0.7


def test_probe_folds_follow_the_seed():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    points = generator.normal(size=(200, 2)) + labels[:, None]
    found = {cluster_statistics(points, labels, seed=seed).probe_accuracy for seed in range(5)}
    assert len(found) > 1


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (POINTS[:, 0], LABELS, r"\(images, features\)"),
        (POINTS, LABELS[1:], r"Received: \(15, 2\) and \(14,\)"),
        (POINTS * np.nan, LABELS, "finite"),
        (POINTS[:-1], LABELS[:-1], "the smallest with 4"),
        (POINTS[:5], LABELS[:5], "two classes"),
    ],
)
def test_statistics_refuse(points, labels, message):
    with pytest.raises(ValueError, match=message):
        cluster_statistics(points, labels)


def test_mixture_of_two_means_by_hand():
    means = np.array([[0.0, 0], [2, 0]])
    points = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)  # as far from either mean
    loss = dlqat_tf.GMLoss(alpha=1.0, likelihood_weight=0.25, fit_power=0.0)
    found = mixture_statistics(points, np.array([0, 1]), means, loss)
    assert (found.mean_norm, found.smallest_distance, found.mean_distance) == (1, 2, 2)
    assert found.feature_norm == pytest.approx(np.sqrt(2))
    assert found.probability == pytest.approx(0.5)
    assert found.margin == 1
    # Distances are 1; under the margin the true class has 2: q_y = 1 / (1 + e).
    rest = 1 - 1 / (1 + np.e)
    assert found.separating_gradient == pytest.approx(2 * rest)
    assert found.compacting_gradient == pytest.approx((rest + 0.25) * np.sqrt(2))
    earned = mixture_statistics(points, np.array([0, 1]), means, dlqat_tf.GMLoss(1.0, fit_power=2))
    assert earned.margin == pytest.approx(0.25)
    assert len(earned.tables()[0].rows) == 8


def test_parts_of_the_mixtures_gradient_add_up_to_the_losss():
    generator = np.random.default_rng(0)
    # One image: its parts are vectors whose norms the statistics give, so turn them into lengths.
    point, means = generator.normal(size=(1, 3)), generator.normal(size=(4, 3))
    label, loss = np.array([2]), dlqat_tf.GMLoss(0.7, 0.1, fit_power=0.0)
    feature = tf.constant(point, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(feature)
        distances = 0.5 * tf.reduce_sum((feature - tf.constant(means, tf.float32)) ** 2, 1)
        value = loss(label, -distances[None])
    whole = tape.gradient(value, feature).numpy()[0]
    found = mixture_statistics(point, label, means, loss)
    towards_mean = (point[0] - means[2]) / np.linalg.norm(point[0] - means[2])
    separating = whole - found.compacting_gradient * towards_mean
    assert np.linalg.norm(separating) == pytest.approx(found.separating_gradient, rel=1e-4)


@pytest.mark.parametrize("means", [np.zeros((3, 3)), np.zeros((1, 2)), np.zeros(2)])
def test_mixture_refuses_means_of_another_space(means):
    with pytest.raises(ValueError, match="two means of 2 features"):
        mixture_statistics(POINTS, LABELS, means, dlqat_tf.GMLoss())


def test_report_reads_as_table_and_json():
    result = cluster_statistics(POINTS, LABELS)
    assert '"probe_accuracy": 1.0' in result.to_json()
    assert [column.header for column in result.tables()[0].columns][-1] == "linear probe"


def test_delta_p_is_the_papers_equation_6():
    assert delta_p(73.6, 71.3) == pytest.approx(2.3)


def test_features_are_what_the_head_reads():
    model = dlqat_tf.resnet18(4, (8, 8, 3), 1, 2, width=2)
    images = np.random.default_rng(0).random((5, 8, 8, 3), np.float32)
    found = features(model, images, batch_size=2)
    assert found.shape == (5, 16)
    np.testing.assert_allclose(
        model.get_layer("head")(found), model.predict(images, verbose=0), rtol=1e-5, atol=1e-4
    )


def test_features_refuse_a_model_without_a_classifier():
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Softmax(name="end")])
    with pytest.raises(ValueError, match="Received: Softmax 'end'"):
        features(model, np.zeros((1, 4)))


def test_per_class_takes_the_first_of_each_class():
    labels = np.array([1, 0, 1, 1, 0, 0])
    assert per_class(labels, 2).tolist() == [1, 4, 0, 2]
    with pytest.raises(ValueError, match="3 of class 0, count=4"):
        per_class(labels, 4)


def test_embedding_keeps_clusters_apart():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    points = generator.normal(size=(40, 8)) + 50 * labels[:, None]
    first = embed(points, perplexity=5, iterations=300)
    assert first.shape == (40, 2)
    assert cluster_statistics(first, labels).separation > 1
    assert not np.allclose(first, embed(points, perplexity=5, iterations=250))
    assert not np.allclose(first, embed(points, perplexity=9, iterations=300))


def test_equal_features_have_no_embedding():
    with pytest.raises(ValueError, match="Received: 40 equal ones"):
        embed(np.ones((40, 3), np.float32))


@pytest.fixture
def figure1(monkeypatch):
    path = str(Path(__file__).parents[1] / "recipes" / "figure1.py")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    return run


def test_figure1_reads_the_networks_of_a_table(figure1, tmp_path, capsys):
    tf.keras.utils.set_random_seed(0)
    runs, output = tmp_path / "runs", tmp_path / "out"
    for loss, head in (("CEL", "linear"), ("AMS", "cosine"), ("GML", "gml")):
        for widths in ((32, 32), (1, 2)):
            name = Key("digits", loss, widths, "paper", 3).name
            (runs / name).mkdir(parents=True)
            residual_bits = 32 if widths == (32, 32) else 8
            model = dlqat_tf.resnet18(10, (8, 8, 1), *widths, head, "imagenet", 8, residual_bits)
            model.save(runs / name / "model.keras")
    common = ["--runs", runs, "--dataset", "digits", "--rate", "paper", "--seed", 3]
    figure1(*common, "--widths", 1, 2, "--per-class", 8, "--classes", 6, "--output", output)
    assert (output / "figure1.png").is_file()
    statistics = json.loads((output / "statistics.json").read_text())
    assert len(statistics) == 7
    assert statistics["digits-GML-W1A2-paper-s3"]["images"] == 48
    assert statistics["digits-GML-W1A2-paper-s3"]["classes"] == 6
    assert "(f) W1A2, GML" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ending:
        figure1(*common, "--widths", 2, 2)
    assert ending.value.code == 2
    assert "3 are missing: digits-CEL-W2A2-paper-s3" in capsys.readouterr().err
