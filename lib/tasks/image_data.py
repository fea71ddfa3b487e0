"""Load the images that a script classifies: data sets by name, folders, or image files alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lib import models
from lib.cli import scripts
from lib.data import datasets, folders, image_files, images
from lib.data.images import ImageData
from lib.data.preprocessing import Preprocessing
from lib.models.network import Network
from lib.runtime.errors import UserError
from lib.runtime.settings import Settings
from lib.training.run import TrainingRun

# Mean and standard deviation of ImageNet's pixels, with which torchvision's weights were trained; those of
# other photographs are similar.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Published weights are evaluated on the central 224 of 256 pixels, because objects are seldom at the edge.
RESIZE_SHARE = 256 / 224


@dataclass(frozen=True)
class DataSettings(Settings):
    """The flags that choose the images.

    Attributes:
        choices: the values of the flags that single data sets offer, e.g. `split`; None where not given.
        (the others: see the flags of the same names)
    """

    dataset: str
    data_dir: str
    classes: tuple[str, ...]
    valid_fraction: float | None
    limit: int | None
    skip_bad: bool
    workers: int
    input: list[str] | None
    model: str
    size: int | None
    mean: float = 0.0
    std: float = 1.0
    holdout: int | None = None
    choices: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Self:
        """Return the settings among `flags`."""
        offered = datasets.choices(tuple(datasets.DATASETS))
        choices = {each.name: flags[each.name] for each in offered if each.name in flags}
        return super().of({**flags, "choices": choices})

    def check(self) -> None:
        """Raise a UserError if a flag was given that does not suit the data set."""
        is_folder = self.dataset == datasets.FOLDER
        own = () if is_folder else tuple(each.name for each in datasets.find(self.dataset).choices)
        for name, value in self.choices.items():
            if value is not None and name not in own:
                raise UserError(f"--{name} does not go with --dataset {self.dataset}")
        if is_folder:
            if self.holdout:
                raise UserError("--holdout does not go with --dataset folder: give --valid-fraction")
        elif self.classes:
            raise UserError("--classes goes with --dataset folder alone")
        elif self.valid_fraction is not None and self.holdout is not None:
            raise UserError(f"--valid-fraction does not go with --dataset {self.dataset}: give --holdout")


def load_grey(run: TrainingRun, settings: DataSettings) -> ImageData:
    """Load the grey images that the flags name, normalised for its network.

    With `--input` no examples are loaded, because the checkpoint has the classes and the preprocessing.
    """
    settings.check()
    assert settings.size  # the flag has a default
    how = Preprocessing(settings.size, 1, (settings.mean,), (settings.std,))
    if settings.input:
        if "preprocessing" in run.saved:
            how = Preprocessing.of(run.saved["preprocessing"], run.source)
        data = images.without_examples(_classes(run, settings), how)
    else:
        data = load_images(settings, how)
    _check_classes(run, settings, data)
    return data.prepared(how.mean, how.std, run.device)


def load_images(settings: DataSettings, how: Preprocessing, *, trains: bool = True) -> ImageData:
    """Return the images that the flags name, with pixels in [0, 1]: a folder's, or grey or colour data.

    Args:
        settings: which images.
        how: scaling and cropping.
        trains: whether a network is trained on them; see `lib.data.images.divide`.
    """
    if settings.dataset == datasets.FOLDER:
        return image_files.load(
            settings.data_dir,
            how,
            only=settings.classes,
            valid_fraction=settings.valid_fraction,
            limit=settings.limit,
            skip_bad=settings.skip_bad,
            workers=settings.workers,
            trains=trains,
        )
    if how.channels == 1:
        return images.load(
            settings.dataset,
            settings.data_dir,
            size=how.size,
            limit=settings.limit,
            holdout=settings.holdout or 0,
            options=settings.choices,
        )
    return _load_in_memory(settings, how)


def load_photographs(run: TrainingRun, settings: DataSettings, usual: Preprocessing | None) -> ImageData:
    """Load the colour images that the flags name, normalised for its network, like `load_grey`.

    Args:
        run: the run.
        settings: which images.
        usual: preprocessing of the initial weights, if known.

    Raises:
        UserError: as `lib.data.cifar.load` and `lib.data.image_files.load` do; the classes differ from the
            checkpoint's; the network takes grey images.
    """
    settings.check()
    how = _preprocessing(run, settings, usual)
    if settings.input:
        data = images.without_examples(_classes(run, settings), how)
    elif how.channels != 3:
        raise UserError(
            f"{run.source} takes grey images, and these are coloured{scripts.way_out(run.source, run.saved)}"
            f"{_dataset_typed(run.saved)}"
        )
    else:
        data = load_images(settings, how)
    _check_classes(run, settings, data)
    return data.prepared(how.mean, how.std, run.device)


def load_for(run: TrainingRun, settings: DataSettings, network: Network) -> ImageData:
    """Load the images that the flags name for a network of the user's own; their labels become its classes.

    A class of the images is that of the network with the same name. If the network's classes have no names,
    they are those of the images, in their order.

    Raises:
        UserError: as `load_photographs` does; the network does not know a class of the images.
    """
    settings = replace(settings, classes=())  # --classes names the network's
    settings.check()
    how = network.preprocessing
    run.fill_in("size", how.size)
    if settings.input:
        data = images.without_examples(network.classes, how)
    elif settings.dataset != datasets.FOLDER and how.channels != datasets.find(settings.dataset).channels:
        colours = {1: "grey", 3: "coloured"}
        raise UserError(
            f"{network.name} takes {colours[how.channels]} images, and those of {settings.dataset} are not: "
            "give another --dataset, or --channels"
        )
    else:
        data = load_images(settings, how, trains=False)
        data = data.relabelled(*_matched(network, data.classes))
    return data.prepared(how.mean, how.std, run.device)


def _matched(network: Network, classes: Sequence[str]) -> tuple[Sequence[str], list[int]]:
    """Return the names of the network's classes, and its class for each of `classes`."""
    unnamed = network.classes == tuple(map(str, range(len(network.classes))))
    if unnamed and len(classes) == len(network.classes):
        return classes, list(range(len(classes)))
    known = {_plain(name): number for number, name in enumerate(network.classes)}
    unknown = [name for name in classes if _plain(name) not in known]
    if unknown:
        raise UserError(
            f"{network.name} tells apart {folders.first_few(network.classes)} ({len(network.classes)} "
            f"classes), and not {folders.first_few(unknown)}: give the names of its classes, as those of the "
            "images are spelled, with --classes"
        )
    return network.classes, [known[_plain(name)] for name in classes]


def _plain(name: str) -> str:
    """Return a class name as it is compared: `Golden_Retriever` is `golden retriever`."""
    return name.casefold().replace("_", " ").strip()


def _preprocessing(run: TrainingRun, settings: DataSettings, usual: Preprocessing | None) -> Preprocessing:
    """Return the preprocessing of the checkpoint, or the usual one of the weights or the network."""
    found = usual
    if "preprocessing" in run.saved:
        found = Preprocessing.of(run.saved["preprocessing"], run.source)
    own_size = 32 if models.is_own(settings.model) else 224
    size = settings.size or (found.size if found else own_size)
    run.fill_in("size", size)
    if not found:
        found = Preprocessing(
            own_size, 3, MEAN, STD, own_size if own_size == 32 else round(own_size * RESIZE_SHARE)
        )
    if size == found.size:
        return found
    small = size <= images.LARGEST_IN_MEMORY
    return replace(found, size=size, resize=size if small else round(size * RESIZE_SHARE))


def _dataset_typed(saved: Mapping[str, Any]) -> str:
    """Return the flag that names the data set that the network of a checkpoint has learnt from."""
    name = saved.get("flags", {}).get("dataset")
    return f" --dataset {name}" if isinstance(name, str) and name in datasets.DATASETS else ""


def _classes(run: TrainingRun, settings: DataSettings) -> Sequence[str]:
    if "classes" in run.saved:
        return run.saved["classes"]
    if settings.dataset == datasets.FOLDER:
        return folders.find(settings.data_dir, settings.classes).classes
    entry = datasets.find(settings.dataset)
    return entry.classes(Path(settings.data_dir), entry.options(settings.choices))


def _load_in_memory(settings: DataSettings, how: Preprocessing) -> ImageData:
    """Load the data set of coloured images that the flags name; its pixels are in [0, 1]."""
    entry = datasets.find(settings.dataset)
    splits, names = entry.read(Path(settings.data_dir), entry.options(settings.choices))
    train, valid, test = images.divide(splits, settings.valid_fraction, settings.limit)
    return ImageData(
        train.resized(how.size),
        valid.resized(how.size),
        test and test.resized(how.size),
        names,
        images.unscaled(how),
    )


def _check_classes(run: TrainingRun, settings: DataSettings, data: ImageData) -> None:
    known = run.saved.get("classes")
    if known and run.goes_on and list(known) != list(data.classes):
        more = settings.dataset == datasets.FOLDER and set(known) < set(data.classes)
        raise UserError(
            f"the checkpoint tells apart {folders.first_few(known)} ({len(known)} classes), but the images "
            f"are of {folders.first_few(data.classes)} ({len(data.classes)})"
            + (
                f": give --classes {','.join(known)}"
                if more
                else ": give the images that it learnt from, or "
            )
            + ("" if more else "train a new network on these")
        )
