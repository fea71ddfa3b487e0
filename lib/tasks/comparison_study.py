"""The images of a study: some of a data set's validation split, drawn at random, the same for each seed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lib.cli import CommandLine
from lib.data import datasets, folders, image_inputs
from lib.data.datasets import FOLDER
from lib.runtime.errors import UserError, warn


def line_of(line: CommandLine) -> CommandLine:
    """Return the command line with the images of `--study`, if it names one, as those of `--input`.

    Raises:
        UserError: `--input` names images, too, or the data set cannot be read.
    """
    flags = line.values
    if not flags["study"]:
        return line
    if flags["input"]:
        raise UserError("--study and --input both say which images: choose one")
    return replace(line, typed={**line.typed, "input": images_of(flags)})


def images_of(flags: Mapping[str, Any]) -> Sequence[str]:
    """Return the examples, as they are typed after `--input`, in the order of their numbers."""
    name = flags["study"]
    if name == FOLDER:
        data_dir = flags["data_dir"]
        splits: Mapping[str, Any] = folders.find(data_dir).splits
        count, name = len(splits[image_inputs.unseen(splits)].paths), f"{FOLDER}:{data_dir}"
    else:
        entry = datasets.find(name)
        read = entry.read(Path(flags["data_dir"]), entry.options({})).splits
        count = len(read[image_inputs.unseen(read)].labels)
    if flags["images"] > count:
        warn(f"{name} has {count} images to study: all of them are taken")
    generator = torch.Generator().manual_seed(flags["seed"])
    chosen = torch.randperm(count, generator=generator)[: flags["images"]].sort().values
    return [f"{name}:{number}" for number in chosen.tolist()]
