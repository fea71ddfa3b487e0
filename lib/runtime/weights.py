"""Weights from files as people have them: state_dicts, also nested, prefixed or in safetensors' format.

`read` returns what is in a file, `state_dict_of` finds the tensors in it, `named_as` gives them the names of
the network at hand, and `check` refuses weights that no answer can come from.
"""

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.runtime.errors import UserError, warn
from lib.runtime.files import existing_file
from lib.runtime.memory import physical, spelled

# Entries of a file under which training scripts keep the weights, in the order in which they are looked for:
# an average of the weights only counts where nothing else is there.
NESTED = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "net_state_dict",
    "network",
    "module",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "params_ema",
)
_MOST_LEVELS = 4

# Wrappers add these parts before every name, or before those of one layer: torch.compile and FSDP.
_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Prefixes by which training scripts call a network, the usual ones first; others are taken if they fit.
PREFIXES = ("module", "model", "net", "backbone", "network", "encoder")
# Tensors that counters of operations and losses leave in a file; no network's answer depends on them.
_NO_LAYERS = re.compile(
    r"(^|.*\.)(total_ops|total_params|num_batches_tracked)|\w*(loss|criterion|metric)\w*\..*"
)

_WAY_OUT = "where it was made, save the weights alone: torch.save(model.state_dict(), FILE)"


def read(path: str | Path) -> Any:
    """Return what is in a file of torch's or safetensors' format, on the CPU; no code of the file is run.

    Raises:
        UserError: no such file, a folder, a pipe, larger than the memory, damaged, or it would need code.
    """
    path = existing_file(path)
    _refuse_larger_than_memory(path, path.stat().st_size)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights: fetch them with git lfs pull")
    if _is_safetensors(head, path.stat().st_size):
        return _read_safetensors(path)
    _refuse_bombs(path)
    return _unpickle(path)


def _is_safetensors(head: bytes, size: int) -> bool:
    # Eight bytes with the length of a header, then the header, in JSON.
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # of a damaged header: an exception of its own, KeyError, ValueError, …
        raise UserError(
            f"{path} is damaged, or is not in safetensors' format: {_first_line(error)}"
        ) from None


def _refuse_larger_than_memory(path: Path, size: int) -> None:
    memory = physical()
    if memory and size > memory:
        raise UserError(f"{path} takes {spelled(size)}: this machine has {spelled(memory)} of memory")


def _refuse_bombs(path: Path) -> None:
    """Refuse an archive whose parts are larger, once unpacked, than the memory: packed zeros can be."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
    except Exception:  # not an archive, or a damaged one, as torch will find
        return
    _refuse_larger_than_memory(path, unpacked)


def _unpickle(path: Path) -> Any:
    # weights_only keeps a downloaded file from executing code.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported global", str(error))
        if found:
            what = f", such as {found[1]}" if found[1] else ""
            raise UserError(
                f"{path} is refused: it holds more than plain values and tensors{what}, and loading that "
                f"would run code; {_WAY_OUT}"
            ) from None
        raise UserError(f"{path} is not a checkpoint, or is damaged") from None
    except Exception:  # on bytes that are not a pickle, the unpickler may raise nearly any exception
        raise UserError(f"{path} is not a checkpoint, or is cut short") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def state_dict_of(content: Mapping[Any, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the state_dict in the content of a file: itself, or nested under one of `NESTED`.

    A second one beside it, e.g. an average of the weights, is left with a warning.

    Raises:
        UserError: there is none, or one of its entries is not a tensor.
    """
    inner = content
    for _ in range(_MOST_LEVELS):
        if all(isinstance(value, Tensor) for value in inner.values()):
            break
        there = [name for name in NESTED if isinstance(inner.get(name), Mapping) and inner[name]]
        if not there:
            break
        if len(there) > 1:
            warn(
                f"{path}: the weights are those under {there[0]}; left are those under {', '.join(there[1:])}"
            )
        inner = inner[there[0]]
    check_state_dict(path, inner)
    return dict(inner)


def check_state_dict(path: str | Path, weights: Any) -> None:
    """Raise a UserError if `weights` is not a dictionary of dense tensors of real numbers by name."""
    named = isinstance(weights, Mapping) and all(isinstance(key, str) for key in weights)
    if not named or not weights:
        raise UserError(f"{path} holds no weights: its state_dict has no names")
    wrong = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(
            f"{path} holds no state_dict: its entry {wrong[0]!r} is not a tensor; the weights may stand "
            f"under {', '.join(NESTED[:4])}, …"
        )
    for name, value in weights.items():
        if kind := _kind(value):
            raise UserError(f"{path} cannot be used: {name} is {kind}; {_WAY_OUT}")


def named_as(own: Collection[str], weights: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Return `weights` with the names `own` of a network, without the prefix that the file gives them.

    The prefix is the one under which most of `own` are found: `model.` of Lightning, `module.` of
    DistributedDataParallel, several of them, or any other. Entries without the prefix belong to
    something else than the network, e.g. to its loss, and are left with a warning.
    """
    known = set(own)
    if known.issubset(weights):
        return _without_counters(weights, known)
    plain = weights if any(map(_WRAPPED.search, known)) else _unwrapped(weights)
    prefix = _prefix(known, plain)
    taken = {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
    left = [name for name in plain if not name.startswith(prefix)]
    # Of weights that do not fit, the error says it.
    if left and all(name in taken for name in known if not _NO_LAYERS.fullmatch(name)):
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        warn(f"{source}: taken are the weights under {prefix[:-1]}; left are {left[0]}{more}")
    return _without_counters(taken, known)


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_WRAPPED.sub("", name): value for name, value in weights.items()}


def _without_counters(weights: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name in own or not _NO_LAYERS.fullmatch(name)}


def _prefix(own: Collection[str], names: Collection[str]) -> str:
    """Return the prefix in `names`, e.g. `model.`, under which most of `own` are found; or an empty one."""
    candidates = {""}
    for name in names:
        parts = name.split(".")
        # The names of layers are short: a prefix ends where one of the network's own names begins.
        candidates.update(
            ".".join(parts[:end]) + "." for end in range(1, len(parts)) if ".".join(parts[end:]) in own
        )
        known = 0
        while known < len(parts) - 1 and parts[known] in PREFIXES:
            known += 1
            candidates.add(".".join(parts[:known]) + ".")

    def rank(prefix: str) -> tuple[int, int, int, str]:
        found = sum(prefix + name in names for name in own)
        strange = sum(part not in PREFIXES for part in prefix.split(".")[:-1])
        return -found, strange, len(prefix), prefix

    return min(candidates, key=rank)


def check(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse weights that `model` cannot answer with; error messages call the weights `source`.

    Args:
        model: the network.
        weights: tensors with the names and shapes of its own.

    Raises:
        UserError: a tensor is of integers where the network has real numbers, or has a value that is not
            finite (as the network would hold it).
    """
    parameters = {name for name, _ in model.named_parameters()}
    for name, own in model.state_dict().items():
        if name not in weights or not isinstance(own, Tensor) or not own.is_floating_point():
            continue
        value = weights[name]
        if not value.is_floating_point():
            raise UserError(
                f"{source} cannot be used: {name} is of {_dtype(value)} numbers, where the network has "
                f"{_dtype(own)}: quantised weights are not read; {_WAY_OUT}"
            )
        # As the network holds it: 1e300 in float64 is infinite in float32.
        cast = value.detach().to("cpu", own.dtype)
        bad = ~cast.isfinite()
        if name not in parameters and bad.any():
            bad &= cast != own.cpu()  # a mask's own −∞
        if bad.any():
            what = "NaN" if cast.isnan().any() else "infinite"
            raise UserError(
                f"{source} cannot be used: {int(bad.sum()):,} of {bad.numel():,} values of {name} are "
                f"{what}, not finite numbers"
            )


def _kind(value: Tensor) -> str:
    """Return what keeps a tensor from being the weight of a layer; empty if nothing does."""
    if value.is_meta:
        return "without values (a tensor on the meta device)"
    if value.layout is not torch.strided or value.is_nested:
        return "a sparse tensor, not a dense one"
    if value.is_quantized or value.is_complex() or not _is_real(value.dtype):
        return f"of {_dtype(value)} numbers"
    # One value, expanded, would fill all memory.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "of more values than the file holds"
    return ""


def _is_real(dtype: torch.dtype) -> bool:
    try:
        torch.zeros(1, dtype=dtype).to(torch.float64)
    except (RuntimeError, TypeError):  # some of few bits have no conversion
        return False
    return True


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def problems(
    own: Mapping[str, Any], weights: Mapping[str, Tensor], optional: Iterable[str] = ()
) -> list[str]:
    """Return how the names and shapes of `weights` differ from a network's own, each as a few words."""
    spared = set(optional)
    found = [f"no {name}" for name in own if name not in weights and name not in spared]
    found += [f"unknown {name}" for name in weights if name not in own]
    return found + [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in weights and _shape(weights[name]) != _shape(own[name])
    ]


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
