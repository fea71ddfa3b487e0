"""Where the objects are in the images of a comparison, if a file of boxes says so."""

from pathlib import Path

from torch import Tensor

from lib.data import folders
from lib.data.boxes import ObjectBox, box_in_input, read_boxes
from lib.data.image_inputs import ImageInput
from lib.evaluation.maps import box_mask
from lib.runtime.errors import UserError, warn
from lib.tasks.explanation_run import ExplanationRun


class ImageBoxes:
    """The boxes of a file by the names of a run's images.

    Args:
        path: the file; None if there is none.
        run: the run.

    Raises:
        UserError: it is no file of boxes, or names an image that is not there.
    """

    def __init__(self, path: str | None, run: ExplanationRun) -> None:
        self._path = path
        given = read_boxes(path) if path else {}
        # The file may call an image by the name of its file, too.
        files = {Path(each).name: name for each, name in zip(run.sources, run.names, strict=True)}
        self._boxes = {key if key in run.names else files.get(key, key): box for key, box in given.items()}
        self._unseen: set[str] = set()
        unknown = sorted(set(self._boxes) - set(run.names))
        if unknown:
            known = folders.first_few(run.names)
            raise UserError(f"--boxes {path}: no image is called {unknown[0]!r}; there are {known}")

    def mask(self, image: ImageInput) -> Tensor | None:
        """Return the box of the object in an image's input, as a mask (H, W); None if there is none to see.

        Raises:
            UserError: the box ends beyond the image.
        """
        box = self._boxes.get(image.name)
        if box is None:
            return None
        self._check(box, image)
        mask = box_mask(box_in_input(box, image), image.size)
        if mask.any():
            return mask
        if image.name not in self._unseen:
            self._unseen.add(image.name)
            warn(
                f"the box of {image.name} lies outside the part of the image that the network sees, so that "
                "nothing is located there: --fit pad shows all of it"
            )
        return None

    def _check(self, box: ObjectBox, image: ImageInput) -> None:
        height, width = image.size if image.original is None else image.original.size
        if box.bottom > height or box.right > width:
            raise UserError(
                f"--boxes {self._path}: the box of {image.name} ends at row {box.bottom:g} and column "
                f"{box.right:g}, and the image has {height} rows and {width} columns"
            )
