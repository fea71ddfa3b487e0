"""Networks to look inside and the images they are shown: exactly what the network sees, or one line."""

import numpy as np
import pytest
import torch
from conftest import write_checkpoint
from PIL import Image
from torch import nn
from torchvision import models

from lib.data import image_inputs
from lib.data.image_inputs import read
from lib.data.preprocessing import Preprocessing
from lib.models.averaging import AveragedViews
from lib.models.network import Network, check_top, find_classes, load_checkpoint
from lib.runtime.errors import UserError

IMAGENET = Preprocessing(24, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=32)


def small(preprocessing: Preprocessing = IMAGENET, classes=("tabby", "tiger cat", "Egyptian cat", "bat")):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(preprocessing.channels * preprocessing.size**2, len(classes))
    )
    return Network(network, classes, preprocessing, "small")


def photograph(path, size=(50, 40), mode="RGB"):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    image.save(path)
    return str(path)


@pytest.fixture(scope="module")
def restored(tmp_path_factory) -> Network:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("ckpts") / "own.pt"))


# Images


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (32, 32), (31, 97), (24, 24)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_photograph_is_prepared_exactly_as_torchvisions_preset_prepares_it(tmp_path, size, interpolation):
    file = photograph(tmp_path / "photo.png", size)
    mode = models.ResNet18_Weights.DEFAULT.transforms().interpolation.__class__(interpolation)
    preset = models.ResNet18_Weights.DEFAULT.transforms(crop_size=24, resize_size=32, interpolation=mode)
    network = small(Preprocessing(24, 3, IMAGENET.mean, IMAGENET.std, 32, interpolation))
    (shown,) = read([file], network.preprocessing)
    with Image.open(file) as image:
        torch.testing.assert_close(network.normalise(shown.pixels), preset(image))
    assert (shown.name, shown.label) == ("photo", None)
    assert shown.pixels.shape == (3, 24, 24)
    assert shown.pixels.min() >= 0
    assert shown.pixels.max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_photographs_of_every_mode_have_three_channels(tmp_path, mode):
    file = photograph(tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png"), mode=mode)
    (shown,) = read([file], IMAGENET)
    assert shown.pixels.shape == (3, 24, 24)
    assert (shown.pixels[0] != shown.pixels[2]).any() == (mode != "L")


def test_an_example_of_a_data_set_is_the_row_that_the_network_validates_on(restored):
    from lib.data import images

    data = images.load("digits", "nowhere")
    first, second = read(["digits:7", "digits:0"], restored.preprocessing)
    assert torch.equal(first.pixels, data.valid.images[7])
    assert torch.equal(second.pixels, data.valid.images[0])
    assert first.name == "digits-7"
    assert first.label == data.classes[data.valid.labels[7]]


def test_a_grey_example_shown_to_a_network_for_colours_keeps_its_shape_and_has_three_channels():
    (shown,) = read(["digits:7"], IMAGENET)
    assert shown.pixels.shape == (3, 24, 24)
    assert torch.equal(shown.pixels[0], shown.pixels[2])


def test_inverted_files_are_negatives(tmp_path, restored):
    file = photograph(tmp_path / "photo.png")
    (plain,), (negative,) = (read([file], restored.preprocessing, invert=invert) for invert in (False, True))
    torch.testing.assert_close(negative.pixels, 1 - plain.pixels)
    assert plain.pixels.shape == (1, 28, 28)


def test_a_file_whose_name_looks_like_an_example_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40), "red").save("digits:7", "PNG")
    (shown,) = read(["digits:7"], IMAGENET)
    assert shown.label is None
    assert torch.equal(shown.pixels[0], torch.ones(24, 24))


def test_what_cannot_be_read_is_one_line(tmp_path, restored):
    (tmp_path / "text.jpg").write_text("not an image")
    long = tmp_path / "long.png"
    Image.new("L", (40_000, 1)).save(long)
    for name, match in {
        str(tmp_path / "text.jpg"): "not an image",
        str(tmp_path / "missing.jpg"): "there is no file",
        "letters:3": "no data set 'letters'",
        "digits:360": r"has 0 to 359",
    }.items():
        with pytest.raises(UserError, match=match):
            read([name], restored.preprocessing)
    with pytest.raises(UserError, match="too long for its width: 40000×1"):
        read([str(long)], Preprocessing(224, 3, IMAGENET.mean, IMAGENET.std, 256))


def test_inputs_are_checked_without_a_network(tmp_path):
    image_inputs.check([photograph(tmp_path / "photo.png"), "digits:99999", "mnist:0"])
    for name, match in {
        str(tmp_path / "missing.jpg"): "there is no file",
        "letters:3": "no data set",
    }.items():
        with pytest.raises(UserError, match=match):
            image_inputs.check([photograph(tmp_path / "photo.png"), name])


# Networks


def test_logits_are_the_networks_own_of_normalised_pixels():
    network = small()
    pixels = torch.rand(2, 3, 24, 24)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(network.logits(pixels), network.module((pixels - mean) / std))


def test_gradients_reach_the_pixels_and_no_weight(restored):
    pixels = torch.rand(2, 1, 28, 28, requires_grad=True)
    restored.logits(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert all(weight.grad is None and not weight.requires_grad for weight in restored.module.parameters())
    assert not any(module.training for module in restored.module.modules())


def test_a_checkpoint_brings_its_name_classes_preprocessing_and_epoch(restored):
    assert (restored.name, restored.epoch) == ("lenet5", 1)
    assert restored.classes == tuple("0123456789")
    assert (restored.size, restored.channels) == (28, 1)
    assert restored.normalise(torch.ones(1, 28, 28)).unique().tolist() == [1.5]


def test_a_checkpoint_gives_the_logits_of_the_weights_it_was_saved_with(tmp_path, restored):
    from lib import models as networks
    from lib.runtime import checkpoint

    path = write_checkpoint(tmp_path / "own.pt")
    network = networks.build("lenet5", classes=10, channels=1, size=28).eval()
    network.load_state_dict(checkpoint.load(path)["state_dict"])
    pixels = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(restored.logits(pixels), network((pixels - 0.25) / 0.5), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"task": "text-classification"}, "trained for text-classification"),
        ({"classes": None}, "its classes is not a list of names"),
        ({"preprocessing": None}, "its preprocessing is not a table"),
        ({"preprocessing": {"size": 28, "channels": 1, "mean": [0.0], "std": [0.0]}}, "how its inputs"),
        ({"preprocessing": {"size": 28, "channels": 3, "mean": [0, 0], "std": [1]}}, "how its inputs"),
        ({"model": {"name": "nonesuch", "config": {}}}, "no network 'nonesuch'"),
        ({"state_dict": {"c1.weight": torch.zeros(1)}}, "does not fit LeNet5"),
    ],
)
def test_a_checkpoint_that_cannot_be_explained_is_one_line(tmp_path, entries, match):
    path = write_checkpoint(tmp_path / "odd.pt", **entries)
    with pytest.raises(UserError, match=match):
        load_checkpoint(path)


def test_a_bare_state_dict_asks_for_the_name_of_its_network(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.pt")
    with pytest.raises(UserError, match="--ptm NAME --weights FILE"):
        load_checkpoint(tmp_path / "bare.pt")


def test_preprocessing_goes_into_a_checkpoint_and_comes_out_the_same():
    saved = IMAGENET.as_dict()
    assert all(type(value) in (int, str, list) for value in saved.values())
    assert Preprocessing.of(saved, "it") == IMAGENET


# Classes


def test_classes_are_found_by_name_whatever_the_case_and_by_number():
    assert find_classes(small(), ["egyptian CAT", "3", "tabby"]) == [2, 3, 0]


def test_a_name_goes_before_a_number():
    network = small(classes=("7", "3", "1", "0"))
    assert find_classes(network, ["1"]) == find_classes(network, ["2"]) == [2]


def test_a_class_that_is_given_twice_is_explained_once():
    assert find_classes(small(classes=("7", "3", "1", "0")), ["1", "3", "2", "3"]) == [2, 1]


def test_an_unknown_class_suggests_the_nearest_by_word_then_by_letters():
    with pytest.raises(UserError, match=r"no class 'cat'.*tiger cat, Egyptian cat, bat"):
        find_classes(small(), ["cat"])
    with pytest.raises(UserError, match=r"nearest names are Egyptian cat"):
        find_classes(small(), ["Egiptian cat"])
    with pytest.raises(UserError, match="the network's are 0 to 3"):
        find_classes(small(), ["4"])


def test_more_likeliest_classes_than_there_are_is_one_line():
    check_top(small(), 4)
    with pytest.raises(UserError, match="-k 5 is more than the 4 classes of small"):
        check_top(small(), 5)


def test_a_network_that_averages_its_answers_over_views_says_so_and_answers_as_predictions_do(tmp_path):
    """One network has one answer: that of --predict-only, whichever script gives it."""
    file = write_checkpoint(tmp_path / "views.pt", flags={"test_views": 6})
    network = load_checkpoint(file)
    assert network.views == 6
    pixels = torch.rand(2, 1, 28, 28)
    averaged = AveragedViews(network.module, 6)(network.normalise(pixels)).softmax(1)
    torch.testing.assert_close(network.probabilities(pixels), averaged)
    assert load_checkpoint(write_checkpoint(tmp_path / "odd.pt", flags={"test_views": [3]})).views == 1
    one = load_checkpoint(write_checkpoint(tmp_path / "one.pt"))
    torch.testing.assert_close(one.probabilities(pixels), one.logits(pixels).softmax(1))
