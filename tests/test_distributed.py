"""Several ranks: the same gradients, every example once, one log, one checkpoint."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPT, Ended, environment
from torch import nn

from lib.runtime import checkpoint, distributed
from lib.runtime.errors import UserError

# What every one of two ranks does; what it found goes to a file of its own.
WORKER = """
import json
from pathlib import Path
import torch
from torch import nn
from lib import cli
from lib.runtime import distributed
from lib.training.fit import Checkpoints, fit
from lib.data.batches import InOrder, TensorBatches
from lib.training.objectives import classification
from lib.training.optimisation import Settings
from lib.runtime.runlog import RunLog
from test_distributed import make_data, make_model


def main(argv):
    torch.set_num_threads(1)
    device = distributed.pick_device("cpu")
    with distributed.process_group(device):
        rank = distributed.rank()
        images, labels = make_data()
        training = TensorBatches(images, labels, torch.arange(len(labels)), batch_size=8, seed=0)
        validation = InOrder(images, labels, torch.arange(len(labels)), batch_size=4)
        drawn = {"train": [], "valid": []}

        def objective(model, batch):
            drawn["train" if model.training else "valid"] += batch[2].tolist()
            return classification()(model, batch[:2])

        model = make_model()
        settings = Settings(
            seed=0, max_epoch=2, learning_rate=0.1, optimizer="sgd", momentum=0.5, clip_norm=1.0, ema=0.5
        )
        folder = Path(argv[0])
        if rank == 0:
            (folder / "ckpts-0").mkdir()
        with open(folder / f"log-{rank}", "w") as stream:
            log = RunLog("test", stream=stream, enabled=distributed.is_main())
            fit(model, objective, training, validation, settings, log=log,
                checkpoints=Checkpoints(folder / f"ckpts-{rank}"))
        norm = nn.BatchNorm1d(2)
        norm.running_mean += rank
        distributed.share_buffers(norm)
        with distributed.main_first():
            first = (folder / "main-was-here").exists()
            (folder / "main-was-here").touch()
        found = {
            "drawn": drawn,
            "weights": {name: value.tolist() for name, value in model.state_dict().items()},
            "largest": distributed.max_over_ranks(rank * 3, device),
            "total": distributed.total(torch.tensor(rank + 1.0)).item(),
            "buffer": norm.running_mean.tolist(),
            "found_main_there": first,
        }
        (folder / f"rank-{rank}.json").write_text(json.dumps(found))

cli.run(main)
"""


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(29, 5, generator=generator), torch.randint(3, (29,), generator=generator)


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


def as_rank(rank: int, ranks: int, port: str) -> dict[str, str]:
    """What torchrun tells a process of its rank."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return environment(MASTER_ADDR="localhost", PYTHONPATH=paths, **{k: str(v) for k, v in told.items()})


def torchrun(script: str, *flags, folder: Path) -> Ended:
    """Run a script on two ranks, with `folder` as the current one."""
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port())
    done = subprocess.run(
        [sys.executable, "-m", *launcher, ROOT / script, *map(str, flags)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def found_by_two_ranks(worker: str, folder: Path) -> list[dict]:
    """Run some code as two ranks; return what each wrote to `rank-N.json` in `folder`, its one argument."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", worker, folder],
            env=as_rank(rank, 2, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=90)
            assert process.returncode == 0, stderr
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What two ranks found that trained together, and their folder."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, found_by_two_ranks(WORKER, folder)


def fit_alone(folder: Path) -> nn.Module:
    """The same training by a single rank, in this process."""
    from lib.data.batches import InOrder, TensorBatches
    from lib.runtime.runlog import RunLog
    from lib.training.fit import Checkpoints, fit
    from lib.training.objectives import classification
    from lib.training.optimisation import Settings

    images, labels = make_data()
    model = make_model()
    settings = Settings(
        seed=0, max_epoch=2, learning_rate=0.1, optimizer="sgd", momentum=0.5, clip_norm=1.0, ema=0.5
    )
    folder.mkdir()
    fit(
        model,
        classification(),
        TensorBatches(images, labels, batch_size=8, seed=0),
        InOrder(images, labels),
        settings,
        log=RunLog("test", enabled=False),
        checkpoints=Checkpoints(folder),
    )
    return model


def test_two_ranks_descend_the_gradient_that_one_does_at_the_same_batch(two_ranks, tmp_path):
    _, found = two_ranks
    alone = fit_alone(tmp_path / "alone")
    start = make_model().state_dict()
    for name, value in alone.state_dict().items():
        assert not torch.allclose(value, start[name], atol=1e-2)
        for one in found:
            assert torch.allclose(torch.tensor(one["weights"][name]), value, atol=1e-5), name


def test_two_ranks_see_every_example_once_an_epoch_and_once_a_validation(two_ranks):
    _, found = two_ranks
    for kind in ("train", "valid"):
        together = [number for one in found for number in one["drawn"][kind]]
        assert sorted(together) == sorted([*range(29), *range(29)])
        assert all(one["drawn"][kind] for one in found)


def test_only_the_first_rank_logs_and_saves(two_ranks):
    folder, _ = two_ranks
    assert "[VALID] Epoch=2" in (folder / "log-0").read_text()
    assert (folder / "log-1").read_text() == ""
    assert sorted(path.name for path in (folder / "ckpts-0").iterdir()) == [checkpoint.BEST, checkpoint.LAST]
    assert not (folder / "ckpts-1").exists()


def test_the_metrics_of_two_ranks_are_those_of_one(two_ranks, tmp_path):
    fit_alone(tmp_path / "alone")
    alone = torch.load(tmp_path / "alone" / checkpoint.LAST, weights_only=True)["metrics"]
    together = torch.load(two_ranks[0] / "ckpts-0" / checkpoint.LAST, weights_only=True)["metrics"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert together["accuracy"] == pytest.approx(alone["accuracy"])


def test_what_ranks_share(two_ranks):
    for one in two_ranks[1]:
        assert one["largest"] == 3
        assert one["total"] == 3
        assert one["buffer"] == [0, 0]
    assert [one["found_main_there"] for one in two_ranks[1]] == [False, True]


@pytest.mark.slow
def test_the_script_under_torchrun_is_one_run_with_one_log_and_one_checkpoint(tmp_path):
    flags = ("--dataset", "digits", "--max-epoch", "8", "--augment", "none")
    done = torchrun(SCRIPT, *flags, folder=tmp_path)
    assert done.status == 0, done.stderr
    assert "rror" not in done.stderr
    assert done.stdout.count("[RUN]") == done.stdout.count("[EVAL]") == done.stdout.count("[DONE]") == 1
    run = Ended(0, done.stdout, "").run()
    steps = [event["Step"] for event in run.events["VALID"]]
    assert [event["Epoch"] for event in run.events["VALID"]] == list(range(1, 9))
    assert steps[-1] == 8 * 45  # 1,437 examples in batches of 32
    assert run.events["EVAL"][0]["Valid_accuracy"] > 0.85
    files = sorted(path.name for path in (tmp_path / "ckpts" / "mnist-classifier-digits").iterdir())
    assert files == [checkpoint.BEST, checkpoint.LAST]


# Alone


def test_alone_there_is_nothing_to_share():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.total(torch.tensor(5)) == 5
    assert distributed.max_over_ranks(3, torch.device("cpu")) == 3
    assert distributed.mean_factor(4, torch.device("cpu")) == 0.25
    with distributed.process_group(torch.device("cpu")), distributed.main_first():
        assert not torch.distributed.is_initialized()


def test_the_device_that_is_found_is_one_that_works():
    assert distributed.pick_device("cpu") == torch.device("cpu")
    torch.zeros(1, device=distributed.pick_device("auto"))


@pytest.mark.parametrize("name", ["abacus", "", "cuda:99", "mps", "cpu:x", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(UserError, match=f"--device {name} is not on this machine"):
        distributed.pick_device(name)


@pytest.mark.parametrize("number", [0, 42, 2**63 - 1])
def test_a_seed_makes_the_random_numbers_that_it_made_before(number):
    drawn = []
    for _ in range(2):
        distributed.seed(number, torch.device("cpu"))
        drawn.append(torch.rand(5))
    assert torch.equal(*drawn)
