"""Ray on the hosts of a lab: the head on the first host, a node on each."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Mapping

from hosts import Host, Lab, LabError, Running, wait_until

PORT = 6379

# A dead node is noticed after about 8 s; with Ray's own values it takes over a minute.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}

# Otherwise every node starts one Python worker per CPU before anybody has asked for any.
LIGHT = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}

ALIVE = """
import json, sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values()
print(json.dumps([node.node_name for node in nodes if node.state == 0]))
"""


class RayCluster:
    """A Ray cluster over all hosts of a lab. It ends with the hosts: `lab.reset()` or `lab.close()`."""

    def __init__(
        self,
        lab: Lab,
        *,
        num_cpus: int = 4,
        num_gpus: int = 0,
        labels: Mapping[str, Mapping[str, str]] | None = None,
        auth: str = "token",
        dashboard: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it; every host's commands get RAY_AUTH_MODE and ORCH_ADDRESS from then on.

        `num_gpus` is per node, and the GPUs need not exist. `labels` are node labels by host name. `auth` is `token`
        (one secret, in `~/.ray/auth_token` of each host) or `disabled`. `env` is added to the environment of Ray's own
        processes. Raises LabError with what `ray start` wrote.
        """
        self.lab = lab
        self.head = lab.hosts[0]
        self.address = f"{self.head.address}:{PORT}"
        self.num_cpus, self.num_gpus = num_cpus, num_gpus
        self.labels = dict(labels or {})
        self.dashboard = dashboard
        self.env = HEALTH_CHECKS | LIGHT | dict(env or {})
        token = secrets.token_hex(32)
        for host in lab.hosts:
            host.variables |= {"RAY_AUTH_MODE": auth, "ORCH_ADDRESS": self.address}
            if auth == "token":
                file = host.disk / "home" / ".ray" / "auth_token"
                file.parent.mkdir(mode=0o700)
                file.touch(mode=0o600)
                file.write_text(token)
        start = time.monotonic()
        self._start()
        self.start_seconds = time.monotonic() - start

    def alive(self) -> set[str]:
        """The names of the hosts whose node Ray takes for alive; takes about a second."""
        done = self.head.run([sys.executable, "-c", ALIVE, self.address], timeout=30, check=True)
        return set(json.loads(done.stdout))

    def wait_alive(self, host: Host, timeout: float = 20) -> float:
        """Seconds until Ray takes the host's node for alive."""
        return wait_until(lambda: host.name in self.alive(), timeout, f"Ray knows {host.name} as alive")

    def wait_dead(self, host: Host, timeout: float = 20) -> float:
        """Seconds until Ray takes the host's node for dead."""
        return wait_until(lambda: host.name not in self.alive(), timeout, f"Ray knows {host.name} as dead")

    def join(self, host: Host) -> None:
        """Start Ray's node on a host that was restarted."""
        _finish(host, self._begin(host))

    def _start(self) -> None:
        started = {self.head: self._begin(self.head)}
        # The other nodes wait for the head's by themselves once there is somebody to ask.
        listens = ["bash", "-c", f"exec 3<>/dev/tcp/{self.head.address}/{PORT}"]
        wait_until(
            lambda: self.head.run(listens).returncode == 0 or started[self.head].poll() not in (None, 0),
            60,
            "Ray's head listens",
        )
        if not started[self.head].poll():
            started |= {host: self._begin(host) for host in self.lab.hosts[1:]}
        for host, process in started.items():
            _finish(host, process)

    def _begin(self, host: Host) -> Running:
        return host.popen(self._argv(host), env=self.env)

    def _argv(self, host: Host) -> list[str]:
        argv = ["ray", "start", f"--node-ip-address={host.address}", f"--node-name={host.name}"]
        argv += [f"--num-cpus={self.num_cpus}", f"--num-gpus={self.num_gpus}", "--object-store-memory=100000000"]
        argv += ["--include-log-monitor=false", "--disable-usage-stats"]
        if labels := self.labels.get(host.name):
            argv.append("--labels=" + ",".join(f"{key}={value}" for key, value in labels.items()))
        if host is self.head:
            argv += ["--head", f"--port={PORT}", f"--include-dashboard={str(self.dashboard).lower()}", "--no-monitor"]
        else:
            argv.append(f"--address={self.address}")
        return argv


def _finish(host: Host, process: Running) -> None:
    out, err = process.communicate(timeout=90)
    if process.returncode != 0:
        raise LabError(f"ray start on {host.name} ended with {process.returncode}\n{out[-3000:]}\n{err[-3000:]}")
