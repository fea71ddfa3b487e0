"""A copy of the log's numbers for TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from lib.runtime.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writer of TensorBoard's files: each run has a folder of its own, named by its id.

    In one folder, TensorBoard would draw two runs as one curve.

    Args:
        folder: where these folders are.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._run = ""
        self._writer: SummaryWriter | None = None

    def go_on_with(self, run: str) -> None:
        """Let all later events belong to the run with this id."""
        if run != self._run:
            self.close()
            self._run = run

    def add(self, tag: str, fields: dict[str, Any]) -> None:
        """Write the numbers of an event that has a field `Step`, as scalars `tag/key` at that step.

        Raises:
            UserError: TensorBoard is not installed, or the folder cannot be written.
        """
        if self._writer is None:
            # The run's id comes from a checkpoint, if it is resumed: it must not lead to another folder.
            folder = self._folder / self._run.replace("/", "-").replace("\\", "-").lstrip(".")
            self._writer = _summary_writer(folder, fields.get("Resume_step"))
        if "Step" not in fields:
            return
        for key, value in fields.items():
            if key != "Step" and is_number(value):
                self._writer.add_scalar(f"{tag}/{key}", value, fields["Step"])

    def close(self) -> None:
        """Finish the file of the latest run."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _summary_writer(folder: Path, resume_step: int | None) -> "SummaryWriter":
    """Open TensorBoard's writer; in a resumed run it hides the killed run's scalars after `resume_step`."""
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(folder, purge_step=None if resume_step is None else resume_step + 1)
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    except OSError as error:
        raise UserError(f"cannot write to the TensorBoard folder {folder}: {error.strerror}") from None


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a field's value is a number. NaN and infinity count as numbers, True and False do not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
