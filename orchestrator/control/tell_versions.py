"""Which torch, CUDA, cuDNN and NCCL an interpreter has: run by that interpreter, it prints one line of JSON.

Standard library only, Python 3.9 or later, and never CUDA itself: no context is made and no GPU's memory is touched.
"""

from __future__ import annotations

import sys

# A module beside this file must not hide one of the same name from torch.
if sys.path[0] == __file__.rpartition("/")[0]:
    del sys.path[0]

import ctypes
import glob
import json
import os
import platform
import re
from typing import Any

MARK = "orch-versions: "
PR_SET_PDEATHSIG, SIGKILL = 1, 9
LIBRARIES = re.compile(r"lib(nccl|cudnn|torch_cuda|torch_cpu|torch_python|cudart)[^/]*\.so")


def mapped() -> list[str]:
    """The files that are mapped into this process, as the kernel shows them."""
    with open("/proc/self/maps") as maps:
        return sorted({line.split(None, 5)[5].strip() for line in maps if line.count("/")})


class DlInfo(ctypes.Structure):
    """As dladdr(3) fills it."""

    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("at", ctypes.c_void_p),
    ]


def nccl_of(handle: str | None) -> tuple[str, str] | None:
    """Version and file of the NCCL whose functions are found through a library, or in the global scope (None)."""
    try:
        function = ctypes.CDLL(handle).ncclGetVersion
    except (OSError, AttributeError):
        return None
    number, info = ctypes.c_int(), DlInfo()
    if function(ctypes.byref(number)):
        return None
    ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info))
    # 2.8.4 was 2804; from 2.9 on the parts have more room: 2.28.9 is 22809.
    large = 10000 if number.value >= 10000 else 1000
    version = "{}.{}.{}".format(number.value // large, number.value % large // 100, number.value % 100)
    return version, os.fsdecode(info.file or handle or "")


def of_torch(told: dict[str, Any]) -> None:
    """Adds torch's part and the files that it came from."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        # An installation changes the folder that it goes into.
        told["files"] += [folder for folder in sys.path if os.path.isdir(folder)]
        return
    told["torch"], told["cuda"] = str(torch.__version__), torch.version.cuda
    told["files"] += [torch.__file__, os.path.join(os.path.dirname(torch.__file__), "version.py")]
    told["cudnn"] = torch.backends.cudnn.version() if told["cuda"] else None
    if told["cuda"] and hasattr(torch._C, "_nccl_version"):
        built = torch.cuda.nccl.version()
        told["nccl"] = ".".join(map(str, built[:3])) if isinstance(built, tuple) else None
    libraries = [path for path in mapped() if LIBRARIES.match(os.path.basename(path))]
    told["files"] += libraries
    # In the linker's order: what is global (LD_PRELOAD) hides what torch is linked with; the last are mapped at least.
    through = [
        None,
        *(path for path in libraries if "torch_cuda" in path),
        *(path for path in libraries if "nccl" in path),
    ]
    found = next(filter(None, map(nccl_of, through)), None)
    if found is not None:
        told["nccl_loaded"], told["nccl_path"] = found
        told["plugins"] = sorted(glob.glob(glob.escape(os.path.dirname(found[1])) + "/libnccl-net*.so"))


def main() -> None:
    # Whoever asks may die; nobody needs the answer then.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    os.nice(19)
    told: dict[str, Any] = {"version": platform.python_version(), "problem": None}
    told["files"] = [os.path.realpath(sys.executable), "/etc/ld.so.cache"]
    try:
        of_torch(told)
    except Exception as error:
        words = str(error).strip().splitlines() or [""]
        told["problem"] = "cannot import torch: {}: {}".format(type(error).__name__, words[-1][:300])
    sys.stdout.write("\n" + MARK + json.dumps(told) + "\n")
    sys.stdout.flush()
    # Nothing that was imported gets a say at the end.
    os._exit(0)


main()
