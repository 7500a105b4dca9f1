"""How long the commands take that people type all day: the whole process, from its start to its end.

`orch ps`, `orch submit` (which returns when the run is on disk) and `orch --help`, with a cluster up, in turn with `python -c
pass`, the least that any Python program takes. The submitted folder holds one script, which the controller has already.
The runs wait in the queue meanwhile, so that they take no processor time from the commands.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from harness import Orch, record, spread, table

PS_LIMIT_S = SUBMIT_LIMIT_S = 0.25
HELP_OVER_PYTHON_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=15)
    parser.add_argument("--record", action="store_true", help="write the results to docs/performance.md")
    given = parser.parse_args()
    with Orch(2) as orch:
        sleep = orch.job("sleep", "import time\ntime.sleep(3600)\n", {"workers": 2, "device": "cpu"})
        orch.run("submit", str(sleep))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "orch --help": [sys.executable, "-m", "cli", "--help"],
            "orch ps": [sys.executable, "-m", "cli", "ps"],
            "orch submit": [sys.executable, "-m", "cli", "submit", str(sleep)],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for round_ in range(given.n + 1):
            for name, command in commands.items():
                began = time.perf_counter()
                with orch.start(command) as process:
                    said, _ = process.communicate()
                took = time.perf_counter() - began
                if process.returncode:
                    raise RuntimeError(f"{name}: {said}")
                if round_:
                    seconds[name].append(took)
    python = statistics.median(seconds["python -c pass"])
    limits = {"orch --help": python + HELP_OVER_PYTHON_S, "orch ps": PS_LIMIT_S, "orch submit": SUBMIT_LIMIT_S}
    rows = []
    for name, values in seconds.items():
        limit = limits.get(name)
        verdict = "" if limit is None else f"{limit:.2f}: {'met' if statistics.median(values) <= limit else 'missed'}"
        rows.append([f"`{name}`", spread(values, ".3f"), verdict])
    text = f"n = {given.n}, median (least–most).\n\n" + table(["command", "s", "wanted at most"], rows)
    record("Commands", text, keep=given.record)


if __name__ == "__main__":
    main()
