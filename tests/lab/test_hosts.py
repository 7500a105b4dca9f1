"""The lab itself: whether its hosts are as separate, and as connected, as machines are."""

import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hosts import LabError, needed_of_tmp, remove_leftovers, wait_until

import orchestrator

pytestmark = pytest.mark.lab

LISTEN = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("listening", flush=True)
    while True:
        connection, peer = server.accept()
        connection.sendall(socket.gethostname().encode())
        connection.close()
"""
CONNECTS = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7000), timeout=1)
except ConnectionRefusedError:
    print("refused")
"""
ASK = "import socket, sys; print(socket.create_connection((sys.argv[1], 7000), timeout=1).recv(100).decode())"


@pytest.fixture
def listening(lab):
    """Each host answers on port 7000 with its own name."""
    servers = [host.popen([sys.executable, "-c", LISTEN]) for host in lab.hosts]
    for server in servers:
        assert server.stdout.readline() == "listening\n"
    yield lab.hosts
    for server in servers:
        server.kill()
        server.communicate()


def ask(host, target):
    return host.run([sys.executable, "-c", ASK, target]).stdout.strip()


def test_each_host_reaches_each_other_by_address_and_by_name(listening):
    for host in listening:
        others = [other for other in listening if other is not host]
        assert [ask(host, other.address) for other in others] == [other.name for other in others]
        assert [ask(host, other.name) for other in others] == [other.name for other in others]


def test_a_host_with_its_cable_pulled_is_out_of_reach_and_its_processes_live_on(listening):
    lab1, lab2, lab3 = listening
    lab2.link("down")
    assert ask(lab1, lab2.address) == ""
    assert ask(lab1, lab3.address) == "lab3"
    assert ask(lab2, "127.0.0.1") == "lab2"
    lab2.heal()
    wait_until(lambda: ask(lab1, lab2.address) == "lab2", 5, "lab2 is back")


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft (nftables) is not installed")
def test_packets_can_be_lost_between_two_hosts_only(listening):
    lab1, lab2, lab3 = listening
    lab1.drop_from(lab2)
    assert ask(lab2, lab1.address) == ""
    assert ask(lab3, lab1.address) == "lab1"
    lab1.heal()
    assert ask(lab2, lab1.address) == "lab1"


def test_nothing_of_the_machine_but_the_lab_is_in_reach(lab):
    assert lab.hosts[0].run(["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]
    assert set(lab.hosts[0].run(["ls", "/tmp"]).stdout.split()) == {Path(path).parts[2] for path in needed_of_tmp()}
    assert lab.hosts[0].run(["ls", lab.folder / "disks"]).stdout == ""


def test_a_command_sees_the_code_under_test_and_nothing_else_of_the_callers_environment(lab, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    code = "import os, orchestrator as o; print(o.__file__, os.environ.get('RAY_ADDRESS'), os.environ['ORCH_HOME'])"
    done = lab.hosts[0].python(code, check=True)
    assert done.stdout.split() == [orchestrator.__file__, "None", str(lab.hosts[0].home / ".orch")]


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "~"])
def test_a_file_of_one_host_is_not_on_another(lab, folder):
    lab1, lab2, _ = lab.hosts
    path = f"{folder.replace('~', str(lab1.home))}/mine"
    lab1.run(["touch", path], check=True)
    assert lab1.run(["test", "-e", path]).returncode == 0
    assert lab2.run(["test", "-e", path]).returncode == 1


def test_the_shared_folder_is_the_same_everywhere(lab):
    lab.hosts[0].run(["touch", lab.shared / "ours"], check=True)
    assert lab.hosts[1].run(["ls", lab.shared]).stdout == "ours\n"
    assert (lab.shared / "ours").exists()


def test_processes_are_found_by_command_and_by_environment(lab):
    lab1, lab2, _ = lab.hosts
    with lab1.popen(["sleep", "1000"], env={"MARK": "a.1"}) as sleep:
        found = wait_for_process(lab1, "sleep 1000", environ="MARK=a.1")
        assert lab1.run(["cat", f"/proc/{found.inner_pid}/comm"]).stdout == "sleep\n"
        assert psutil.Process(found.pid).name() == "sleep"
        assert lab1.processes(environ="MARK=a.2") == []
        assert lab2.processes() == []
        sleep.terminate()
    assert sleep.returncode == -signal.SIGTERM
    assert lab1.processes() == []


def wait_for_process(host, command, environ=""):
    """The process with exactly this command line: the programs that start it have it as their last words."""

    def found():
        return [process for process in host.processes(command, environ) if process.command == command]

    wait_until(found, 5, f"{command} runs on {host.name}")
    return found()[0]


def test_an_orphan_is_reaped(lab):
    lab1 = lab.hosts[0]
    lab1.run(["bash", "-c", "(setsid sleep 0.1 &)"], check=True)
    count = "import psutil; print(len(psutil.pids()))"
    wait_until(lambda: lab1.python(count).stdout == "2\n", 5, "only PID 1 and the counter are left")


def test_a_signal_reaches_the_command_and_its_status_comes_back(lab):
    code = "import signal, sys; signal.signal(2, lambda *_: sys.exit(7)); print('set', flush=True); signal.pause()"
    with lab.hosts[0].popen([sys.executable, "-c", code]) as process:
        assert process.stdout.readline() == "set\n"
        process.send_signal(signal.SIGINT)
    assert process.returncode == 7


def test_a_command_that_takes_too_long_is_killed_and_says_what_it_wrote(lab):
    with pytest.raises(LabError, match=r"lab1: .* took more than 0.5 s(?s:.*)so far"):
        lab.hosts[0].run(["bash", "-c", "echo so far; sleep 1000"], timeout=0.5)
    wait_until(lambda: not lab.hosts[0].processes("bash"), 5, "the command is gone")


def test_power_off_ends_every_process_and_tells_no_peer(lab):
    _, lab2, lab3 = lab.hosts
    lab2.run(["bash", "-c", "setsid nohup sleep 1000 >/dev/null 2>&1 &"], check=True)
    daemon = wait_for_process(lab2, "sleep 1000")
    serve = "import socket; peer, _ = socket.create_server(('', 7001)).accept(); peer.send(b'x'); peer.recv(1)"
    connect = f"""
import socket, time
deadline = time.monotonic() + 10
while True:
    try:
        peer = socket.create_connection(("{lab2.address}", 7001))
        break
    except ConnectionRefusedError:
        assert time.monotonic() < deadline
peer.recv(1)
print("connected", flush=True)
peer.settimeout(1)
try:
    print("told", peer.recv(1))
except TimeoutError:
    print("not told")
"""
    with lab2.popen([sys.executable, "-c", serve]) as server, lab3.popen([sys.executable, "-c", connect]) as client:
        assert client.stdout.readline() == "connected\n"
        lab2.power_off()
        assert server.wait(timeout=5) == -signal.SIGKILL
        assert client.stdout.readline() == "not told\n"
    assert not psutil.pid_exists(daemon.pid)
    lab2.restart()
    assert lab3.run([sys.executable, "-c", CONNECTS, lab2.address]).stdout == "refused\n"


def test_a_restarted_host_keeps_its_disk_and_loses_its_memory(lab):
    lab2 = lab.hosts[1]
    lab2.run(["touch", lab2.home / "kept", "/tmp/kept", "/dev/shm/lost"], check=True)
    lab2.restart()
    assert lab2.run(["ls", lab2.home, "/tmp", "/dev/shm"]).stdout.count("kept") == 2
    assert lab2.run(["ls", "/dev/shm"]).stdout == ""


def test_a_killed_test_run_leaves_nothing_but_a_folder_and_the_next_run_removes_that():
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from hosts import Lab
lab = Lab(2)
sleep = lab.hosts[1].popen(["sleep", "1000"])
print(lab.hosts[1]._init, lab.folder, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        init, folder = run.stdout.readline().split()
        init = psutil.Process(int(init))
        run.kill()

    def gone() -> bool:
        # It may go between the one question and the other.
        with suppress(psutil.NoSuchProcess):
            return not init.is_running() or init.status() == psutil.STATUS_ZOMBIE
        return True

    wait_until(gone, 5, "PID 1 of the host is gone")
    assert Path(folder).exists()
    remove_leftovers()
    assert not Path(folder).exists()
