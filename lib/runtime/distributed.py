"""The device of this process, and its rank among the processes that torchrun started.

Without torchrun there is one rank, and every function here returns at once without communicating.
"""

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lib.runtime.errors import RunFailed, UserError
from lib.runtime.launch import launched

T = TypeVar("T")

LONGEST_WAIT = timedelta(minutes=5)  # until all ranks have started; torch's own limit is 30 minutes


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` prefers CUDA, then MPS, then the CPU.

    Under torchrun each process uses the CUDA device of its local rank.

    Raises:
        UserError: this machine has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    kind = name.partition(":")[0]
    if not present.get(kind, False):
        there = ", ".join(kind for kind, there in present.items() if there)
        raise UserError(f"--device {name} is not on this machine (there is: {there})")
    if name == "cuda":
        name = f"cuda:{launched().local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name} is not on this machine") from None
    if kind == "cuda":
        torch.cuda.set_device(device)
    return device


def use_exact_float32() -> None:
    """Compute with float32 numbers in float32, from now on.

    By default, PyTorch rounds the inputs of convolutions to TensorFloat-32, with a mantissa of 10 bits, on
    GPUs that have it. That moves integrated gradients of a ResNet-50 by 11 % of the largest one, and
    Grad-CAM by 0.06 %.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager:
    """Autocast to bf16 if `enabled`. bf16 has the range of float32, so the loss needs no scaling."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Within the block, this process belongs to the process group of its `torchrun`, if there is one.

    Raises:
        UserError: the environment variables of the launcher are half set, or nonsense.
        RunFailed: the other ranks cannot be reached, or do not come.
    """
    if launched().world_size == 1:
        yield
        return
    _join_the_others("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _join_the_others(backend: str) -> None:
    me = launched()
    try:
        store, rank, ranks = next(dist.rendezvous("env://", me.rank, me.world_size, timeout=LONGEST_WAIT))
        store.set(f"rank {rank} is here", "yes")
        store.wait([f"rank {number} is here" for number in range(ranks)], LONGEST_WAIT)
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    except (RuntimeError, OSError, ValueError) as error:  # torch's errors of networks are RuntimeErrors
        cause = str(error).strip().splitlines() or [""]
        raise RunFailed(
            f"the {me.world_size} ranks of this run do not find each other ({cause[0][:200]}): "
            "start all of them by torchrun, with the same MASTER_ADDR and MASTER_PORT"
        ) from None


_IS_ALONE: ContextVar[bool] = ContextVar("is_alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block, this rank works by itself: the functions here take it for the only one.

    Ranks that share images explain each of theirs in such a block, in which nothing may wait for the others.
    """
    token = _IS_ALONE.set(True)
    try:
        yield
    finally:
        _IS_ALONE.reset(token)


def _is_shared() -> bool:
    return dist.is_initialized() and not _IS_ALONE.get()


def rank() -> int:
    return dist.get_rank() if _is_shared() else 0


def world_size() -> int:
    return dist.get_world_size() if _is_shared() else 1


def gathered(value: T) -> list[T]:
    """Return the `value` of each rank, in the order of ranks, on rank 0; an empty list on the others.

    The values are anything that can be pickled; they are sent to rank 0 alone.
    """
    if world_size() == 1:
        return [value]
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, found)
    return found or []


def told_by_main(value: T) -> T:
    """Return the `value` of rank 0, which can be pickled, on all ranks."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def is_main() -> bool:
    """Tell whether this is rank 0, the process that logs and saves."""
    return rank() == 0


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of `tensor` over all ranks, on every rank."""
    if world_size() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the maximum of `value` over all ranks, so that all of them take the same decision."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def mean_factor(count: torch.Tensor | int, device: torch.device) -> torch.Tensor | float:
    """Return the factor by which each rank scales its loss sum over `count` examples before `backward`.

    The gradient becomes that of the mean loss over the examples of all ranks. DistributedDataParallel
    averages the gradients of W ranks, (1/W) Σ_r ∇(f · sum_r). With f = W / Σ_r count_r that is
    ∇(Σ_r sum_r / Σ_r count_r).
    """
    if world_size() == 1:
        return 1.0 / count
    return world_size() / total(torch.as_tensor(count, dtype=torch.float32, device=device))


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace the gradient of each parameter by its mean over all ranks.

    Every rank must have gradients of the same parameters; those without one are left out.
    """
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    # One message for all of them, because each message costs its latency.
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / world_size()
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def share_buffers(model: torch.nn.Module) -> None:
    """Copy the buffers of rank 0 to all ranks (each rank has the statistics of its own batches)."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def share_weights(model: torch.nn.Module) -> None:
    """Copy the weights and buffers of rank 0 to all ranks."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def seed(number: int, device: torch.device) -> None:
    """Seed the random number generators of the CPU and of `device`.

    `torch.manual_seed` is not used, because it stores a stack trace at every call where PyTorch was built
    with CUDA and CUDA is not in use.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 finish the block (a download, say) before the other ranks enter it."""
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
