"""The commands of README.md and docs/: their flags exist, and those that need no download end well."""

import argparse
import functools
import glob
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, environment, module_of
from documented import SECONDS, Command, blocks_of, calls_of, documented, make_programs, whole_lines

from lib.runtime.errors import UserError

SET_UP = (
    "python3 -m pip install -r requirements.txt && python3 run-mnist-classification.py --dataset digits",
    "python3 -m pip install -r requirements-dev.txt && python3 -m pytest",
)
MODULES = ("pip", "pytest")  # what `python3 -m` may be asked for; neither is run here
OFFLINE = ("digits", "tiny", "shapes")  # data sets that ship with the project or with scikit-learn
FILE_FLAGS = (
    *("restore_file", "log_file", "teacher", "train_file", "valid_file", "test_file"),
    *("tables", "network"),
)
FOLDERS = ("lib", "benchmarks", "tests")
INSPECTIONS = ("eval_only", "predict_only", "explain", "sample")
# Scripts that hand on flags to the training script, and flags of their own.
AROUND_TRAINING = {
    "tests/kill_and_resume.py": ("--kills", "--kill-seed", "--mode"),
    "tests/interrupt_and_resume.py": ("--times",),
}


# ---- their flags


@functools.cache
def script_of(call: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """Return the script that a call runs and its flags; None if it runs none of this project's."""
    program, *words = call
    if program not in ("python3", "torchrun") or not words or words[0] in ("-m", "-c", "-"):
        return None
    first = next((number for number, word in enumerate(words) if word.endswith(".py")), None)
    assert first is not None, f"{' '.join(call)} names no script"
    assert first == 0 or program == "torchrun", f"{' '.join(call)} gives flags to the interpreter"
    return words[first], words[first + 1 :]


def flags_of(script: str, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags that are typed, and the value of every flag.

    Raises:
        UserError: the script does not take them.
    """
    if script in AROUND_TRAINING:
        own = argparse.ArgumentParser(allow_abbrev=False)
        for flag in AROUND_TRAINING[script]:
            own.add_argument(flag, type=str if flag == "--mode" else int)
        script, words = "run-mnist-classification.py", own.parse_known_args(words)[1]
    parser = module_of(script).make_parser()
    if any(action.required for action in parser._actions):
        typed = vars(parser.parse_args(words))
        return typed, typed
    line = parser.parse(words)
    return line.typed, line.values


@pytest.mark.parametrize("command", documented(), ids=lambda command: command.text)
def test_the_flags_of_a_documented_command_are_those_of_its_script(command):
    for call in command.calls:
        if call[:2] == ("python3", "-m"):
            assert call[2] in MODULES, f"{command.place}: {command.text}"
        elif found := script_of(call):
            script, words = found
            assert (ROOT / script).is_file(), f"{command.place}: there is no {script}"
            try:
                flags_of(script, words)
            except UserError as error:
                pytest.fail(f"{command.place}: {command.text}: {error}")


@pytest.mark.parametrize("command", SET_UP)
def test_each_of_the_two_set_up_commands_stands_in_the_readme_once(command):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.count(command) == 1
    # .ci/run finds it by its beginning.
    beginning = command.partition(" && ")[0]
    assert sum(line.startswith(beginning) for line in lines) == 1


# ---- running them


def obstacle(call: tuple[str, ...], folder: Path) -> str | None:
    """Return what a call needs that is not there: a download, a file of the user's, another program."""
    if call[0] != "python3":
        return call[0]
    found = script_of(call)
    if found is None:
        return None
    script, words = found
    typed, flags = flags_of(script, words)
    if script.startswith("benchmarks/"):  # --quick sees to what is not typed
        flags = typed
    missing = next((path for path in files_of(flags) if not glob.glob(str(folder / path))), None)
    if missing:
        return missing
    if flags.get("ptm") and not flags.get("weights") and not script.startswith("benchmarks/"):
        return f"the weights of {', '.join(as_list(flags['ptm']))}"
    if flags.get("resume"):
        return None if any_run(flags, folder) else "a run to resume"
    if flags.get("restore_file") and any(flags.get(name) for name in INSPECTIONS):
        flags = typed  # the checkpoint says what data it is for
    dataset = flags.get("dataset")
    return dataset if dataset and dataset not in OFFLINE else None


def files_of(flags: dict[str, Any]) -> Iterator[str]:
    """Yield the files that must be there, and examples of data sets that must be fetched."""
    for name in FILE_FLAGS:
        yield from (path for path in as_list(flags.get(name)) if path != "-")
    yield from (each for each in as_list(flags.get("weights")) if each != "random")
    for text in as_list(flags.get("input")):
        example = re.fullmatch(r"([\w-]+):\d+", text)
        is_there = example[1] in OFFLINE if example else text == "-" or " " in text  # a phrase
        if not is_there:
            yield text


def as_list(value: Any) -> list[str]:
    if not value:
        return []
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def any_run(flags: dict[str, Any], folder: Path) -> bool:
    """Return whether there is a run that --resume would find."""
    where = flags.get("checkpoint_dir") or f"ckpts/{flags['model']}*"
    return any(folder.glob(f"{where}/checkpoint_last.pt"))


class Outcome(NamedTuple):
    """How a command ended: its status and what it wrote to standard error, or what it would have needed."""

    command: Command
    needs: str | None
    status: int = 0
    stderr: str = ""


def needs_of(command: Command, folder: Path) -> str | None:
    return next(filter(None, (obstacle(call, folder) for call in command.calls)), None)


def run(command: Command, folder: Path, programs: Path) -> Outcome:
    """Run a command in a shell."""
    # A download would meet a port at which nobody listens.
    nobody = "http://127.0.0.1:9"
    shell = subprocess.Popen(
        [shutil.which("bash"), "-e", "-o", "pipefail", "-c", "\n".join([*command.before, command.text])],
        cwd=folder,
        env=environment(
            PATH=str(programs),
            http_proxy=nobody,
            https_proxy=nobody,
            HF_HUB_OFFLINE="1",
            TORCH_HOME=str(folder / "torch"),
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, stderr = shell.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)  # and not the shell alone, without what it has started
        stderr = f"{shell.communicate()[1]}\nnot done after {SECONDS} seconds"
    return Outcome(command, None, shell.returncode, stderr)


def is_tried_elsewhere(command: Command) -> bool:
    """Return whether a command runs benchmarks, or the long form of tests: they have tests of their own."""
    return all(
        found and found[0].startswith(("benchmarks/", "tests/")) for found in map(script_of, command.calls)
    )


def try_all(folder: Path) -> list[Outcome]:
    """Try the documented commands in order, in a folder in which the project's scripts are made to lie.

    A command may stand above the one that makes the checkpoint it needs: those that lack something are tried
    again at the end.
    """
    programs = make_programs(folder / "programs")
    for path in (*ROOT.glob("*.py"), *ROOT.glob("requirements*.txt"), *map(ROOT.joinpath, FOLDERS)):
        (folder / path.name).symlink_to(path)
    commands = {
        (command.before, command.text): command
        for command in documented()
        if command.runs and not is_tried_elsewhere(command)
    }
    found: dict[tuple, Outcome] = {}
    for key, command in [*commands.items(), *commands.items()]:
        if key in found and not found[key].needs:
            continue
        needs = needs_of(command, folder)
        found[key] = Outcome(command, needs) if needs else run(command, folder, programs)
    return list(found.values())


@pytest.mark.slow
def test_documented_commands_that_need_no_download_end_well(tmp_path):
    # One test, so that the commands run once wherever pytest shares out its tests among processes.
    outcomes = try_all(tmp_path)
    failed = [outcome for outcome in outcomes if outcome.status]
    assert not failed, "\n\n".join(
        f"{outcome.command.place}: {outcome.command.text}\nstatus {outcome.status}\n{outcome.stderr[-2000:]}"
        for outcome in failed
    )
    tried = [
        script_of(call)[0]
        for outcome in outcomes
        if not outcome.needs
        for call in outcome.command.calls
        if script_of(call)
    ]
    # Not a test that passes because it finds nothing to do.
    assert len(tried) >= 8
    assert {"run-mnist-classification.py", "run-sst2-classification.py"} <= set(tried)


# ---- the reading itself


def test_bash_takes_the_commands_apart(tmp_path):
    make_programs(tmp_path / "programs")
    code = """D="--limit 3"
for n in 1 2; do
    python3 run-mnist-classification.py $D --seed $n  # twice
done
echo "a joy" | python3 run-sst2-classification.py --input - \\
    --restore-file {a,b}.pt
tensorboard --logdir runs && python3 -m pytest
"""
    lines = whole_lines(code)
    assert len(lines) == 4
    assert calls_of(lines, tmp_path) == [
        [],
        [("python3", "run-mnist-classification.py", "--limit", "3", "--seed", n) for n in "12"],
        [("python3", "run-sst2-classification.py", "--input", "-", "--restore-file", "a.pt", "b.pt")],
        [("tensorboard",), ("python3", "-m", "pytest")],
    ]


def test_spans_and_tables_are_read_too():
    markdown = """Say `python3 plot-log.py
--log-file a.log` or `run-grad-cam.py --list-layers`, not `plot-log.py`.

| data | command after `python3 run-mnist-classification.py` |
|---|---|
| MNIST | `--model deep-cnn` |

And `--dims 3`.

```
python3 in-no-shell.py
```

- in a list

  ```bash
  python3 plot-log.py \\
      --log-file -
  ```
"""
    assert [(block.lines, block.runs) for block in blocks_of(markdown)] == [
        (["python3 plot-log.py --log-file a.log"], True),
        (["python3 run-grad-cam.py --list-layers"], False),
        (["python3 run-mnist-classification.py"], False),
        (["python3 run-mnist-classification.py --model deep-cnn"], False),
        (["python3 plot-log.py        --log-file -"], True),
    ]


@pytest.mark.parametrize(
    ("call", "needs"),
    [
        ("run-mnist-classification.py", "mnist"),
        ("run-mnist-classification.py --dataset digits", None),
        ("run-mnist-classification.py --eval-only --restore-file there.pt", None),
        ("run-mnist-classification.py --eval-only --restore-file gone.pt", "gone.pt"),
        ("run-mnist-classification.py --restore-file there.pt", "mnist"),
        ("run-mnist-classification.py --resume", "a run to resume"),
        ("run-mnist-classification.py --resume --checkpoint-dir run", None),
        ("run-image-classification.py --dataset folder --data-dir dogs", "folder"),
        ("run-grad-cam.py --ptm resnet18 --input digits:1", "the weights of resnet18"),
        ("run-grad-cam.py --ptm resnet18 --weights random --input cat.jpg", "cat.jpg"),
        ("run-grad-cam.py --ptm resnet18 --weights random --list-layers", None),
        ("run-grad-cam.py --restore-file there.pt --input digits:1 mnist:2", "mnist:2"),
        ("benchmarks/mnist_training.py --threads 1", None),
        ("benchmarks/mnist_training.py --dataset mnist", "mnist"),
        ("plot-log.py --log-file there.pt -", None),
        ("plot-log.py --log-file *.pt", None),
        ("plot-log.py --log-file *.log", "*.log"),
        ("-m pytest", None),
    ],
)
def test_what_a_command_needs_is_seen_from_its_flags(call, needs, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("there.pt", "run/checkpoint_last.pt"):
        (tmp_path / name).write_text("")
    assert obstacle(("python3", *call.split()), tmp_path) == needs
    assert obstacle(("torchrun", *call.split()), tmp_path) == "torchrun"


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{each.name}" for each in ROOT.glob("docs/*.md"))],
)
def test_links_within_the_repository_lead_somewhere(document):
    path = ROOT / document
    targets = re.findall(r"\]\(([^)\s]+)", path.read_text(encoding="utf-8"))
    for target in targets:
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors_of(linked), f"{path.name} links to {target}"


def anchors_of(document: Path) -> set[str]:
    """The anchors that code hosts give to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_pictures_of_the_documents_are_small_enough_and_shown_somewhere():
    pictures = [path for path in (ROOT / "imgs" / "docs").iterdir() if path.is_file()]
    texts = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
    )
    assert pictures
    assert all(path.stat().st_size <= 300_000 for path in pictures)
    assert sum(path.stat().st_size for path in pictures) <= 5_000_000
    assert [path.name for path in pictures if f"imgs/docs/{path.name})" not in texts] == []
