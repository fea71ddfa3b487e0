"""Images with masks: files found and refused, joint augmentation, weights of classes, batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data import mask_files, masks, shapes
from lib.data.joint_augment import JointAugmentation
from lib.data.masks import MaskedSplit, Reading
from lib.data.preprocessing import Preprocessing
from lib.runtime.errors import UserError

READING = Reading(None, 255)


def write_pair(folder: Path, name: str, labels: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """Write an image of noise and a mask into `images/` and `masks/`."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    height, width = size or labels.shape
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / f"{name}.png")
    Image.fromarray(labels).save(folder / "masks" / f"{name}.png")


def labelled(*labels: int, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    """Return a mask with a column of each of some labels, and the first one elsewhere."""
    mask = np.full(shape, labels[0], np.uint8)
    for column, label in enumerate(labels):
        mask[:, column] = label
    return mask


def test_a_folder_of_images_and_masks_is_read_with_its_classes(tmp_path):
    for number in range(4):
        write_pair(tmp_path, f"i{number}", labelled(0, 2, 255))
    (tmp_path / "classes.txt").write_text("ground\nwater\ntree\n")
    found = mask_files.read(mask_files.folder(tmp_path), READING)
    assert found.classes == ("ground", "water", "tree")
    split = found.splits["train"]
    assert len(split) == 4
    image, mask = split[3]
    assert (image.shape, mask.shape, mask.dtype) == ((3, 20, 30), (20, 30), torch.uint8)
    assert split.name(3) == "i3"
    assert mask[0, :4].tolist() == [0, 2, 255, 0]


def test_large_images_are_reduced_and_their_masks_keep_their_labels(tmp_path):
    write_pair(tmp_path, "a", labelled(0, 7))
    write_pair(tmp_path, "b", labelled(7, 7))
    split = mask_files.read(mask_files.folder(tmp_path), Reading(15, 255)).splits["train"]
    assert split[0][0].shape == (3, 10, 15)
    assert split[0][1].unique().tolist() == [0, 7]


def test_a_folder_may_have_splits_in_either_layout(tmp_path):
    for part in ("train", "val", "test"):
        write_pair(tmp_path / "one" / part, part, labelled(0, 1))
        write_pair(tmp_path / part, part, labelled(0, 1))
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / part / "images").rename(tmp_path / "two" / part)
        (tmp_path / part / "masks").rename(tmp_path / "two" / f"{part}annot")
    for layout in ("one", "two"):
        assert set(mask_files.folder(tmp_path / layout).splits) == {"train", "valid", "test"}
    assert set(mask_files.camvid(tmp_path / "two").splits) == {"train", "valid", "test"}


def test_masks_that_do_not_fit_are_refused_by_name(tmp_path):
    write_pair(tmp_path / "sizes", "a", labelled(0, 1), size=(20, 31))
    write_pair(tmp_path / "labels", "a", labelled(0, 9))
    write_pair(tmp_path / "missing", "a", labelled(0, 1))
    (tmp_path / "missing" / "masks" / "a.png").unlink()
    write_pair(tmp_path / "colour", "a", np.zeros((20, 30, 3), np.uint8), size=(20, 30))
    named = Reading(None, 255, classes=("a", "b"))
    wanted = {
        "sizes": r"a.png has 30×20 pixels, its image .* 31×20",
        "labels": r"a.png has the label 9: the classes are 0 to 1",
        "missing": r"a.png has no mask: .*a.png is missing",
        "colour": r"a.png is no mask",
    }
    for name, message in wanted.items():
        with pytest.raises(UserError, match=message):
            mask_files.read(mask_files.folder(tmp_path / name), named)


def test_labels_without_names_must_be_few(tmp_path):
    write_pair(tmp_path, "a", labelled(0, 254))
    with pytest.raises(UserError, match="--ignore-index"):
        mask_files.read(mask_files.folder(tmp_path), READING)
    found = mask_files.read(mask_files.folder(tmp_path), Reading(None, 254))
    assert found.classes == ("0", "1")


@pytest.mark.parametrize("find", [mask_files.camvid, mask_files.folder])
def test_a_folder_without_images_says_what_belongs_there(tmp_path, find):
    with pytest.raises(UserError, match="train"):
        find(tmp_path)


def test_shapes_are_the_same_every_time_and_have_their_four_labels():
    one, two = (shapes.make(READING) for _ in range(2))
    assert {name: len(split) for name, split in one.splits.items()} == shapes.EXAMPLES
    assert all(map(torch.equal, one.splits["valid"][3], two.splits["valid"][3]))
    seen = torch.cat([one.splits["train"][row][1].flatten() for row in range(20)])
    assert seen.unique().tolist() == [0, 1, 2, 3]


def pair_of_a_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose red channel is 10 times the label, so that both must move together."""
    mask = torch.arange(24).repeat_interleave(4).view(6, 16).repeat_interleave(4, 0).to(torch.uint8)
    return torch.stack([mask * 10, mask, mask]), mask


@pytest.mark.parametrize("names", [(), ("flip",), ("crop",), ("crop", "flip", "scale")])
def test_augmentation_moves_the_image_and_its_mask_together(names):
    torch.manual_seed(0)
    pairs = [pair_of_a_mask()] * 6
    images, labels = JointAugmentation(names, (16, 16), 255)(pairs)
    assert (images.shape, labels.shape) == ((6, 3, 16, 16), (6, 16, 16))
    inside = labels != 255
    difference = (images[:, 0] * 255 / 10 - labels).abs()[inside]
    # Between two labels the image is interpolated, and the mask is not.
    assert (difference < 0.51).float().mean() > 0.6
    assert inside.float().mean() > 0.3


def test_without_augmentation_a_window_of_the_images_size_is_the_image():
    image, mask = pair_of_a_mask()
    images, labels = JointAugmentation((), mask.shape, 255)([(image, mask)])
    assert torch.equal(labels[0], mask.long())
    assert torch.allclose(images[0], image / 255, atol=1e-6)


def test_outside_of_the_image_are_the_ground_and_the_ignored_label():
    image, mask = pair_of_a_mask()
    torch.manual_seed(1)
    images, labels = JointAugmentation((), (64, 16), 99, (0.5, 0.25, 0.0))([(image, mask)])
    outside = labels[0] == 99
    assert outside.float().mean() > 0.5
    rows = outside.all(1)  # whole rows, away from the edge, where the image fades into the ground
    rows = rows & rows.roll(1) & rows.roll(-1)
    assert torch.allclose(images[0, 1][rows], torch.tensor(0.25), atol=1e-6)


def test_colours_change_the_image_alone():
    torch.manual_seed(0)
    image, mask = pair_of_a_mask()
    images, labels = JointAugmentation(("color",), mask.shape, 255)([(image, mask)] * 2)
    assert torch.equal(labels[1], mask.long())
    assert not torch.allclose(images[0], images[1])
    assert images.min() >= 0
    assert images.max() <= 1


def test_weights_of_classes_are_as_published_and_have_mean_one_over_the_pixels():
    pixels = torch.tensor([[60.0, 30.0, 10.0, 0.0], [100.0, 100.0, 50.0, 0.0]], dtype=torch.float64)
    share = torch.tensor([0.6, 0.3, 0.1, 0.0])
    median = masks.class_weights("median-frequency", pixels)
    frequency = torch.tensor([0.6, 0.3, 0.2])
    expected = 0.3 / frequency
    assert torch.allclose(median[:3] / median[0], expected / expected[0])
    log = masks.class_weights("log", pixels)
    assert torch.allclose(log[:3] / log[0], (1.1 + share[0]).log() / (1.1 + share[:3]).log())
    for weights in (median, log):
        assert float((weights * share).sum()) == pytest.approx(1)
        assert weights[3] == weights[:3].max()
    assert masks.class_weights("none", pixels) is None


def split_of(count: int) -> MaskedSplit:
    pairs = [
        (torch.full((3, 32, 32), row, dtype=torch.uint8), torch.zeros(32, 32, dtype=torch.uint8))
        for row in range(count)
    ]
    how = Preprocessing(32, 3, (0.0,) * 3, (1.0,) * 3, native=True)
    return MaskedSplit(pairs, tuple(map(str, range(count))), tuple(range(count)), how)


def test_batches_go_on_where_an_epoch_was_stopped():
    batches = masks.MaskBatches(split_of(10), JointAugmentation((), (32, 32), 255), batch_size=3, seed=5)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, start=1))
    assert len(whole) == len(batches) == 3
    for one, two in zip(whole[1:], rest, strict=True):
        assert torch.equal(one[0], two[0])


def test_splits_are_made_of_what_there_is():
    train = split_of(20)
    assert [len(each or ()) for each in masks.divide({"train": train}, None, None)] == [18, 2, 0]
    assert [len(each or ()) for each in masks.divide({"train": train}, 0.5, 4)] == [4, 10, 0]
    three = {"train": train, "valid": train.part([0]), "test": train.part([1, 2])}
    assert [len(each or ()) for each in masks.divide(three, None, None)] == [20, 1, 2]
    with pytest.raises(UserError, match="--valid-fraction"):
        masks.divide(three, 0.1, None)
    with pytest.raises(UserError, match="--limit 21"):
        masks.divide(three, None, 21)
