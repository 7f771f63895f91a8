"""A Triton driver without a GPU: kernels are compiled for a real target and their PTX runs on the CPU.

    driver = install(arch=80)
    kernel[grid](...)          # with tensors of host memory

install() replaces Triton's own driver for the rest of the process, so use a separate process.
Triton's cache is used as always (TRITON_CACHE_DIR).
"""

from __future__ import annotations

import functools
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from .ptx import Module

_INTEGER_BYTES = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8}
_REAL_FORMATS = {"fp32": ("<f", 4), "f32": ("<f", 4), "fp64": ("<d", 8), "f64": ("<d", 8)}


class Utils:
    """What Triton asks of a driver about binaries and the device, whatever the target: an H100's shared memory and an
    A100's multiprocessors."""

    def __init__(self, counts: bool) -> None:
        self.counts = counts
        self.files: Mapping[str, str] = {}  # files of the kernel about to be loaded, by name
        self.modules: dict[str, Module] = {}

    @functools.cached_property
    def properties(self) -> dict[str, int]:
        return {
            "max_shared_mem": 232448,
            "max_num_regs": 65536,
            "multiprocessor_count": 108,
            "warpSize": 32,
            "sm_clock_rate": 1410000,
            "mem_clock_rate": 1215000,
            "mem_bus_width": 5120,
        }

    def get_device_properties(self, device: int) -> dict[str, int]:
        return self.properties

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[Module, tuple[Module, str, int], int, int, int]:
        """(module, function, registers, spills, most threads a block)."""
        path = next(Path(file) for label, file in self.files.items() if label.endswith(".ptx"))
        text = path.read_text(encoding="utf-8")
        if text not in self.modules:
            self.modules[text] = Module(text, self.counts)
        module = self.modules[text]
        return module, (module, name, shared), 0, 0, 1024

    def unload_module(self, module: Module) -> None:
        pass


class Launcher:
    """Starts one compiled kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.types = list(source.signature.values())
        self.metadata = metadata
        if metadata.num_ctas != 1:
            raise NotImplementedError("clusters of blocks")

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: tuple[Module, str, int],
        kernel_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *args: Any,
    ) -> None:
        module, name, shared = function
        parameters: list[Any] = []
        for argument, kind in zip(args, self.types, strict=True):
            if kind == "constexpr":
                continue
            if kind.startswith("*"):
                parameters.append((0, 8) if argument is None else argument)
            elif kind in _INTEGER_BYTES:
                parameters.append((int(argument), _INTEGER_BYTES[kind]))
            elif kind in _REAL_FORMATS:
                form, size = _REAL_FORMATS[kind]
                parameters.append((int.from_bytes(struct.pack(form, argument), "little"), size))
            else:
                raise NotImplementedError(f"kernel argument of type {kind}")
        scratch = [(0, 8)] * (len(module.kernels[name].parameters) - len(parameters))  # pointers that Triton adds
        if grid_x * grid_y * grid_z:
            cooperative = bool(getattr(self.metadata, "launch_cooperative_grid", False))
            block = [32 * self.metadata.num_warps]
            module.launch(name, [grid_x, grid_y, grid_z], block, shared, [*parameters, *scratch], cooperative)


class PtxDriver(DriverBase):  # type: ignore[misc]
    """Triton's driver for a CUDA target of compute capability `arch` / 10, executed here."""

    launcher_cls: ClassVar[type[Launcher]] = Launcher

    def __init__(self, arch: int, counts: bool) -> None:
        self.arch = arch
        self.utils = Utils(counts)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return self.arch // 10, self.arch % 10

    def get_benchmarker(self) -> Callable[..., list[float]]:
        def once(run: Callable[[], Any], quantiles: Sequence[float] = (0.5,), **ignored: Any) -> list[float]:
            begin = time.perf_counter()
            run()
            return [(time.perf_counter() - begin) * 1e3] * len(quantiles)

        return once

    def counts(self) -> dict[str, int]:
        """Instructions executed so far, by opcode, over all kernels; needs install(counts=True)."""
        total: Counter[str] = Counter()
        for module in self.utils.modules.values():
            total.update(module.counts())
        return dict(total)


def _to_ptx_only(backend: Any = None, stages: Any = None, *rest: Any) -> tuple[str, str]:
    """Skips generating machine code, which nothing here runs; returns the key and hash for Triton's caches."""
    if stages is not None:
        stages["cubin"] = lambda source, metadata: b""
    return "PTX only", "PTX only"


def install(arch: int = 80, counts: bool = False) -> PtxDriver:
    """Makes Triton compile for compute capability `arch` / 10 and run the PTX on the CPU; returns the driver."""
    driver = PtxDriver(arch, counts)

    def remember(module: Any, function: Any, name: str, group: Mapping[str, str], key: str) -> None:
        driver.utils.files = group

    triton.knobs.runtime.kernel_load_start_hook = remember
    triton.knobs.runtime.add_stages_inspection_hook = _to_ptx_only
    triton.runtime.driver.set_active(driver)
    return driver
