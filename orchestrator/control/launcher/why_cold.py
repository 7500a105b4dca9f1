"""Whether a fork of a zygote is as good as a fresh interpreter for this rank, and why not where it is not."""

from __future__ import annotations

import os
import re

from rank_request import is_script
from wire import Message
from zygotes import ARGV_PADDING, ENV_PADDING, Zygote

# Read when Python starts or torch and what it imports are loaded (traced with torch 2.13): too late in a process that
# has done so.
READ_AT_IMPORT = re.compile(
    r"(LD_|PYTHON|_PYTHON|GLIBC_|MALLOC_|LC_|TORCH|PYTORCH|PT2_|TRITON_|AOT|INDUCTOR_|FX_|FAKE_|COMPILE_|PARTITIONER_|DUMP_"
    r"|OMP_|GOMP_|KMP_|ACC_|MKL|DNNL_|ONEDNN_|OPENBLAS_|GOTO_|BLIS_|NVPL_|NPY_|NUMPY_"
    r"|NUMEXPR_|GFORTRAN_|SYMPY_|MPMATH_|CUTLASS_|CUTEDSL_|CUDA_|KINETO_|OPENSSL_|I_MPI_|MPI_|OMPI_).*"
    r"|LANG|LANGUAGE|HOME|USER|LOGNAME|LNAME|USERNAME|TMPDIR|TEMP|TMP"
)
# These match it, but are read when CUDA or a process group is made, or are applied after the fork.
READ_LATER = re.compile(
    r"CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|OMP_NUM_THREADS|TORCH_HOME|(TORCH_NCCL|TORCH_FR|TORCHELASTIC)_.*"
)


def why_cold(rank: Message, zygote: Zygote | None) -> str | None:
    """Why this rank needs a fresh interpreter; None where a fork of the zygote is as good."""
    if rank.get("cold"):
        return "asked for"
    if zygote is None or not zygote.ready:
        return f"no warm process of {rank['python']} is ready"
    env, script = rank["env"], os.path.join(rank["cwd"], rank["argv"][0])
    for name in sorted(env.keys() | zygote.env.keys()):
        if env.get(name) != zygote.env.get(name) and READ_AT_IMPORT.fullmatch(name) and not READ_LATER.fullmatch(name):
            return f"{name} is read when torch or Python is loaded"
    threads = env.get("OMP_NUM_THREADS", "1")
    if not re.fullmatch(r"[1-9]\d{0,4}", threads):
        return "OMP_NUM_THREADS is not a plain number"
    if zygote.most_threads is not None and int(threads) > zygote.most_threads:
        return f"OMP_NUM_THREADS is more than the {zygote.most_threads} threads that torch uses here"
    if rank.get("cpus") and zygote.most_threads is not None and "OMP_NUM_THREADS" not in env:
        return "torch makes its number of threads of cpus when it is loaded, as there is no OMP_NUM_THREADS"
    if rank["cudnn"] and "torch" not in zygote.modules:
        return "cudnn needs torch, which the warm process does not have"
    if not is_script(rank):
        return f"{rank['argv'][0]} is not the file of a script"
    folder = os.path.dirname(os.path.realpath(script))
    for name in zygote.modules:
        if os.path.exists(f"{folder}/{name}.py") or os.path.exists(f"{folder}/{name}/__init__.py"):
            return f"{folder} has a module named {name}, which hides the one that is loaded"
    if sum(len(os.fsencode(f"{name}={value}")) + 1 for name, value in env.items()) > ENV_PADDING:
        return f"the environment is larger than {ENV_PADDING} bytes"
    if sum(len(os.fsencode(word)) + 1 for word in [rank["python"], "-u", *rank["argv"]]) > ARGV_PADDING:
        return f"the command line is larger than {ARGV_PADDING} bytes"
    return None
