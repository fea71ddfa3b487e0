"""Networks of the user's own in the scripts that classify images: evaluated, predicting, drawn."""

import textwrap

import numpy as np
import pytest
import torch
from conftest import call, table
from PIL import Image

# It answers `dark` or `light` by the mean of the pixels: certain, and known beforehand.
NET = """
    import torch
    from torch import nn

    SIZE, MEAN, STD = 16, 0.0, 1.0

    class Net(nn.Module):
        def __init__(self, logits=2, channels={channels}):
            super().__init__()
            self.conv = nn.Conv2d(channels, 2, 3, padding=1)
            self.body = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(2, logits)
            with torch.no_grad():
                self.conv.weight.zero_()
                self.conv.bias.zero_()
                self.conv.weight[:, :, 1, 1] = 1 / channels
                self.head.weight[:] = torch.tensor([[10.0] * 2, [-10.0] * 2][:logits])
                self.head.bias[:] = torch.tensor([-10.0, 10.0][:logits])

        def forward(self, x):
            return {{"logits": self.head(self.body(self.conv(x)))}}
"""


@pytest.fixture
def folder(tmp_path):
    """A network of its own and a folder of twelve dark and twelve light images."""
    (tmp_path / "net.py").write_text(textwrap.dedent(NET).format(channels=3))
    rng = np.random.default_rng(0)
    for name, level in (("Dark", 40), ("Light", 215)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(level - 40, level + 40, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path


def flags_of(*more) -> tuple:
    return "--dataset", "folder", "--data-dir", "images", "--network", "net.py:Net", *more


@pytest.mark.slow
def test_it_is_evaluated_and_drawn_and_its_classes_are_found_by_name(folder):
    done = call(
        "run-image-classification.py",
        *("--eval-only", *flags_of("--classes", "light,dark"), "--out-dir", "imgs", "--valid-fraction", 0.5),
        folder=folder,
    )
    assert done.status == 0, done.stderr
    assert "Train_accuracy=1 " in done.stdout
    assert "Valid_accuracy=1" in done.stdout
    # Nothing of the recipe of the script's usual network, e.g. its averaged views, is taken for this one.
    assert " model=" not in done.stdout
    assert "[VIEWS]" not in done.stdout
    for what in ("confusion", "mistakes", "filters", "feature"):
        assert len(list((folder / "imgs").glob(f"{what}-*.png"))) == 1
    # In the other order the same names are still those of the images; with false names nothing is right.
    swapped = call(
        "run-image-classification.py",
        *("--eval-only", *flags_of("--classes", "dark,light"), "--out-dir", "imgs", "--valid-fraction", 0.5),
        folder=folder,
    )
    assert "Train_accuracy=0 " in swapped.stdout


def test_it_predicts_files_and_folders(folder):
    done = call(
        "run-image-classification.py",
        *("--predict-only", *flags_of("--classes", "light,dark"), "--input", "images/Dark/3.png"),
        folder=folder,
    )
    assert done.status == 0, done.stderr
    (row,) = table(done.stdout)
    assert (row["image"], row["prediction"]) == ("images/Dark/3.png", "dark")
    done = call(
        "run-image-classification.py", "--predict-only", *flags_of(), "--classes", "light,dark", folder=folder
    )
    rows = table(done.stdout)
    assert {row["label"] == row["prediction"] for row in rows} == {True}


def test_one_logit_is_a_classifier_of_two_classes(folder):
    given = flags_of("--network-args", "logits=1", "--classes", "dark,light", "--valid-fraction", 0.5)
    done = call("run-image-classification.py", "--eval-only", *given, "--out-dir", "imgs", folder=folder)
    assert done.status == 0, done.stderr
    assert "Valid_accuracy=1" in done.stdout


def test_all_images_are_evaluated_that_are_not_divided_even_one_of_a_class(folder):
    given = flags_of("--classes", "light,dark", "--out-dir", "imgs")
    done = call("run-image-classification.py", "--eval-only", *given, folder=folder)
    assert done.status == 0, done.stderr
    assert "Train_accuracy" not in done.stdout
    assert "Valid_accuracy=1" in done.stdout
    assert (
        len(table(call("run-image-classification.py", "--predict-only", *given, folder=folder).stdout)) == 24
    )
    for path in (folder / "images" / "Dark").glob("*.png"):
        if path.name != "0.png":
            path.unlink()
    told = call("run-image-classification.py", "--predict-only", *given, folder=folder)
    assert [row["label"] for row in table(told.stdout)].count("dark") == 1


def test_an_answer_that_is_not_finite_is_refused(folder):
    text = (folder / "net.py").read_text().replace("self.head(self", "self.head(1 / (x.max() < 0.9) * self")
    (folder / "net.py").write_text(text)  # infinite for light images alone
    given = ("--predict-only", *flags_of("--classes", "light,dark"), "--input")
    assert call("run-image-classification.py", *given, "images/Dark/0.png", folder=folder).status == 0
    refused = call("run-image-classification.py", *given, "images/Light/0.png", folder=folder)
    assert refused.status == 2
    assert refused.is_one_line_error()
    assert "the network answers with numbers that are not finite" in refused.stderr


def test_grey_networks_go_with_the_script_for_digits(folder):
    (folder / "net.py").write_text(textwrap.dedent(NET).format(channels=1))
    given = flags_of("--classes", "light,dark", "--valid-fraction", 0.5)
    done = call("run-mnist-classification.py", "--eval-only", *given, "--out-dir", "imgs", folder=folder)
    assert done.status == 0, done.stderr
    assert "Valid_accuracy=1" in done.stdout
    torch.save(torch.ones(3), folder / "w.pth")
    refused = call("run-mnist-classification.py", "--eval-only", *given, "--weights", "w.pth", folder=folder)
    assert refused.status == 2


BAD = {
    "in training": ((), "--network goes with --eval-only or --predict-only alone"),
    "with a checkpoint": (("--eval-only", "--restore-file", "x.pt"), "does not go with --restore-file"),
    "other classes": (("--eval-only", "--classes", "cat,dog"), "and not Dark, Light"),
    "too many classes": (("--eval-only", "--classes", "a,b,c"), "--classes names 3"),
    "other images": (("--eval-only", "--dataset", "cifar10", "--channels", "1"), "does not take images"),
    "weights of another": (("--eval-only", "--weights", "none.pth"), "none.pth"),
}


@pytest.mark.parametrize(("flags", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_line(folder, flags, said):
    refused = call("run-image-classification.py", *flags_of(), *flags, folder=folder)
    assert refused.status == 2
    assert refused.is_one_line_error()
    assert said in refused.stderr
