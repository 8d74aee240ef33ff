"""Where training runs: one process on a CPU or GPU, or many under a launcher (torchrun, accelerate launch)."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spiritsafe.errors import BadInput

__all__ = ["Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """A device, a precision and, under a launcher, the other processes.

    accelerator: accelerate's, only where WORLD_SIZE > 1, so that one process stays simple.
    """

    device: torch.device
    bf16: bool
    rank: int = 0
    world: int = 1
    accelerator: Any = None

    @classmethod
    def find(cls, precision: Literal["auto", "fp32", "bf16"]) -> Place:
        """The GPU if there is one; bf16 where the hardware multiplies it.

        Raises:
            BadInput: `bf16` was asked for on a CUDA device that lacks it.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
        if precision == "bf16" and device.type == "cuda" and not native:
            raise BadInput(f"train.precision: bf16, which {torch.cuda.get_device_name()} lacks; use auto or fp32")
        bf16 = native if precision == "auto" else precision == "bf16"
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(device, bf16)
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device.type == "cpu")
        return cls(accelerator.device, bf16, accelerator.process_index, accelerator.num_processes, accelerator)

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[Any]]:
        """bf16 matrix products over fp32 weights, or nothing."""
        if not self.bf16:
            return contextlib.nullcontext
        return functools.partial(torch.autocast, self.device.type, dtype=torch.bfloat16)

    def wrap(self, module: nn.Module) -> nn.Module:
        """On the device; wrapped for data parallelism where there are other processes."""
        module.to(self.device)
        return module if self.accelerator is None else self.accelerator.prepare_model(module)

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Gradients of this backward pass stay local: another micro-batch of the same step follows."""
        return contextlib.nullcontext() if self.accelerator is None else self.accelerator.no_sync(module)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        return tensor if self.accelerator is None else self.accelerator.reduce(tensor, reduction="sum")

    def any(self, flag: bool) -> bool:
        """True everywhere if it is true anywhere."""
        return flag if self.accelerator is None else bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def _cpu_has_bf16() -> bool:
    """True if the CPU multiplies bf16 natively; elsewhere torch emulates it, slower than fp32."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
