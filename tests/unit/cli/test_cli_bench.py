"""`orch bench`: which runs it asks for, what it prints of their results, and how it draws them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.bench_plan import Ask, bytes_of, plan_runs
from cli.bench_run import size
from cli.bench_show import columns, side_by_side, suspects
from cli.errors import Fail
from cli.plot import Line, by_size, draw


def node(name: str, total: int = 8, state: str = "up", device: str = "cuda") -> dict[str, Any]:
    return {"node": name, "total": total, "state": state, "device": device}


#    pod p1: leaf l1: gpu-1 gpu-2    leaf l2: gpu-10
NODES = [node("gpu-1"), node("gpu-10", 4), node("gpu-2")]
DOMAINS = [
    {"level": "leaf", "name": "l1", "parent": "p1", "members": ["gpu-1", "gpu-2"]},
    {"level": "leaf", "name": "l2", "parent": "p1", "members": ["gpu-10"]},
    {"level": "pod", "name": "p1", "parent": None, "members": []},
]
CPUS = [node("a", 12, device="cpu"), node("b", 12, device="cpu")]


@pytest.mark.parametrize(
    ("ask", "workers", "only", "near"),
    [
        (Ask(), "1x8", None, None),
        (Ask(per_node=2), "1x2", None, None),
        (Ask(nodes=("gpu-2",)), "1x8", ["gpu-2"], None),
        (Ask(nodes=("gpu-1", "gpu-10")), "2x4", ["gpu-1", "gpu-10"], None),
        (Ask(nodes=("l1",)), "2x8", ["gpu-1", "gpu-2"], None),
        (Ask(nodes=("p1",), per_node=1), "3x1", ["gpu-1", "gpu-2", "gpu-10"], None),
        (Ask(near="leaf"), "2x8", None, "leaf!"),
        (Ask(near="nvlink"), "1x8", None, "nvlink!"),
        (Ask(gpus=16), 16, None, None),
        (Ask(gpus=16, near="leaf"), 16, None, "leaf!"),
    ],
)
def test_the_run_is_placed_where_asked(ask: Ask, workers: object, only: object, near: object) -> None:
    (job,) = plan_runs(ask, NODES, DOMAINS).runs
    assert (job["workers"], job.get("only"), job.get("near")) == (workers, only, near)
    assert (job["device"], job["tags"]) == ("cuda", {"orch": "bench"})


def test_pairs_are_neighbours_by_their_natural_names_and_a_lone_one_is_beside_the_first() -> None:
    runs = plan_runs(Ask(), NODES, DOMAINS, pairs=True).runs
    assert [(job["only"], job["workers"]) for job in runs] == [
        (["gpu-1", "gpu-2"], "2x4"),
        (["gpu-10", "gpu-1"], "2x4"),
    ]


def test_on_cpus_two_ranks_of_a_node_or_one_of_each_are_measured() -> None:
    assert [job["workers"] for job in plan_runs(Ask(), CPUS, []).runs] == ["1x2"]
    assert [job["workers"] for job in plan_runs(Ask(nodes=("a", "b")), CPUS, []).runs] == ["2x1"]
    assert plan_runs(Ask(), CPUS, []).runs[0]["device"] == "cpu"


def test_cpu_ranks_are_measured_on_nodes_without_gpus() -> None:
    (job,) = plan_runs(Ask(device="cpu"), [*NODES, *CPUS], []).runs
    assert (job["device"], job["workers"]) == ("cpu", "1x2")
    with pytest.raises(Fail, match="no node of the cluster is up and has a CPU slot"):
        plan_runs(Ask(device="cpu"), NODES, DOMAINS)


def test_a_node_that_is_down_is_left_out_and_said() -> None:
    plan = plan_runs(Ask(nodes=("l1",)), [node("gpu-1"), node("gpu-2", state="down")], DOMAINS)
    assert (plan.runs[0]["workers"], plan.notes) == ("1x8", ("gpu-2 is down or has no GPU and is left out",))


def test_a_node_that_is_asked_for_by_its_name_is_waited_for_but_in_pairs() -> None:
    nodes = [node("gpu-1"), node("gpu-2", state="down"), node("gpu-10")]
    ask = Ask(nodes=("gpu-1", "gpu-2", "gpu-10"))
    (job,) = plan_runs(ask, nodes, []).runs
    assert (job["only"], job["workers"]) == (["gpu-1", "gpu-2", "gpu-10"], "3x8")
    assert [job["only"] for job in plan_runs(ask, nodes, [], pairs=True).runs] == [["gpu-1", "gpu-10"]]


@pytest.mark.parametrize(
    ("ask", "nodes", "code", "words"),
    [
        (
            Ask(nodes=("gpu-3", "gpu-1", "l9")),
            NODES,
            3,
            "no such node, leaf or pod: gpu-3, l9; the cluster has gpu-1, gpu-2",
        ),
        (Ask(backend=("nccl",)), CPUS, 2, "nccl needs GPUs"),
        (Ask(nodes=("a",)), [node("a", 1)], 2, "one rank alone moves nothing"),
        (Ask(), [node("a", state="down")], 2, "no node of the cluster is up"),
    ],
)
def test_what_cannot_be_measured_is_refused(ask: Ask, nodes: Any, code: int, words: str) -> None:
    with pytest.raises(Fail, match=words) as refusal:
        plan_runs(ask, nodes, DOMAINS)
    assert refusal.value.exit_code == code


@pytest.mark.parametrize(
    ("text", "count"), [("1M", 1 << 20), ("64MiB", 64 << 20), ("1G", 1 << 30), ("4096", 4096), ("8k", 8192)]
)
def test_sizes_are_powers_of_1024_and_shown_as_they_are_asked_for(text: str, count: int) -> None:
    assert bytes_of(text) == count
    assert bytes_of(size(count).removesuffix("B")) == count


@pytest.mark.parametrize("text", ["", "1", "M", "1.5M", "-1M", "1X", "9999T"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        bytes_of(text)


def result(**changes: Any) -> dict[str, Any]:
    """A result as `GET /benches` gives it."""
    row = {
        "run": 7,
        "attempt": 1,
        "at": "2026-11-26T10:00:00Z",
        "backend": "nccl",
        "collective": "all_reduce",
        "bytes": 1 << 30,
        "busbw": 332.0,
        "predicted": 337.0,
        "ranks": 2,
        "nodes": ["gpu-1"],
        "model": "H200",
        "level": "nvlink",
        "bottleneck": "gpu-1: NVLink among 2 GPUs",
        "versions": {"torch": "2.11.0"},
        "transport": {"P2P": 48},
        "earlier": 0,
        "change": None,
        "like_median": None,
        "of_like": None,
        "likes": 0,
        "suspect": False,
    }
    return row | changes


BOTH = [
    result(bytes=1 << 20, busbw=24.0, predicted=21.0),
    result(),
    result(backend="gloo", bytes=1 << 20, busbw=1.2, predicted=0.7),
]


def test_backends_stand_side_by_side_for_each_size() -> None:
    lines = side_by_side(BOTH)
    values = [[column.value(line) for column in columns(BOTH, several=False)] for line in lines]
    assert values == [
        ["gpu-1", "all_reduce", 1 << 20, 24.0, 21.0, 1.2, 0.7, ""],
        ["gpu-1", "all_reduce", 1 << 30, 332.0, 337.0, None, None, ""],
    ]


def test_a_link_that_stays_behind_is_named_once_with_its_largest_size() -> None:
    slow = {"suspect": True, "like_median": 332.0, "of_like": 0.6, "likes": 3, "change": -0.4, "earlier": 2}
    rows = [result(bytes=64 << 20, busbw=150.0, **slow), result(busbw=199.0, **slow)]
    assert [(one["nodes"], one["bytes"], one["busbw"]) for one in suspects(rows)] == [(["gpu-1"], 1 << 30, 199.0)]
    assert side_by_side(rows)[1]["note"] == ["nccl -40% against 2 earlier, suspect: 60% of its like"]


# === as a command ===


@pytest.fixture
def bench(stub: Any, orch: Any, stream: Any) -> Any:
    """Runs `orch bench` against a controller whose runs 42, 43, ... end at once."""
    ids = iter(range(42, 60))
    stub.answers["GET /nodes"] = (200, [node(name) for name in "abcd"])
    stub.answers["GET /topo"] = (200, {"domains": []})
    stub.answers["POST /runs"] = lambda handler: handler.answer(
        201, {"id": next(ids), "name": "bench", "state": "queued"}
    )
    for run in range(42, 60):
        end = {"id": run, "name": "bench", "state": "succeeded", "reason": None, "attempts": []}
        stub.answers[f"GET /runs/{run}/follow"] = stream({"state": "queued", "reason": None}, {"end": end})
    stub.answers["GET /benches"] = (200, [result(run=42)])
    return lambda *args, **env: orch("bench", *args, **env)


def submitted(stub: Any) -> list[dict[str, Any]]:
    return [body for call, _, body in stub.asked if call == "POST /runs"]


def test_it_submits_its_script_as_an_ordinary_run_and_prints_what_was_kept(stub: Any, bench: Any) -> None:
    done = bench("--nodes", "a,b", "--backend", "nccl,gloo", "--min", "8M", "--max", "64M")
    assert done.returncode == 0, done.stderr
    (body,) = submitted(stub)
    assert body["code"]["sha256"] in stub.code
    assert body["spec"]["run"] == (
        "collectives.py --collective=all_reduce --least=8388608 --backend=nccl,gloo --most=67108864"
    )
    assert done.stdout == "gpu-1\tall_reduce\t1073741824\t332\t337\t\t\t\n"
    assert (
        "gpu-1: 2 ranks of H200 within one nvlink, bounded by gpu-1: NVLink among 2 GPUs; torch 2.11.0; NCCL took P2P"
        in (done.stderr)
    )


def test_json_has_runs_results_and_suspects(bench: Any) -> None:
    found = json.loads(bench("--json").stdout)
    assert set(found) == {"runs", "results", "skipped", "suspects"}
    assert [run["id"] for run in found["runs"]] == [42]
    assert found["results"] == [result(run=42)]


def test_slow_pairs_are_measured_again_beside_good_nodes_and_the_bad_one_is_named(stub: Any, bench: Any) -> None:
    figures = {42: 200.0, 43: 400.0, 44: 200.0, 45: 400.0}

    def answer(handler: Any) -> None:
        asked = [int(run) for run in stub.asked[-1][1]["run"]]
        handler.answer(200, [result(run=run, busbw=figures[run]) for run in asked])

    stub.answers["GET /benches"] = answer
    done = bench("--pairs", "--json")
    assert [body["spec"]["only"] for body in submitted(stub)] == [["a", "b"], ["c", "d"], ["a", "c"], ["b", "d"]]
    found = json.loads(done.stdout)
    assert [one["node"] for one in found["suspects"]] == ["a"]
    assert "a stays behind: 200 GB/s, 50% of the 400" in done.stderr


def test_a_run_that_failed_makes_the_command_fail(stub: Any, bench: Any, stream: Any) -> None:
    end = {"id": 42, "name": "bench", "state": "failed", "reason": "rank 1 ended", "attempts": []}
    stub.answers["GET /runs/42/follow"] = stream({"end": end})
    stub.answers["GET /benches"] = (200, [])
    assert bench().returncode == 1


@pytest.mark.parametrize(
    "args",
    [
        ("--pairs", "--gpus", "4"),
        ("--gpus", "4", "--per-node", "2"),
        ("--min", "2G", "--max", "1G"),
        ("--backend", "mpi"),
        ("--collective", "all_reduce,gather"),
        ("--plot", "--json"),
    ],
)
def test_options_that_do_not_go_together_are_refused(bench: Any, stub: Any, args: tuple[str, ...]) -> None:
    assert bench(*args).returncode == 2
    assert not submitted(stub)


def test_the_past_is_asked_for_by_node_and_time_and_shows_the_largest_sizes(stub: Any, bench: Any) -> None:
    past = [result(bytes=1 << 20, busbw=24.0), result(change=-0.31, suspect=True, of_like=0.69)]
    stub.answers["GET /benches"] = (200, past)
    done = bench("--history", "--nodes", "gpu-1,gpu-2", "--since", "7d")
    assert stub.asked[-1][1]["node"] == ["gpu-1", "gpu-2"]
    (line,) = done.stdout.splitlines()
    assert line.split("\t")[7:] == ["332", "337", "-0.31", "0.69", "true"]
    assert len(json.loads(bench("--history", "--json").stdout)) == 2


# === the plot ===


def test_a_rising_line_rises_and_its_axes_are_named() -> None:
    drawn = draw([Line("x", ((0.0, 0.0), (1.0, 100.0)))], [(0.0, "1M"), (1.0, "1G")], "GB/s", 40, 5).splitlines()
    assert drawn[0] == "GB/s"
    assert drawn[1].startswith("100 ┤")
    assert drawn[5].startswith("  0 ┤")
    filled = [min((i for i, char in enumerate(row[5:]) if char != " "), default=99) for row in drawn[1:6]]
    assert filled == sorted(filled, reverse=True)
    assert drawn[7].split() == ["1M", "1G"]
    assert max(map(len, drawn)) <= 40


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_words_of_the_axis_never_run_into_each_other(columns: int) -> None:
    rows = [result(bytes=1 << power, busbw=float(power)) for power in range(10, 36)]
    ticks = [(float(power), size(1 << power)) for power in range(10, 36)]
    drawn = draw(
        [Line("x", tuple((float(p), r["busbw"]) for p, r in zip(range(10, 36), rows, strict=True)))], ticks, "", columns
    )
    assert max(map(len, drawn.splitlines())) <= max(columns, 28)
    words = drawn.splitlines()[-3].split()
    assert set(words) <= {text for _, text in ticks}
    assert len(words) >= 2


def test_measured_and_predicted_are_drawn_and_told_apart_in_the_legend() -> None:
    legend = by_size(BOTH).splitlines()[-1]
    assert legend.split() == ["━━", "nccl", "┄┄", "predicted", "━━", "gloo", "┄┄", "predicted"]
    assert draw([], [], "GB/s", 80) == ""
