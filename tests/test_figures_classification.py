"""Pictures of a classifier: legible, whole, and small enough to commit."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lib.figures import classification, features, style


def boxes_overlap(a, b) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def test_a_small_confusion_matrix_shows_its_counts_but_no_zeros():
    figure = classification.confusion_matrix(np.array([[7, 1], [0, 5]]), ["cat", "dog"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "5", "7"]
    assert "accuracy 0.9231, 13 examples" in figure.axes[0].get_title()


def test_colours_are_shares_of_the_row_and_a_class_without_examples_has_none():
    figure = classification.confusion_matrix(np.array([[6, 2], [0, 0]]), ["cat", "unseen"])
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares, [[0.75, 0.25], [0, 0]])


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_names_of_classes_do_not_overlap(classes):
    names = [f"a long name {index}" for index in range(classes)]
    figure = classification.confusion_matrix(np.eye(classes, dtype=int), names)
    figure.draw_without_rendering()
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(boxes_overlap(a, b) for a, b in pairwise(boxes))


@pytest.mark.long
def test_a_thousand_classes_have_numbers_and_a_picture_that_can_be_opened(tmp_path):
    names = [f"class {index}" for index in range(1000)]
    figure = classification.confusion_matrix(np.eye(1000, dtype=int), names)
    assert not any("class" in label.get_text() for label in figure.axes[0].get_xticklabels())
    path = style.save(figure, tmp_path / "confusion.png", colours=256)
    with Image.open(path) as picture:
        assert max(picture.size) < 4000


def test_mistakes_say_truth_prediction_and_probability():
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    figure = classification.mistakes(images, ["4", "$n_1"], ["9", "a very long class name"], [0.987, 0.5])
    assert figure.axes[0].get_title() == "4 → 9\n0.987"
    assert figure.axes[1].get_title() == "\\$n_1\n→ a very long cla…\n0.500"


def test_grey_images_keep_their_scale():
    # Left to itself, matplotlib would stretch a faint image to black and white.
    figure = classification.mistakes(np.full((1, 4, 4), 0.25), ["1"], ["7"], [0.9])
    assert figure.axes[0].images[0].get_clim() == (0, 1)


def test_a_perfect_classifier_has_a_picture_too(tmp_path):
    figure = classification.mistakes(np.zeros((0, 4, 4)), [], [], [])
    assert style.save(figure, tmp_path / "none.png").stat().st_size > 0


def feature_picture(layers: int, classes: int, dims: int = 2):
    generator = np.random.default_rng(0)
    names = [f"features.denseblock{index}.denselayer16.conv2" for index in range(layers)]
    points = {
        name: {method: generator.normal(size=(200, dims)) for method in ("pca", "tsne")} for name in names
    }
    accuracies = {name: {"pca": 0.5, "tsne": 0.987} for name in names}
    labels = np.arange(200) % classes
    class_names = [f"class number {index}" for index in range(classes)]
    return features.layer_panels(points, accuracies, dict.fromkeys(names, 50176), labels, class_names)


@pytest.mark.parametrize(("layers", "classes", "dims"), [(1, 2, 2), (3, 10, 2), (2, 50, 2), (2, 10, 3)])
def test_the_legend_covers_no_panel_and_titles_do_not_overlap(layers, classes, dims):
    figure = feature_picture(layers, classes, dims)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == classes
    extent = legend.get_window_extent()
    assert not any(boxes_overlap(extent, axes.get_window_extent()) for axes in figure.axes)
    titles = [axes.title.get_window_extent() for axes in figure.axes[:layers]]
    assert not any(boxes_overlap(a, b) for a, b in pairwise(titles))


@pytest.mark.parametrize("classes", [2, 120])
def test_the_legend_leaves_the_sheet_of_images_its_width(classes):
    names = [f"n02085620-Chihuahua number {index}" for index in range(classes)]
    images = np.zeros((240, 4, 4, 3), np.uint8)
    points = np.random.default_rng(0).normal(size=(240, 2))
    figure = features.thumbnail_sheet(points, images, np.arange(240) % classes, names, "layer4")
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    assert not boxes_overlap(legend.get_window_extent(), axes.get_window_extent())
    assert axes.get_window_extent().width > 6 * figure.dpi


def test_points_are_drawn_as_pixels_inside_vector_pictures(tmp_path):
    path = style.save(feature_picture(2, 10), tmp_path / "feature.svg")
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("classes", [100, 1000])
def test_of_many_classes_the_largest_confusions_are_drawn_legibly(tmp_path, classes):
    counts = np.diag(np.full(classes, 50)) + np.zeros((classes, classes), int)
    rng = np.random.default_rng(0)
    for value in range(1, 60):
        counts[tuple(rng.integers(0, classes, 2))] += value
    names = [f"a class of a long name, number {number}" for number in range(classes)]
    figure = classification.largest_confusions(counts, names)
    wrong = counts - np.diag(np.diag(counts))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == classification.MOST_CONFUSIONS
    assert texts[0].startswith(f" {wrong.max()} (")
    figure.draw_without_rendering()
    labels = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert not any(boxes_overlap(a, b) for a, b in pairwise(labels))
    path = style.save(figure, tmp_path / "confusions.png")
    with Image.open(path) as image:
        assert max(image.size) < 2000


def test_of_perfect_answers_no_confusion_is_drawn():
    figure = classification.largest_confusions(np.diag([3, 4]), ["a", "b"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["no mistakes"]


def test_mistakes_say_which_name_and_which_number_is_what():
    figure = classification.mistakes(np.zeros((1, 4, 4)), ["cat"], ["dog"], [0.9])
    assert figure.get_suptitle() == "true class → prediction, and its probability"
