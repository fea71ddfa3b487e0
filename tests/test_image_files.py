"""Image files as examples: in memory or read as needed they are the same; the cache notices what changes."""

import os
import time

import pytest
import torch
from pictures import COLOURS, write_folder, write_image

from lib.data import augment, cache, image_files
from lib.data.preprocessing import Preprocessing
from lib.runtime.errors import UserError

SMALL = Preprocessing(12, 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize=14)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "look-inside" / "images"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "images", images=10)


def from_files(monkeypatch, folder, **options):
    """The same images as files that are read as they are needed, however small."""
    monkeypatch.setattr(image_files, "LARGEST_IN_MEMORY", 0)
    return image_files.load(folder, SMALL, **options)


def gathered(batches) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_a_tenth_is_held_out_stratified_and_always_the_same(folder):
    data, again = (image_files.load(folder, SMALL) for _ in range(2))
    assert (len(data.train.labels), len(data.valid.labels), data.test) == (27, 3, None)
    assert data.valid.labels.sort()[0].tolist() == [0, 1, 2]
    assert torch.equal(data.valid.images, again.valid.images)
    third = image_files.load(folder, SMALL, valid_fraction=0.3, limit=12)
    assert torch.bincount(third.valid.labels).tolist() == [3, 3, 3]
    assert torch.bincount(third.train.labels).tolist() == [4, 4, 4]


def test_pixels_are_what_the_preprocessing_reads(folder):
    data = image_files.load(folder, SMALL)
    mine = {tuple(image.flatten().tolist()) for image in data.train.images}
    for path in sorted(folder.rglob("*.png"))[:5]:
        expected = tuple(SMALL.read(path).flatten().tolist())
        assert expected in mine or expected in {tuple(i.flatten().tolist()) for i in data.valid.images}
    assert data.preprocessing.mean == (0, 0, 0)
    prepared = data.prepared(SMALL.mean, SMALL.std, torch.device("cpu"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SMALL.mean, SMALL.std))
    assert torch.allclose(prepared.train.images, (data.train.images - mean) / std)
    assert torch.allclose(prepared.pixels(prepared.train.images), data.train.images, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_read_as_needed_images_are_the_same_as_in_memory(folder, monkeypatch, workers):
    here = image_files.load(folder, SMALL).prepared(SMALL.mean, SMALL.std, torch.device("cpu"))
    files = from_files(monkeypatch, folder, workers=workers)
    files = files.prepared(SMALL.mean, SMALL.std, torch.device("cpu"))
    assert isinstance(files.train, image_files.FileSplit)
    for mine, its in ((files.train, here.train), (files.valid, here.valid)):
        images, labels = gathered(mine.in_order())
        assert torch.equal(labels, its.labels)
        assert torch.allclose(images, its.images, atol=1e-6)


def test_the_order_of_files_is_that_of_tensors(folder, monkeypatch):
    def labels_of(data):
        batches = data.train.shuffled((), lambda _: None, batch_size=4, seed=7)
        return [labels.tolist() for epoch in (0, 3) for _, labels in batches.epoch(epoch, start=1)]

    assert labels_of(image_files.load(folder, SMALL)) == labels_of(from_files(monkeypatch, folder))


def test_crops_depend_on_seed_and_epoch_alone_and_draw_no_global_random_numbers(folder, monkeypatch):
    data = from_files(monkeypatch, folder)

    def epoch(number, start=0, seed=1):
        batches = data.train.shuffled(("crop",), lambda _: None, batch_size=5, seed=seed)
        return gathered(batches.epoch(number, start))[0]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = epoch(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(epoch(0), first)
    assert torch.equal(epoch(0, start=2), first[10:])
    assert not torch.equal(epoch(1).sort(0)[0], first.sort(0)[0])
    assert not torch.equal(epoch(0, seed=2).sort(0)[0], first.sort(0)[0])


def test_augmentations_other_than_crops_are_done_to_batches(folder, monkeypatch):
    data = from_files(monkeypatch, folder)
    asked = []

    def augmentation(names):
        asked.append(list(names))
        return augment.augmentation(names)

    batches = data.train.shuffled(("crop", "flip"), augmentation, batch_size=5, seed=1)
    assert gathered(batches.epoch(0))[0].shape == (27, 3, 12, 12)
    assert asked == [["flip"]]


def test_rows_of_files_are_chosen_by_number_or_by_mask(folder, monkeypatch):
    split = from_files(monkeypatch, folder).train
    some = split.rows(torch.tensor([5, 2]))
    assert some.files == (split.files[5], split.files[2])
    mask = torch.zeros(27, dtype=torch.bool)
    mask[[2, 5]] = True
    assert split.rows(mask).files == (split.files[2], split.files[5])


# What cannot be read


@pytest.fixture
def spoiled(folder):
    whole = (folder / "red" / "003.png").read_bytes()
    (folder / "red" / "003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "blue" / "000.png").write_text("no image")
    return folder


@pytest.mark.parametrize("load", ["memory", "files"])
def test_images_that_cannot_be_read_are_one_line_or_are_left_out(spoiled, monkeypatch, capsys, load):
    if load == "files":
        monkeypatch.setattr(image_files, "LARGEST_IN_MEMORY", 0)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(
            UserError, match=r"2 of 30 images cannot be read \(.*blue/000.png is not an image"
        ):
            image_files.load(spoiled, SMALL)
        data = image_files.load(spoiled, SMALL, skip_bad=True)
        assert len(data.train.labels) + len(data.valid.labels) == 28
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "2 of 30 images cannot be read and are left out: " in said
        assert "blue/000.png" in said
        assert "red/003.png" in said
    assert gathered(data.train.in_order())[0].shape[1:] == (3, 12, 12)


def test_a_class_that_cannot_be_read_at_all_is_one_line(folder):
    for path in (folder / "green").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image of the class green"):
        image_files.load(folder, SMALL, skip_bad=True)


def test_two_validation_splits_are_refused(tmp_path):
    for split in ("train", "valid"):
        write_folder(tmp_path / "two" / split, 10)
    with pytest.raises(UserError, match="--valid-fraction"):
        image_files.load(tmp_path / "two", SMALL, valid_fraction=0.1)


def test_a_test_split_validates_unless_a_share_of_training_does(tmp_path):
    for split, images in (("train", 10), ("test", 4)):
        write_folder(tmp_path / "both" / split, images)
    alone = image_files.load(tmp_path / "both", SMALL)
    assert (len(alone.train.labels), len(alone.valid.labels), alone.test) == (30, 12, None)
    share = image_files.load(tmp_path / "both", SMALL, valid_fraction=0.2)
    sizes = [len(split.labels) for split in (share.train, share.valid, share.test)]
    assert sizes == [24, 6, 12]


# The cache


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded since."""
    seen = []
    decode = image_files._decode
    monkeypatch.setattr(image_files, "_decode", lambda path, how: seen.append(path) or decode(path, how))
    return seen


def test_a_folder_is_decoded_once(folder, decoded):
    image_files.load(folder, SMALL)
    assert len(decoded) == 30
    image_files.load(folder, SMALL, valid_fraction=0.4)
    assert len(decoded) == 30


def change_pixels(folder):
    write_image(folder / "red" / "000.png", COLOURS["blue"], 5)


def touch(folder):
    os.utime(folder / "red" / "000.png", ns=(time.time_ns(), time.time_ns() + 1))


def rename(folder):
    (folder / "red" / "000.png").rename(folder / "red" / "900.png")


def remove(folder):
    (folder / "red" / "000.png").unlink()


@pytest.mark.parametrize("change", [change_pixels, touch, rename, remove])
def test_the_cache_notices_changed_files_and_keeps_the_latest_alone(folder, decoded, change, cache_folder):
    image_files.load(folder, SMALL)
    change(folder)
    before = len(decoded)
    data = image_files.load(folder, SMALL)
    assert len(decoded) > before
    assert len(data.train.labels) + len(data.valid.labels) == 30 - (change is remove)
    assert len(list(cache_folder.iterdir())) == 1


def test_another_size_is_another_entry(folder, decoded, cache_folder):
    image_files.load(folder, SMALL)
    image_files.load(folder, Preprocessing(8, 3, (0,) * 3, (1,) * 3, resize=8))
    assert len(decoded) == 60
    assert len(list(cache_folder.iterdir())) == 2


def test_a_damaged_entry_is_made_anew(folder, decoded, cache_folder):
    image_files.load(folder, SMALL)
    (entry,) = cache_folder.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    image_files.load(folder, SMALL)
    assert len(decoded) == 60
    image_files.load(folder, SMALL)
    assert len(decoded) == 60


def test_a_cache_that_cannot_be_written_is_a_warning(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(image_files.load(folder, SMALL).train.labels) == 27
    assert "nothing is kept for the next start" in capsys.readouterr().err


def test_a_cache_is_that_of_its_folder(tmp_path):
    for name, content in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("same")
        os.utime(tmp_path / name / "x", (1, 1))
        found = cache.cached(
            "kind",
            tmp_path / name,
            [str(tmp_path / name / "x")],
            lambda c=content: {"c": c},
            lambda kept: kept["c"],
        )
        assert found == {"c": content}
    again = cache.cached(
        "kind", tmp_path / "a", [str(tmp_path / "a" / "x")], lambda: {"c": 3}, lambda _: True
    )
    assert again == {"c": 1}
