"""How many runs a second can be submitted, each of them on disk before its submitter is told so; and commands beside a long queue.

1 client, then 8 (a process each, with an HTTP connection that it keeps), send runs to the API one after the other. A run that holds
every slot is there before them, so they wait in the queue. Beside the rate: the time of one call, and the processor time that the
controller takes for each, by which one sees what the limit is: where it comes near to 1/rate, it is the controller's one processor
and neither the disk nor the clients. What a client does between two calls is in the rate.

Before that an array of 10,000 runs is submitted by `orch submit`; with all of these waiting, `orch ps` (as many rows as a terminal
shows) and `orch why` are timed, from the start of the command to its end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import psutil
from harness import Orch, record, spread, table

ARRAY = 10_000


def client(url: str, token: str, count: int) -> None:
    """Reads a body from standard input, waits for a line, submits it so many times; prints the seconds of each call as JSON."""
    body = json.loads(sys.stdin.readline())
    split = urlsplit(url)
    assert split.hostname is not None
    connection = http.client.HTTPConnection(split.hostname, split.port, timeout=60)
    connection.connect()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    print("ready", flush=True)
    sys.stdin.readline()
    took = []
    for number in range(count):
        data = json.dumps(body | {"key": f"{time.time_ns()}-{id(body)}-{number}"})
        began = time.perf_counter()
        connection.request("POST", "/api/v1/runs", data, headers)
        answer = connection.getresponse()
        text = answer.read()
        took.append(time.perf_counter() - began)
        if answer.status != 201:
            raise RuntimeError(f"HTTP status {answer.status}: {text.decode()}")
    print(json.dumps(took))


def round_of(clients: int, each: int, url: str, token: str, body: dict[str, Any]) -> tuple[float, list[float]]:
    """Seconds for all of it, and of each call."""
    command = [sys.executable, __file__, "--client", url, token, str(each)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    for process in processes:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(body) + "\n")
        process.stdin.flush()
        process.stdout.readline()
    began = time.perf_counter()
    for process in processes:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    took = [seconds for process in processes for seconds in json.loads(process.stdout.readline())]  # type: ignore[union-attr]
    seconds = time.perf_counter() - began
    if any(process.wait() for process in processes):
        raise RuntimeError("a client failed")
    return seconds, took


def rates(given: argparse.Namespace, url: str, token: str, body: dict[str, Any], controller: psutil.Process) -> str:
    rows = []
    for clients in (1, 8):
        rate, calls, cpu = [], [], []
        for _ in range(given.n):
            each = given.count // clients
            used = sum(controller.cpu_times()[:2])
            seconds, took = round_of(clients, each, url, token, body)
            rate.append(len(took) / seconds)
            calls.append(statistics.median(took) * 1e3)
            cpu.append((sum(controller.cpu_times()[:2]) - used) / len(took) * 1e3)
        rows.append([str(clients), spread(rate, ".0f"), spread(calls, ".1f"), spread(cpu, ".2f")])
    titles = ["clients", "submissions a second", "one call, ms", "controller's CPU for each, ms"]
    return table(titles, rows)


def long_queue(orch: Orch, n: int) -> tuple[str, int]:
    """Commands with an array of 10,000 waiting beside all the rest, and how many wait in all."""
    job = orch.job("sweep", "print()\n", {"workers": 1, "device": "cpu"})
    job.write_text(f"run: sweep.py {{x}}\nname: sweep\ndevice: cpu\narray: {{x: 0..{ARRAY - 1}}}\n")
    began = time.perf_counter()
    orch.run("submit", str(job))
    rows = [[f"`orch submit` of an array of {ARRAY:,}", f"{time.perf_counter() - began:.2f}", "3"]]
    last = max(run["id"] for run in orch.api("runs?live=1"))
    waiting = len(orch.api("runs?live=1")) - 1
    for command, most in ((("ps", "--limit", "200"), "0.5"), (("why", str(last)), "0.5"), (("ps", "--json"), "")):
        took = []
        for _ in range(n):
            began = time.perf_counter()
            orch.run(*command)
            took.append(time.perf_counter() - began)
        rows.append([f"`orch {' '.join(command)}`", spread(took), most])
    return table(["command", "s", "wanted at most"], rows), waiting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=7, help="rounds")
    parser.add_argument("--count", type=int, default=800, help="submissions in a round")
    parser.add_argument("--record", action="store_true", help="write the results to docs/performance.md")
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        client(given.client[0], given.client[1], int(given.client[2]))
        return
    with Orch(1) as orch:
        sleep = orch.job("sleep", "import time\ntime.sleep(3600)\n", {"workers": 1, "device": "cpu"})
        first = orch.json("submit", str(sleep))["id"]
        known = orch.json("show", str(first))
        body = {"spec": known["spec"], "code": known["code"], "workdir": known["workdir"], "user": known["user"]}
        url = json.loads((orch.home / "controller.json").read_text())["url"]
        token = (orch.home / "token").read_text().strip()
        commands, waiting = long_queue(orch, given.n)
        orch.run("cancel", "sweep")
        text = rates(given, url, token, body, psutil.Process(orch.controller_pid()))
        queued = len(orch.api("runs?live=1")) - 1
    said = f"n = {given.n} rounds of {given.count}, median (least–most); {queued:,} runs were queued at the end. "
    said += "Wanted: 1,000 a second from 8 clients, which share the cores with the controller."
    record("Submissions", f"{said}\n\n{text}\n\n{waiting:,} runs wait:\n\n{commands}", keep=given.record)


if __name__ == "__main__":
    main()
