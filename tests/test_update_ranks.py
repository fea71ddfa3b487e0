"""Several optimizers on several ranks: the same weights on all, and an exact resume."""

import pytest
import torch
from conftest import assert_same
from points_gan import fit_gan, make_gan, make_points
from test_distributed import found_by_two_ranks

from lib.runtime import checkpoint

WORKER = """
import json
from pathlib import Path
import torch
from lib import cli
from lib.runtime import checkpoint, distributed
from lib.runtime.errors import Interrupted
from points_gan import fit_gan, make_gan, make_points
from training import Before, terminate


def weights(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


def main(argv):
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        folder, rank = Path(argv[0]), distributed.rank()
        found = {}

        def run(name, **options):
            (folder / name).mkdir(exist_ok=True)
            own = folder / name if rank == 0 or options.get("resume") else folder / f"{name}-of-rank-1"
            found[name] = weights(fit_gan(own, **options).model)

        run("plain", model=make_gan(plain=True), batches=make_points(latent=True), clip_norm=0.1)
        run("whole", ema=0.9)
        try:
            run("stopped", ema=0.9, around=lambda batches: Before(batches, 7, terminate))
        except Interrupted:
            found["stopped_at"] = 8
        torch.distributed.barrier()  # rank 1 may be told of the interrupt before rank 0 has saved
        run("stopped", ema=0.9, resume=True)
        (folder / f"rank-{rank}.json").write_text(json.dumps(found))

cli.run(main)
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return folder, found_by_two_ranks(WORKER, folder)


def test_two_ranks_agree_on_the_weights_of_both_networks(two_ranks):
    _, (first, second) = two_ranks
    for name in ("plain", "whole", "stopped"):
        for weight, value in first[name].items():
            if not weight.startswith("generator.1.running"):  # each rank has the statistics of its batches
                assert value == second[name][weight], (name, weight)


def test_two_ranks_take_the_steps_that_one_takes_at_the_same_batch(two_ranks, tmp_path):
    alone = fit_gan(tmp_path, model=make_gan(plain=True), batches=make_points(latent=True), clip_norm=0.1)
    start = make_gan(plain=True).state_dict()
    for name, value in alone.model.state_dict().items():
        assert not torch.allclose(value, start[name], atol=1e-3), name
        assert torch.allclose(torch.tensor(two_ranks[1][0]["plain"][name]), value, atol=1e-5), name


def test_two_ranks_interrupted_in_the_middle_of_an_epoch_end_at_the_same_weights(two_ranks):
    folder, (first, _) = two_ranks
    assert first["stopped_at"] == 8
    assert first["stopped"] == first["whole"]
    for name in (checkpoint.LAST, checkpoint.BEST):
        stopped, whole = (checkpoint.load(folder / run / name) for run in ("stopped", "whole"))
        assert_same(stopped, whole, name)
