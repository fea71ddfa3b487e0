"""Where this process runs: its device, and its rank among the processes that torchrun started.

Without torchrun every function here answers for a world of one, at no cost.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from lib.runtime.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Under torchrun each process takes the CUDA device of its local rank.

    Raises:
        UserError: the device is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    kind = name.partition(":")[0]
    if not present.get(kind, False):
        there = ", ".join(kind for kind, there in present.items() if there)
        raise UserError(f"--device {name} is not on this machine (there is: {there})")
    if name == "cuda":
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name} is not on this machine") from None
    if kind == "cuda":
        torch.cuda.set_device(device)
    return device


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager:
    """Compute in bf16 where it pays; it has float32's range, so no loss scaling is needed."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes of a `torchrun` for the length of the block."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that logs and saves."""
    return rank() == 0


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of `tensor` over all ranks, on every rank."""
    if world_size() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def any_rank(value: int, device: torch.device) -> int:
    """Return the largest `value` of all ranks, so that they decide alike."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def mean_factor(count: torch.Tensor | int, device: torch.device) -> torch.Tensor | float:
    """Return what turns this rank's sum over `count` examples into a mean over all ranks' examples.

    DistributedDataParallel divides gradients by the number of ranks, which is undone here.
    """
    if world_size() == 1:
        return 1.0 / count
    return world_size() / total(torch.as_tensor(count, dtype=torch.float32, device=device))


def share_buffers(model: torch.nn.Module) -> None:
    """Give every rank rank 0's buffers: each has seen its own batches' statistics."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def share_weights(model: torch.nn.Module) -> None:
    """Give every rank rank 0's weights and buffers."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def seed(number: int, device: torch.device) -> None:
    """Seed the random numbers of the CPU and of `device`.

    Not `torch.manual_seed`: where CUDA is compiled in but idle, it keeps a stack trace of every call.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 go through the block alone (a download, say) before the others do."""
    if world_size() == 1:
        yield
        return
    if not is_main():
        dist.barrier()
    try:
        yield
    finally:
        if is_main():
            dist.barrier()
