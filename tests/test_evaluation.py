"""Answers and features of networks, against hand-made predictions and brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import Permute

from lib import models
from lib.evaluation import answers, embedding
from lib.evaluation.features import layer_features, stratified_sample
from lib.figures.features import layer_panels
from lib.runtime.errors import UserError

# Five examples of three classes; the third class is never the true one. The last two are mistakes.
PREDICTIONS = answers.Predictions(
    probabilities=torch.tensor(
        [[0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.3, 0.1, 0.6], [0.8, 0.1, 0.1]]
    ),
    labels=torch.tensor([0, 0, 1, 0, 1]),
    loss=0.0,
)


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3)
    )


def test_predictions_do_not_depend_on_how_the_examples_are_batched():
    model = classifier()
    x, y = torch.randn(50, 1, 8, 8), torch.arange(50) % 3
    whole = answers.predict(model, [(x, y)])
    parts = answers.predict(model, zip(x.split(7), y.split(7), strict=True))
    torch.testing.assert_close(parts.probabilities, whole.probabilities)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    model.eval()
    assert whole.loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)
    assert torch.equal(whole.classes, model(x).argmax(1))


def test_predicting_leaves_the_model_as_it_was():
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answers.predict(model, [(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_inputs_need_not_be_images():
    texts = [["good", "bad"], ["bad"]]
    scores = {"good": [0.0, 9.0], "bad": [9.0, 0.0]}

    class Lookup(nn.Module):
        def forward(self, words):
            return torch.tensor([scores[word] for word in words])

    predictions = answers.predict(
        Lookup(), zip(texts, [torch.tensor([1, 0]), torch.tensor([0])], strict=True)
    )
    assert torch.equal(predictions.classes, predictions.labels)


def test_no_examples_are_an_error_of_one_line():
    with pytest.raises(UserError, match="no examples"):
        answers.predict(classifier(), [])


def test_rows_of_the_confusion_matrix_are_true_classes():
    assert answers.confusion(PREDICTIONS).tolist() == [[2, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_the_table_averages_over_the_classes_that_have_examples():
    lines = answers.per_class(PREDICTIONS, ["cat", "dog", "unseen class"])
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["cat", "0.6667", "0.6667", "0.6667", "3"]
    assert lines[2].split() == ["dog", "1.0000", "0.5000", "0.6667", "2"]
    assert lines[3].split() == ["unseen", "class", "-", "-", "-", "0"]
    assert lines[4].split() == ["macro", "average", "0.8333", "0.5833", "0.6667", "5"]


@pytest.mark.parametrize(("right", "count"), [(0, 1), (0, 50), (17, 20), (870, 1821), (872, 872)])
def test_the_interval_of_an_accuracy_is_scipys(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, "wilson")
    found = answers.wilson_interval(right / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_most_confident_mistake_comes_first():
    assert answers.most_confident_mistakes(PREDICTIONS, 9).tolist() == [4, 3]
    assert answers.most_confident_mistakes(PREDICTIONS, 1).tolist() == [4]
    perfect = answers.Predictions(torch.eye(3), torch.arange(3), 0.0)
    assert answers.most_confident_mistakes(perfect, 9).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 120), st.integers(0, 20))
def test_a_sample_is_stratified_and_every_class_has_its_least(sizes, samples, at_least):
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)))
    chosen = stratified_sample(labels, samples, at_least, seed=1)
    assert len(chosen.unique()) == len(chosen)
    floors = [min(at_least, size) for size in sizes]
    assert len(chosen) == min(max(samples, sum(floors)), sum(sizes))
    counts = torch.bincount(labels[chosen], minlength=len(sizes)).tolist()
    assert all(count >= floor for count, floor in zip(counts, floors, strict=True))
    # Classes above their floor are sampled at one common rate.
    free = [(c, n) for c, n, floor in zip(counts, sizes, floors, strict=True) if c > floor]
    lower = max(((c - 0.5) / n for c, n in free), default=0)
    upper = min(((c + 0.5) / n for c, n in free), default=1)
    assert lower <= upper + 1e-9


def test_a_sample_is_a_function_of_its_seed():
    labels = torch.arange(200) % 4
    assert torch.equal(stratified_sample(labels, 40, 5, 1), stratified_sample(labels, 40, 5, 1))
    assert not torch.equal(stratified_sample(labels, 40, 5, 1), stratified_sample(labels, 40, 5, 2))


def test_layer_features_are_the_outputs_of_the_layers_in_eval_mode():
    model, x = classifier(), torch.randn(10, 1, 8, 8)
    features = layer_features(model, ["4", "0"], x.split(4), "gap")
    assert model.training
    model.eval()
    with torch.no_grad():
        # The in-place ReLU behind the layers must not have touched them.
        np.testing.assert_allclose(features["0"], model[0](x).mean(dim=(2, 3)), atol=1e-6)
        np.testing.assert_allclose(features["4"], model(x), atol=1e-5)
    assert list(features) == ["4", "0"]
    assert layer_features(model, ["0"], [x], "flatten")["0"].shape == (10, 144)


def test_maps_with_their_channels_last_and_tokens_are_pooled_over_space_too():
    torch.manual_seed(0)
    x = torch.randn(3, 3, 12, 12)
    permuted = nn.Sequential(nn.Conv2d(3, 5, 1), Permute([0, 2, 3, 1]))
    found = layer_features(permuted, ["0", "1"], [x], "gap")
    assert found["1"].shape == (3, 5)
    np.testing.assert_allclose(found["1"], found["0"], atol=1e-6)
    transformer = VisionTransformer(
        image_size=12, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    )
    layers = ["encoder.layers", "heads"]
    found = layer_features(transformer, layers, [x], "gap")
    tokens = layer_features(transformer, layers, [x], "flatten")["encoder.layers"].reshape(3, 10, 8)
    np.testing.assert_allclose(found["encoder.layers"], tokens[:, 1:].mean(1), atol=1e-6)
    rows = models.build("row-gru", size=16, hidden=4)
    states = layer_features(rows, ["recurrent"], [torch.randn(2, 1, 16, 16)], "gap")["recurrent"]
    assert states.shape == (2, 16 * 4), "a state a row is no map"


def test_a_layer_that_the_model_does_not_call_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(UserError, match="'idle' exists, but the model does not call it"):
        layer_features(Idle(), ["used", "idle"], [torch.zeros(1, 2)], "flatten")
    with pytest.raises(UserError, match="no layer 'usde'; choose from used, idle"):
        layer_features(Idle(), ["usde"], [torch.zeros(1, 2)], "flatten")


@pytest.mark.parametrize("dims", [2, 3])
def test_the_feature_picture_prints_the_accuracy_of_each_panel(dims):
    labels = torch.arange(40) % 2
    generator = np.random.default_rng(0)
    features = {
        "mixed": generator.normal(size=(40, 6)),
        "apart": generator.normal(size=(40, 6)) + 50 * labels.numpy()[:, None],
    }
    view = embedding.embed_layers(features, labels, dims=dims, perplexity=5)
    assert view.accuracies["apart"]["pca"] == 1
    assert view.accuracies["apart"]["tsne"] > 0.95
    assert view.accuracies["mixed"]["pca"] < 0.9
    sizes = dict.fromkeys(features, 6)
    figure = layer_panels(view.points, view.accuracies, sizes, labels.numpy(), ["even", "odd"])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[1] == "apart\n6-dim · 5-NN 1.00"
    assert titles[3] == f"5-NN {view.accuracies['apart']['tsne']:.2f}"
    assert view.points["mixed"]["tsne"].shape == (40, dims)
