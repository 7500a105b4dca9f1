"""What an interpreter says of itself: a made-up torch, on a real Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.control.interpreter import ask

CUDA_TORCH = """
import ctypes, os, types
print("a banner that somebody prints")
__version__ = "2.11.0+cu130"
version = types.SimpleNamespace(cuda="13.0")
backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(version=lambda: 91900))
_C = types.SimpleNamespace(_nccl_version=None)
cuda = types.SimpleNamespace(nccl=types.SimpleNamespace(version=lambda: (2, 28, 9)))
if os.path.exists(LIBRARY):
    ctypes.CDLL(LIBRARY)
"""


def torch_in(folder: Path, text: str) -> dict[str, str]:
    """A torch in `folder`, and the environment in which a Python finds it first."""
    (folder / "torch").mkdir(exist_ok=True)
    (folder / "torch/version.py").touch()
    (folder / "torch/__init__.py").write_text(text.replace("LIBRARY", repr(str(folder / "libnccl.so.2"))))
    return {"PATH": os.defpath, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def test_it_tells_what_torch_was_built_with(tmp_path: Path) -> None:
    told = ask(sys.executable, torch_in(tmp_path, CUDA_TORCH))
    has = told.interpreter
    assert (has.torch, has.cuda, has.cudnn, has.nccl) == ("2.11.0+cu130", "13.0", "9.19.0", "2.28.9")
    assert (has.nccl_loaded, has.nccl_path, has.problem) == (None, None, None)
    assert has.version == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(("number", "version"), [(22705, "2.27.5"), (2804, "2.8.4")])
def test_the_nccl_that_is_loaded_says_its_version_itself(tmp_path: Path, number: int, version: str) -> None:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "nccl.c", tmp_path / "libnccl.so.2"
    source.write_text(f"int ncclGetVersion(int *v) {{ *v = {number}; return 0; }}")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    (tmp_path / "libnccl-net.so").touch()
    has = ask(sys.executable, torch_in(tmp_path, CUDA_TORCH)).interpreter
    assert (has.nccl, has.nccl_loaded, has.nccl_path) == ("2.28.9", version, str(library))
    assert has.plugins == (str(tmp_path / "libnccl-net.so"),)


def test_an_nccl_that_is_preloaded_is_the_one_that_counts(tmp_path: Path) -> None:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs a C compiler")
    for number, library in ((22809, tmp_path / "libnccl.so.2"), (22907, tmp_path / "other.so")):
        source = tmp_path / "nccl.c"
        source.write_text(f"int ncclGetVersion(int *v) {{ *v = {number}; return 0; }}")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    env = torch_in(tmp_path, CUDA_TORCH) | {"LD_PRELOAD": str(tmp_path / "other.so")}
    has = ask(sys.executable, env).interpreter
    assert (has.nccl, has.nccl_loaded, has.nccl_path) == ("2.28.9", "2.29.7", str(tmp_path / "other.so"))


def test_an_answer_holds_until_a_file_of_its_torch_changes(tmp_path: Path) -> None:
    told = ask(sys.executable, torch_in(tmp_path, CUDA_TORCH))
    assert told.certain
    assert told.holds()
    (tmp_path / "torch/version.py").write_text("# another build")
    assert not told.holds()


def test_an_interpreter_without_torch_says_so_and_is_asked_again_when_something_is_installed(tmp_path: Path) -> None:
    # An import hook of the environment's own hides the torch that this Python may have.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, No())\n"
    )
    told = ask(sys.executable, {"PATH": os.defpath, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    assert (told.interpreter.torch, told.interpreter.problem) == (None, None)
    assert told.interpreter.version
    (tmp_path / "torch").mkdir()
    assert not told.holds()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("raise OSError('libcudart.so.13: cannot open shared object file')", "cannot import torch: OSError: libcudart"),
        ("import nothing_of_this_name", "cannot import torch: ModuleNotFoundError: No module named 'nothing_of"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "was ended by signal 4"),
        ("import sys\nsys.exit('no licence')", "ended with exit code 1 when it was asked for its versions: no licence"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_told_with_its_reason(tmp_path: Path, text: str, problem: str) -> None:
    told = ask(sys.executable, torch_in(tmp_path, text))
    assert told.interpreter.torch is None
    assert (told.interpreter.problem or "").startswith(problem)


def test_an_interpreter_that_is_missing_or_none_is_told(tmp_path: Path) -> None:
    missing = ask(str(tmp_path / "python"), {})
    assert missing.interpreter.problem == "is not there"
    (tmp_path / "python").touch()
    assert not missing.holds()
    assert ask(str(tmp_path / "python"), {}).interpreter.problem == "cannot be run: Permission denied"
    silent = ask("/bin/true", {})
    assert silent.interpreter.problem == "ended with exit code 0 when it was asked for its versions: and said nothing"
    assert not silent.certain


def lives(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] not in ("Z", "X")
    return False


def test_an_import_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    env = torch_in(
        tmp_path,
        "import os, subprocess, time\n"
        f"p = subprocess.Popen(['sleep', '600']); open({str(child)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(600)",
    )
    told = ask(sys.executable, env, timeout_s=3.0)
    assert told.interpreter.problem == "did not import torch within 3 s"
    assert not told.certain
    pid = int(child.read_text())
    deadline = time.monotonic() + 5
    # It has been killed: the kernel may still be at it.
    while lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
