"""Every CUDA kernel's source, run on the CPU, is clean under the sanitizers and right in every thread order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.build import module_file
from emulation.compile import ROOT
from emulation.needs import need_compiler, sanitizer_libraries

# A race is seen in any thread order; a wrong address or answer may depend on the order.
ORDERS = {"address,undefined": ("fwd", "rev", "1"), "thread": ("1",)}
LIBRARIES = {
    "address,undefined": ("libasan.so", "libstdc++.so"),  # libstdc++ too: exceptions are intercepted through it
    "thread": ("libtsan.so",),
}


@pytest.mark.thorough
@pytest.mark.parametrize("sanitizer", LIBRARIES)
def test_kernels_are_clean(sanitizer: str) -> None:
    need_compiler()
    preloaded = sanitizer_libraries(*LIBRARIES[sanitizer])
    module_file(sanitizer)  # built without the sanitizer preloaded, since it would also be loaded into the compiler
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "LD_PRELOAD": preloaded,
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-m", "emulation.run_sanitized", sanitizer, *ORDERS[sanitizer]]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr[-10000:]
    assert "Sanitizer" not in done.stderr, done.stderr[-10000:]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(ORDERS[sanitizer])
    for line in lines:
        right, total = re.findall(r"\d+", line.partition(" ")[2])
        assert right == total and int(total) > 0, done.stdout
