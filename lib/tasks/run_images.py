"""The images of a run as each of its networks sees them, read when they are needed."""

from lib.data.image_inputs import ImageInput
from lib.models.network import Network
from lib.runtime.errors import UserError
from lib.tasks.explanation_run import ExplanationRun


class RunImages:
    """The images of a run, by their numbers.

    Args:
        run: the run.
        keep: number of images that are kept for the next time; by default, those of `read_all` alone.
    """

    def __init__(self, run: ExplanationRun, keep: int = 0) -> None:
        self._run, self._keep = run, keep
        self._readers = run.readers()
        self._read: dict[int, list[ImageInput]] = {}
        self._bad: dict[int, str] = {}
        self._taken: set[tuple[Network, tuple[int, int]]] = set()

    def read_all(self) -> None:
        """Read all images and keep them, so that a bad one is told of before any work is done.

        Raises:
            UserError: one cannot be read, and the run does not skip those.
        """
        for number in range(len(self._run.names)):
            try:
                self._read[number] = self[number]
            except UserError as error:
                if not self._run.asked.skip_bad:
                    raise
                self._bad[number] = str(error)
        self.warn()

    def __getitem__(self, number: int) -> list[ImageInput]:
        """Return an image as each network sees it.

        Raises:
            UserError: it cannot be read, or a network does not take its size.
        """
        if number in self._bad:
            raise UserError(self._bad[number])
        if number in self._read:
            return self._read[number]
        given, name = self._run.sources[number], self._run.names[number]
        images = [reader.read(given, name) for reader in self._readers]
        for network, image in zip(self._run.networks, images, strict=True):
            if (network, image.size) not in self._taken:
                network.check_takes(image.size)
                self._taken.add((network, image.size))
        if self._keep:
            while len(self._read) >= self._keep:
                del self._read[next(iter(self._read))]
            self._read[number] = images
        return images

    def warn(self) -> None:
        """Warn of images that look like negatives."""
        self._readers[-1].warn()
