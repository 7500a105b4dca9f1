"""Runs every benchmark, one after the other, and writes the results to docs/performance.md: about ten minutes on a quiet machine.

    python benchmarks/run_all.py [-n ROUNDS] [--ray-train-python PYTHON] [--no-record]

One that fails does not stop the others; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=7, help="rounds of each")
    parser.add_argument("--ray-train-python", help="an interpreter with ray[train], for launch.py")
    parser.add_argument("--no-record", action="store_true", help="print the results only")
    given = parser.parse_args()
    keep = [] if given.no_record else ["--record"]
    train = ["--ray-train-python", given.ray_train_python] if given.ray_train_python else []
    jobs = [
        ["cli.py", "-n", str(max(given.n, 15) if given.n >= 7 else given.n), *keep],
        ["controller_memory.py", *keep],
        ["submissions.py", "-n", str(given.n), *keep],
        ["launch.py", "-n", str(given.n), *train, *keep],
    ]
    failed = []
    for script, *arguments in jobs:
        began = time.monotonic()
        print(f"--- {script}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode:
            failed.append(script)
        print(f"--- {script}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
