"""How many runs a second can be submitted, each of them on disk before its submitter is told so.

1 client, then 8 (threads of this process, an HTTP connection each), send runs to the API one after the other. A run that holds
every slot is there before them, so they wait in the queue. Beside the rate: the time of one call, and the processor time that the
controller takes for each, by which one sees what the limit is: where it comes near to 1/rate, it is the controller's one processor
and neither the disk nor the clients.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import psutil
from harness import Orch, record, spread, table


def submit_many(url: str, token: str, body: dict[str, Any], client: int, count: int, took: list[float]) -> None:
    """Submits so many runs over one connection; appends the seconds of each call. Raises RuntimeError for a refusal."""
    split = urlsplit(url)
    assert split.hostname is not None
    connection = http.client.HTTPConnection(split.hostname, split.port, timeout=60)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    for number in range(count):
        began = time.perf_counter()
        connection.request(
            "POST", "/api/v1/runs", json.dumps(body | {"key": f"{began}-{client}-{number}"}), headers=headers
        )
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 201:
            raise RuntimeError(f"HTTP status {answer.status}: {text.decode()}")
        took.append(time.perf_counter() - began)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=7, help="rounds")
    parser.add_argument("--count", type=int, default=100, help="submissions in a round")
    parser.add_argument("--record", action="store_true", help="write the results to docs/performance.md")
    given = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 8: []}
    calls: dict[int, list[float]] = {1: [], 8: []}
    cpu: dict[int, list[float]] = {1: [], 8: []}
    with Orch(1) as orch:
        sleep = orch.job("sleep", "import time\ntime.sleep(3600)\n", {"workers": 1, "device": "cpu"})
        first = orch.json("submit", str(sleep))["id"]
        known = orch.json("show", str(first))
        body = {"spec": known["spec"], "code": known["code"], "workdir": known["workdir"], "user": known["user"]}
        url = json.loads((orch.home / "controller.json").read_text())["url"]
        token = (orch.home / "token").read_text().strip()
        controller = psutil.Process(orch.controller_pid())
        for _ in range(given.n):
            for clients, of in rates.items():
                each = given.count // clients
                took: list[float] = []
                threads = [
                    threading.Thread(target=submit_many, args=(url, token, body, client, each, took))
                    for client in range(clients)
                ]
                used, began = sum(controller.cpu_times()[:2]), time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                seconds = time.perf_counter() - began
                if len(took) != each * clients:
                    raise RuntimeError(f"{each * clients - len(took)} submissions were refused")
                of.append(len(took) / seconds)
                calls[clients].append(statistics.median(took) * 1e3)
                cpu[clients].append((sum(controller.cpu_times()[:2]) - used) / len(took) * 1e3)
        queued = len(orch.api("runs?live=1")) - 1
    rows = [
        [str(clients), spread(rates[clients], ".0f"), spread(calls[clients], ".1f"), spread(cpu[clients], ".1f")]
        for clients in rates
    ]
    titles = ["clients", "submissions a second", "one call, ms", "controller's CPU for each, ms"]
    text = f"n = {given.n} rounds of {given.count}, median (least–most); {queued} runs were queued at the end."
    record("Submissions", f"{text}\n\n{table(titles, rows)}", keep=given.record)


if __name__ == "__main__":
    main()
