"""Several hosts on one machine: what a cluster looks like to programs, without the machines.

A host is a set of namespaces (network, PID, mount, UTS, IPC) with one cable to a switch, which is a bridge in a network
namespace of its own. No name or address can meet another lab's or the machine's, so every lab uses 10.77.0.0/24.
Everything hangs on one pipe: when the process that made the lab ends, however it ends, PID 1 of every host reads
end-of-file and the kernel takes all processes, mounts and interfaces with it.

What programs on a host see:

* `/tmp` and `/dev/shm` of their own, so that Unix sockets and Ray's session folders are per host;
* a home folder with the same path everywhere and different content, so that code which takes a path of one host for a
  path of another is found out; `lab.shared` is the one folder that all hosts have in common, as over NFS;
* `/etc/hosts` as Debian writes it: the own name is 127.0.1.1, the others' names are their addresses;
* one interface, `eth0`, with a default route that leads nowhere.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "ip", "unshare", "nsenter", "mount", "setpriv")
NAMESPACES = ("--net", "--mount", "--uts", "--pid", "--ipc")

# PID 1 of a host. The loop at its end blocks on the pipe that the lab holds; bash reaps orphans meanwhile.
BOOT = """
set -e
echo "$NAME" > /proc/sys/kernel/hostname
mount -t tmpfs -o mode=1777,size=2g tmpfs /dev/shm
# A sysfs mounted here shows this namespace's interfaces; the machine's cgroup tree stays where programs look for it.
mount -t sysfs sysfs "$LAB/staging"
[ ! -d /sys/fs/cgroup ] || mount --rbind /sys/fs/cgroup "$LAB/staging/fs/cgroup"
mount --move "$LAB/staging" /sys
mount --bind "$DISK/hosts" /etc/hosts
[ ! -e /etc/resolv.conf ] || mount --bind "$DISK/resolv.conf" /etc/resolv.conf
mount --bind "$DISK/home" "$LAB/home"
for path in $KEEP; do
  mkdir -p "$DISK/tmp/${path#/tmp/}"
  mount --bind "$path" "$DISK/tmp/${path#/tmp/}"
done
mount --rbind "$DISK/tmp" /tmp
mount -t tmpfs tmpfs "$LAB/disks"
cd /
echo ready
while read -r _; do :; done
"""

SWITCH = """
set -e
ip link add switch type bridge
ip addr add 10.77.0.254/24 dev switch
ip link set switch up
echo ready
while read -r _; do :; done
"""


class LabError(RuntimeError):
    """A command of the lab itself, or one run with `check=True`, failed; the message holds what it wrote."""


def why_not() -> str | None:
    """What keeps this machine from having a lab, or None if it can have one."""
    if os.geteuid() != 0:
        return f"making network namespaces needs root, and this is user {os.geteuid()}"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)} (packages iproute2, util-linux)"
    attempt = "ip link add try0 type bridge && ip link add try1 type veth peer name try2 && mount -t sysfs sysfs /sys"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "--mount-proc", "sh", "-c", attempt], capture_output=True, text=True
    )
    return None if tried.returncode == 0 else f"namespaces cannot be made here: {tried.stderr.strip()}"


def wait_until(condition: Callable[[], Any], timeout: float, what: str, every: float = 0.05) -> float:
    """Seconds until `condition` was true; AssertionError naming `what` after `timeout` seconds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(every)
    return time.monotonic() - start


class Running(subprocess.Popen[str]):
    """A command on a host. Signals go to the command itself, not to the nsenter that stands before it; when nsenter
    ends, so does the command."""

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        # A test that fails must not wait for a command that would have been stopped a line later.
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            for process in psutil.Process(self.pid).children() or [psutil.Process(self.pid)]:
                process.send_signal(sig)


@dataclass(frozen=True)
class Process:
    """A process of a host, as seen from outside and from inside."""

    pid: int
    """Outside: what `os.kill` and psutil take here."""
    inner_pid: int
    command: str


@dataclass(eq=False)
class Host:
    """One host of a lab; on from the start."""

    name: str
    address: str
    lab: Lab
    variables: dict[str, str] = field(default_factory=dict)
    """Added to the environment of every later command, until the lab is reset."""
    _unshare: subprocess.Popen[str] | None = field(default=None, repr=False)
    _init: int = field(default=0, repr=False)

    # ------------------------------------------------------------------------------------------------ its folders

    @property
    def disk(self) -> Path:
        """Where its private folders are, seen from outside: `disk / "home"`, `disk / "tmp"`."""
        return self.lab.folder / "disks" / self.name

    @property
    def home(self) -> Path:
        """Its home folder, seen from inside; the same path on every host."""
        return self.lab.folder / "home"

    @property
    def env(self) -> dict[str, str]:
        """The environment of every command: nothing of the caller's but where Python, orch and the libraries are."""
        path = [str(self.lab.folder / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        env = {
            "PATH": os.pathsep.join(path),
            "HOME": str(self.home),
            "USER": "root",
            "LANG": "C.UTF-8",
            "ORCH_HOME": str(self.home / ".orch"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        python_path = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        if not _installed():
            python_path.append(str(REPOSITORY))
        if python_path:
            env["PYTHONPATH"] = os.pathsep.join(python_path)
        return env | self.variables

    # ------------------------------------------------------------------------------------------------ power

    @property
    def is_on(self) -> bool:
        return self._unshare is not None and self._unshare.poll() is None

    def power_on(self) -> None:
        assert not self.is_on, f"{self.name} is on already"
        for folder in ("home", "tmp"):
            (self.disk / folder).mkdir(parents=True, exist_ok=True)
        (self.disk / "tmp").chmod(0o1777)
        (self.disk / "home").chmod(0o700)
        others = [f"{h.address} {h.name}" for h in self.lab.hosts if h is not self]
        (self.disk / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"127.0.1.1 {self.name}", *others, ""]))
        (self.disk / "resolv.conf").write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
        env = {
            "NAME": self.name,
            "LAB": str(self.lab.folder),
            "DISK": str(self.disk),
            "KEEP": " ".join(shlex.quote(path) for path in needed_of_tmp()),
        }
        self._unshare = _start_holder(
            ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", "-c", BOOT], env
        )
        self._init = psutil.Process(self._unshare.pid).children()[0].pid
        # The same MAC after each restart, as a real card has, or the peers would go on talking to the old one.
        mac = f"02:00:0a:4d:00:{int(self.address.split('.')[-1]):02x}"
        self.lab._on_switch(f"link add {self.name} type veth peer name eth0 address {mac} netns {self._init}")
        self.lab._on_switch(f"link set {self.name} master switch", f"link set {self.name} up")
        self._on_network(
            f"addr add {self.address}/24 dev eth0",
            "link set lo up",
            "link set eth0 up",
            "route add default via 10.77.0.254",
        )

    def power_off(self) -> None:
        """As when the plug is pulled: every process is gone when this returns, and no peer is told."""
        if self._unshare is None:
            return
        if self.is_on:
            # First the cable: the kernel would otherwise say goodbye on each connection of a killed process. Deleted,
            # not down: the network namespace can live on while the kernel retries, and hold the port's name.
            self.lab._on_switch(f"link delete {self.name}")
            os.kill(self._init, signal.SIGKILL)
        self._unshare.communicate()
        self._unshare = None

    def restart(self) -> None:
        """Off and on again; the disk (home, /tmp) keeps its content, /dev/shm does not."""
        self.power_off()
        self.power_on()

    # ------------------------------------------------------------------------------------------------ commands

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        **popen: Any,
    ) -> Running:
        """Start `argv` on the host: text mode, output to pipes, in the home folder. `env` is added to `host.env`."""
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        inside = ["setpriv", "--pdeathsig", "KILL", "env", "-C", str(cwd or self.home), *map(str, argv)]
        return Running(
            self._nsenter(*NAMESPACES, *inside), text=True, env=self.env | dict(env or {}), **options | popen
        )

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        timeout: float = 60,
        check: bool = False,
        input: str | None = None,  # noqa: A002  as in subprocess.run
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on the host to its end.

        Raises LabError with both outputs if `check` and the status is not 0, or after `timeout` seconds.
        """
        stdin: int | IO[str] = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(argv, env=env, cwd=cwd, stdin=stdin) as process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise LabError(_told(self.name, argv, f"took more than {timeout:g} s", out, err)) from None
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            raise LabError(_told(self.name, argv, f"ended with {process.returncode}", out, err))
        return subprocess.CompletedProcess([str(a) for a in argv], process.returncode, out, err)

    def orch(self, *argv: str | Path, **run: Any) -> subprocess.CompletedProcess[str]:
        """Run `orch ...`; keyword arguments as for `run`."""
        return self.run(["orch", *argv], **run)

    def python(self, code: str, **run: Any) -> subprocess.CompletedProcess[str]:
        """Run Python code with the tests' own interpreter; keyword arguments as for `run`."""
        return self.run([sys.executable, "-c", code], **run)

    def processes(self, command: str = "", environ: str = "") -> list[Process]:
        """Its processes (without PID 1) whose command line holds `command` and whose environment holds `environ`."""
        found = []
        namespace = _pid_namespace(self._init)
        for pid in psutil.pids():
            if pid == self._init or namespace is None or _pid_namespace(pid) != namespace:
                continue
            # A process may end between the list and the look at it.
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace") if environ else ""
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # A zombie has no command line; it holds nothing and is about to be reaped.
            if line and command in line and environ in variables:
                inner = next(row for row in status.splitlines() if row.startswith("NSpid:")).split()[-1]
                found.append(Process(pid, int(inner), line))
        return found

    # ------------------------------------------------------------------------------------------------ network

    def link(self, state: str) -> None:
        """`link("down")` pulls its cable at the switch, `link("up")` puts it back; its processes live on."""
        self.lab._on_switch(f"link set {self.name} {state}")

    def drop_from(self, other: Host) -> None:
        """Lose every packet that arrives from `other`: one direction only. Needs nft."""
        self.drop(f"ip saddr {other.address}")

    def drop(self, match: str) -> None:
        """Lose arriving packets that nftables matches so: `tcp dport 6379`, `numgen random mod 100 < 5`. Needs nft."""
        rules = f"""
            add table inet lab
            add chain inet lab input {{ type filter hook input priority 0; }}
            add rule inet lab input iifname "eth0" {match} drop
        """
        _call(self._nsenter("--net", "nft", "-f", "-"), rules)

    def throttle(self, rate: str) -> None:
        """Send no faster than `rate`, such as `8mbit`. Needs tc, and the kernel's token bucket."""
        self._shape(f"qdisc replace dev eth0 root tbf rate {rate} burst 32kb latency 400ms")

    def heal(self) -> None:
        """The cable is in, nothing is dropped, and nothing is slowed down."""
        if shutil.which("nft"):
            _call(self._nsenter("--net", "nft", "-f", "-"), "add table inet lab\ndelete table inet lab\n")
        if shutil.which("tc"):
            # There must be one that can be deleted.
            self._shape("qdisc replace dev eth0 root pfifo", "qdisc delete dev eth0 root")
        self.link("up")

    def _shape(self, *commands: str) -> None:
        _call(self._nsenter("--net", "tc", "-batch", "-"), "\n".join(commands))

    def _on_network(self, *commands: str) -> None:
        _call(self._nsenter("--net", "ip", "-batch", "-"), "\n".join(commands))

    def _nsenter(self, *command: str) -> list[str]:
        assert self.is_on, f"{self.name} is off"
        return ["nsenter", f"--target={self._init}", *command]


class Lab:
    """`count` hosts named lab1, lab2, ... on one switch. A context manager; `close()` leaves nothing behind."""

    def __init__(self, count: int) -> None:
        """Raises LabError where namespaces cannot be made."""
        # Not under /tmp, which every host covers with its own.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/var/tmp"))
        self.shared = self.folder / "shared"
        """The one folder that all hosts and the tests have in common, under the same path."""
        for name in ("shared", "home", "disks", "staging", "bin"):
            (self.folder / name).mkdir()
        command = self.folder / "bin" / "orch"
        command.write_text(f"#!{sys.executable}\nimport sys\nfrom cli.main import main\nsys.exit(main())\n")
        command.chmod(0o755)
        self.hosts = [Host(f"lab{n}", f"10.77.0.{n}", self) for n in range(1, count + 1)]
        self._switch: subprocess.Popen[str] | None = None
        try:
            self._switch = _start_holder(["unshare", "--net", "bash", "-c", SWITCH], {})
            for host in self.hosts:
                host.power_on()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def reset(self) -> None:
        """Every host as new: no process, empty disks, all cables in. About 0.1 s a host."""
        for host in self.hosts:
            host.power_off()
        for host in self.hosts:
            shutil.rmtree(host.disk, ignore_errors=True)
            host.variables.clear()
        for item in self.shared.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        for host in self.hosts:
            host.power_on()

    def close(self) -> None:
        for host in self.hosts:
            host.power_off()
        if self._switch is not None:
            self._switch.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _on_switch(self, *commands: str) -> None:
        assert self._switch is not None
        _call(["nsenter", f"--target={self._switch.pid}", "--net", "ip", "-batch", "-"], "\n".join(commands))


PREFIX = "orch-lab-"


def remove_leftovers() -> None:
    """Delete the folders of labs whose process is dead. There is nothing else that could be left."""
    for folder in Path("/var/tmp").glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _start_holder(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that says "ready" and then lives as long as this one holds its standard input open."""
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | env
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        if line.strip() == "ready":
            return process
        said.append(line)
    process.communicate()
    raise LabError(f"a host of the lab did not start: {''.join(said).strip()}")


def _call(argv: Sequence[str], text: str) -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(_told("the lab", argv, f"ended with {done.returncode}", done.stdout, done.stderr + text))


def _told(where: str, argv: Sequence[str | Path], how: str, out: str, err: str) -> str:
    return f"{where}: {shlex.join(map(str, argv))} {how}\n--- stdout\n{out[-4000:]}\n--- stderr\n{err[-4000:]}"


def _pid_namespace(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def _installed() -> bool:
    try:
        importlib.metadata.distribution("orch-train")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def needed_of_tmp() -> list[str]:
    """What a host must still see of the machine's /tmp: the repository and the interpreter, if they are there."""
    paths = {str(REPOSITORY), sys.prefix, sys.base_prefix, *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    return sorted(path for path in paths if path.startswith("/tmp/") and os.path.isdir(path))
