"""A check that `torch.compile` works here, before a run spends time on anything else."""

import logging
import os
import warnings

import torch

from lib.runtime.errors import UserError


def check(device: torch.device) -> None:
    """Compile a small function on `device`.

    Raises:
        UserError: that fails, e.g. because there is no C++ compiler.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch._inductor").setLevel(logging.CRITICAL)
            torch.compile(_polynomial)(torch.ones(8, device=device))
    except Exception as error:  # whatever a compiler, its linker or its headers lack
        torch._dynamo.reset()
        raise UserError(f"--compile does not work on this machine: {_cause(error)}; leave it out") from None


def _polynomial(x: torch.Tensor) -> torch.Tensor:
    return x * x + x


def _cause(error: Exception) -> str:
    text = str(error)
    if "InvalidCxxCompiler" in text or "No working C++ compiler" in text:
        tried = os.environ.get("CXX", "").strip()
        return f"there is no working C++ compiler{f' at CXX={tried}' if tried else ' (g++ or clang++)'}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
