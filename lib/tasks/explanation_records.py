"""Results that are written image by image, so that the same command goes on where it was."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.data import image_inputs
from lib.data.image_inputs import ImageInput
from lib.models.network import Network
from lib.runtime.errors import UserError
from lib.runtime.files import write_atomically
from lib.tasks.explanation_run import ExplanationRun
from lib.tasks.explanation_values import as_lines, save_rows

Records = list[dict[str, Any]]


@cache
def digest_of(network: Network) -> str:
    """Return a hash of what a network computes: its name, its code, its weights, the kind of its answers."""
    kind = (network.name, network.code, network.independent, network.views, network.dense)
    digest = hashlib.sha256(repr(kind).encode())
    for name, tensor in network.module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(run: ExplanationRun, images: Sequence[ImageInput], settings: object) -> str:
    """Return a hash of what the explanation of one image depends on.

    That is the networks, their weights and preprocessing, the image as they see it and its name, the classes
    and their score, the baseline, the method and its settings.
    """
    asked = run.asked
    classes = asked.target or asked.unit or asked.area or asked.top_k
    said: list[object] = [run.name, repr(settings), classes, asked.score, asked.seed, asked.baseline]
    if asked.dense:
        said += [asked.region, asked.area, asked.target, asked.mask]
    digest = hashlib.sha256(repr(said).encode())
    if asked.baseline and image_inputs.is_file(asked.baseline) and Path(asked.baseline).is_file():
        digest.update(Path(asked.baseline).read_bytes())
    for network, image in zip(run.networks, images, strict=True):
        how = (image.name, network.preprocessing, network.epoch, network.classes)
        digest.update(f"{digest_of(network)} {how}".encode())
        digest.update(image.pixels.contiguous().numpy().data)
    return digest.hexdigest()[:32]


class WrittenRecords:
    """A file of JSON lines that grows with each image, and the folder of values that goes with it.

    Every record of the file has the `fingerprint` of its image, and how many `panels` the image has: with
    fewer than that, the process was killed while it wrote them, and they are written once more.

    Args:
        lines: the file of records; None for none.
        folder: the folder with one .npz for each image; None for none.

    Raises:
        UserError: the file holds something else.
    """

    def __init__(self, lines: Path | None, folder: Path | None) -> None:
        self._lines, self._folder = lines, folder
        self._known = _read(lines) if lines is not None and lines.exists() else {}

    def find(self, key: str, name: str) -> Records | None:
        """Return the records of an image, if they and its values are written as far as they are asked for."""
        in_file = self._known.get(key)
        if self._folder is None:
            return in_file if self._lines else None
        return _records_in(self._folder / f"{name}.npz", key)

    def trim(self) -> None:
        """Remove from the file what a killed process left of an image; call this on rank 0, before `add`."""
        if self._lines is not None and self._lines.exists():
            whole = [record for records in self._known.values() for record in records]
            write_atomically(self._lines, as_lines(whole))

    def add(self, key: str, records: Records) -> None:
        """Append the records of an image to the file, unless it has them."""
        if self._lines is None or key in self._known:
            return
        count = len(records)
        marked = [{**record, "fingerprint": key, "panels": count} for record in records]
        with self._lines.open("ab") as file:
            file.write(as_lines(marked))
        self._known[key] = marked

    def save_values(self, key: str, name: str, rows: Sequence[dict[str, Any]], records: Records) -> None:
        """Write the values of an image into the folder, if there is one."""
        if self._folder is not None:
            text = json.dumps(records)
            save_rows(self._folder / f"{name}.npz", rows, fingerprint=np.array(key), records=np.array(text))


def _read(path: Path) -> dict[str, Records]:
    """Return the records of each image that the file has whole, by its fingerprint."""
    found: dict[str, Records] = {}
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            break  # the process was killed while it wrote this line
        try:
            record = json.loads(line)
            found.setdefault(record["fingerprint"], []).append(record)
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"line {number} of {path} is no record of an explanation: name another file for --json"
            ) from None
    return {key: records for key, records in found.items() if len(records) == records[0].get("panels")}


def _records_in(path: Path, key: str) -> Records | None:
    """Return the records in a file of values, if it is one of the image with this fingerprint."""
    # NumPy and zipfile raise errors of a dozen kinds for a damaged file.
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
        if str(file["fingerprint"]) == key:
            return json.loads(str(file["records"]))
    return None
