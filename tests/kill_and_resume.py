#!/usr/bin/env python3
"""Kill training runs at random instants, resume each, and compare the end with a run never stopped.

kill_and_resume.py --kills 50 --dataset digits --max-epoch 6 --validate-interval-updates 9
kill_and_resume.py --kills 20 --mode ensemble
kill_and_resume.py --kills 20 --mode all

Every run is a process of its own, ended by SIGKILL, which no program can catch. The weights, the state of
the optimizer, the counters and the numbers of the [EVAL] line must be equal bit for bit, and no file may be
left over. Flags unknown here go to the training script, behind those of the mode.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LAST, BEST = "checkpoint_last.pt", "checkpoint_best.pt"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

DIGITS, PHOTOGRAPHS = "run-mnist-classification.py", "run-image-classification.py"
PHRASES, VAE, MASKS = "run-sst2-classification.py", "run-vae.py", "run-segmentation.py"


class Mode(NamedTuple):
    """A way to train.

    Attributes:
        script: the script.
        flags: its flags; `{inputs}` is the folder that `prepare` fills.
        prepare: makes what the runs need in that folder.
    """

    script: str
    flags: str
    prepare: Callable[[Path], None] = lambda _folder: None


def _photographs(folder: Path) -> None:
    from pictures import write_folder

    write_folder(folder / "photos", images=48)


def _photographs_and_weights(folder: Path) -> None:
    _photographs(folder)
    flags = MODES["folder"].flags.format(inputs=folder).split()
    finish(start(PHOTOGRAPHS, folder / "weights", [*flags, "--max-epoch", "1"], folder / "weights.log"))


def _teacher(folder: Path) -> None:
    finish(start(PHRASES, folder / "teacher", [*_SMALL.split(), "--max-epoch", "1"], folder / "teacher.log"))


_SMALL = "--dataset tiny --embedding-size 16 --hidden-size 16 --max-epoch 6 --validate-interval-updates 3"
_FOLDER = (
    "--dataset folder --data-dir {inputs}/photos --model simple-cnn --bn --size 16 -bs 12 --augment flip,crop"
)
_EPOCHS = " --max-epoch 10 --validate-interval-updates 2"
_PLAIN = "--dataset digits --limit 600 --max-epoch 8 --validate-interval-updates 2"
_VAE = "--dataset digits --hidden 32 --latent 4 --depth 2 --max-epoch 4 --validate-interval-updates 4"
MODES = {
    "plain": Mode(DIGITS, _PLAIN),
    "ema": Mode(DIGITS, f"{_PLAIN} --ema 0.9 --save-epochs 2,4"),
    "folder": Mode(PHOTOGRAPHS, _FOLDER + _EPOCHS, _photographs),
    "files": Mode(
        PHOTOGRAPHS,
        f"{_FOLDER} --size 72 --workers 2 --max-epoch 2 --validate-interval-updates 2",
        _photographs,
    ),
    "freeze": Mode(
        PHOTOGRAPHS,
        f"{_FOLDER} --freeze --weights {{inputs}}/weights/{BEST}{_EPOCHS}",
        _photographs_and_weights,
    ),
    "text": Mode(PHRASES, _SMALL),
    "teacher": Mode(PHRASES, f"{_SMALL} --teacher {{inputs}}/teacher/{BEST}", _teacher),
    "ensemble": Mode(PHRASES, f"{_SMALL} --max-epoch 3 --ensemble 3"),
    "segmentation": Mode(
        MASKS,
        "--dataset shapes --limit 40 --width 4 --class-weights log --iou-loss 1 "
        "--augment crop,flip,scale,color --max-epoch 3 --validate-interval-updates 4",
    ),
    "vae": Mode(VAE, f"{_VAE} --ema 0.9 --dropout 0.1 --binarise dynamic"),
    "vae-gan": Mode(VAE, f"{_VAE} --model vae-gan --net linear"),
}


class Trial(NamedTuple):
    """One kill.

    Attributes:
        seconds: when, counted from the first checkpoint.
        update: of which update the last checkpoint was; None if there was none.
        half_written: number of temporary files that the kill left.
        wrong: in what the resumed run differs from the one never stopped; empty if in nothing.
    """

    seconds: float
    update: int | None
    half_written: int
    wrong: str

    @property
    def equal(self) -> bool:
        return not self.wrong

    def row(self, number: int) -> str:
        update = "no file yet" if self.update is None else self.update
        return f"| {number} | {self.seconds:.2f} | {update} | {self.half_written} | {self.wrong or '-'} |"


HEADER = (
    "| kill | s of training | checkpoint of update | half-written files left | wrong |\n|---|---|---|---|---|"
)


def start(script: str, folder: Path, flags: Sequence[str], log: Path) -> subprocess.Popen:
    """Start a run that saves to `folder`, with its log in the file `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, ROOT / script, "--checkpoint-dir", folder, *flags],
            stdout=stream,
            env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(log.parent / "cache")},
        )


def finish(process: subprocess.Popen) -> None:
    if process.wait():
        raise SystemExit(f"training ended with status {process.returncode}")


def checkpoints(folder: Path, name: str = "*.pt") -> list[Path]:
    """Return the checkpoints of a run and of the members of its ensemble."""
    return sorted(folder.rglob(name))


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> float:
    """Return how long it took until the first checkpoint was there or `process` had ended."""
    began = time.monotonic()
    while process.poll() is None and not checkpoints(folder, LAST):
        time.sleep(0.002)
    return time.monotonic() - began


def train_whole(script: str, folder: Path, flags: Sequence[str], log: Path) -> tuple[float, float]:
    """Train without a stop; return the seconds until the first checkpoint, and from then on to the last."""
    process = start(script, folder, flags, log)
    before = wait_for_checkpoint(folder, process)
    first = min(path.stat().st_mtime for path in checkpoints(folder))
    finish(process)
    return before, max(path.stat().st_mtime for path in checkpoints(folder)) - first


def kill_and_resume(
    kills: int, flags: Sequence[str], folder: Path, seed: int = 0, mode: str = "plain"
) -> list[Trial]:
    """Train once to the end, then `kills` times until a random instant, and to the end by `--resume`.

    One kill in ten falls before the first checkpoint; the others while the run trains and saves.

    Args:
        kills: how many.
        flags: for the training script, besides those of the mode.
        folder: for the checkpoints; empty.
        seed: of the instants.
        mode: name of an entry of `MODES`.
    """
    script, usual, prepare = MODES[mode]
    prepare(folder)
    flags = [*usual.format(inputs=folder).split(), *map(str, flags)]
    whole = folder / "whole"
    before, training = train_whole(script, whole, flags, folder / "whole.log")
    instants = random.Random(seed)
    trials: list[Trial] = []
    while len(trials) < kills:
        run, log = folder / f"killed-{len(trials)}", folder / f"killed-{len(trials)}.log"
        early = len(trials) % 10 == 9
        seconds = instants.uniform(0, before if early else training)
        process = start(script, run, flags, log)
        if not early:
            wait_for_checkpoint(run, process)
        if killed_after(seconds, process):
            at = seconds - before if early else seconds
            trials.append(_resumed(script, run, whole, flags, at))
        else:  # it was done sooner than the first one
            shutil.rmtree(run)
            log.unlink()
    return trials


def killed_after(seconds: float, process: subprocess.Popen) -> bool:
    """Kill `process` in so many seconds; False if it ended before."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() == -signal.SIGKILL


def _resumed(script: str, folder: Path, whole: Path, flags: Sequence[str], seconds: float) -> Trial:
    from lib.runtime import checkpoint

    lasts = checkpoints(folder, LAST)
    update = sum(checkpoint.load(last)["update"] for last in lasts) if lasts else None
    half_written = len(list(folder.rglob(".*.tmp")))
    finish(start(script, folder, [*flags, "--resume"], folder.with_suffix(".log")))
    return Trial(seconds, update, half_written, ", ".join(_differences(folder, whole)))


def _differences(folder: Path, whole: Path) -> list[str]:
    """Return in what the runs of two folders, whose logs lie beside them, differ."""
    files, others = (
        sorted(str(path.relative_to(each)) for path in each.rglob("*") if path.is_file())
        for each in (folder, whole)
    )
    wrong = [f"{name} is left over" for name in files if name not in others]
    wrong += [f"{name} is missing" for name in others if name not in files]
    wrong += [
        f"other contents of {name}"
        for name in others
        if name in files and not same(*(_weights_and_state(each / name) for each in (folder, whole)))
    ]
    ends = [evaluation(each.with_suffix(".log")) for each in (folder, whole)]
    if ends[0] != ends[1] or not ends[0]:
        wrong.append(f"[EVAL] {ends[0]} instead of {ends[1]}")
    return wrong


def evaluation(log: Path) -> dict:
    """Return the fields of the last [EVAL] line; empty if there is none."""
    from lib.runtime import runlog

    runs = runlog.parse(log.read_bytes().splitlines(keepends=True)).runs
    found = [event for run in runs for event in run.events.get("EVAL", [])]
    return found[-1] if found else {}


def _weights_and_state(path: Path) -> dict:
    """All of a checkpoint but the run's name and the flags that name folders."""
    from lib.runtime import checkpoint

    content = checkpoint.load(path)
    return {key: content.get(key) for key in ("state_dict", "training", "epochs", "update", "metrics")}


def same(a, b) -> bool:
    """Tell whether nested dictionaries, lists and tensors are equal bit for bit."""
    import torch

    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="how many; default: 50")
    parser.add_argument("--kill-seed", type=int, default=0, help="of the instants; default: 0")
    parser.add_argument(
        "--mode", choices=(*MODES, "all"), default="plain", help="what is trained; default: plain"
    )
    options, flags = parser.parse_known_args()
    different = 0
    for mode in MODES if options.mode == "all" else [options.mode]:
        with tempfile.TemporaryDirectory() as folder:
            trials = kill_and_resume(options.kills, flags, Path(folder), options.kill_seed, mode)
        print(HEADER)
        for number, trial in enumerate(trials, 1):
            print(trial.row(number))
        wrong = sum(not trial.equal for trial in trials)
        left = sum(trial.half_written for trial in trials)
        print(f"\n{mode}: {len(trials)} kills, {wrong} of them ended at other weights, [EVAL] lines or files")
        print(f"({left} half-written files were removed)\n", flush=True)
        different += wrong
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
