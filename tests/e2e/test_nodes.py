"""Nodes that are drained, as users have them: real ranks on a real Ray."""

from datetime import datetime

from orch_home import COUNTS_ON
from rows import fault, representative

IGNORES_SIGTERM = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("stubborn", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.05)
"""


@representative
@fault(22)
def test_runs_on_a_drained_node_save_or_are_killed_after_their_grace_and_go_on_after_undrain(home, job, gate, measured):
    saver = home.submit(job(COUNTS_ON, name="saver", arguments=gate, checkpoint="ckpt"))
    stubborn = home.submit(job(IGNORES_SIGTERM, name="stubborn", folder="s", arguments=gate, grace="2s"))
    home.prints(saver, "from 0")
    home.prints(stubborn, "stubborn")
    (node,) = home("nodes", "-o", "name").stdout.split()
    assert home("drain", "no-such-node", code=3).stderr == "Error: no such node: no-such-node\n"

    measured.injected()
    (drained,) = home.json("drain", node, "--reason", "new cables")
    assert (drained["already"], sorted(drained["runs"])) == (False, sorted([saver, stubborn]))
    measured.detected()
    for run, code in ((saver, 0), (stubborn, -9)):
        found = home.reaches(run, "queued")
        (attempt,) = found["attempts"]
        assert (attempt["outcome"], attempt["failure"], attempt["exit_codes"]) == ("drained", None, {"0": code})
    asked = next(one["at"] for one in found["events"] if one["event"] == "stop_asked")
    took = datetime.fromisoformat(attempt["ended_at"]) - datetime.fromisoformat(asked)
    assert 2 <= took.total_seconds() <= 2 + 2
    assert home.ranks() == {}

    note = f"drained by {drained['drained']['by']}: new cables"
    assert home("nodes").stdout.split("\t")[-1].strip() == note
    assert f"{node}: {note}" in home("why", saver).stdout
    assert note in home("topo").stdout

    home("undrain", node)
    home.prints(saver, "from 7")
    measured.recovered()
    measured.note("drained; back when the node is undrained")
    gate.touch()
    for run in (saver, stubborn):
        assert [one["outcome"] for one in home.end(run)["attempts"]] == ["drained", "succeeded"]
    events = home.json("nodes", "--history")
    assert [(one["node"], one["what"]) for one in events if one["what"].endswith("drained")] == [
        (node, "drained"),
        (node, "undrained"),
    ]
