"""What orch measures of a training script is what the script measures of itself; real agents, launchers and ranks."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import RankStart, StartPart
from orchestrator.control.gang_progress import GangProgress
from orchestrator.control.rank_progress import RankProgress
from orchestrator.history.ledger import account
from orchestrator.progress.values import Progress
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Attempt
from orchestrator.testing import a_placement

pytestmark = pytest.mark.torch


class Measured(NamedTuple):
    """What orch saw of a run, and what its ranks printed."""

    progress: Progress
    looks: dict[int, RankProgress]
    said: list[dict[str, Any]]

    def own(self, name: str) -> Any:
        return [one[name] for one in self.said]


async def no_code(sha256: str) -> AsyncIterator[bytes]:
    raise AssertionError("nothing is fetched where a part has no snapshot")
    yield b""


class Node:
    """One agent for all tests, whose warm process is there after the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runner = asyncio.Runner()
        self.agent = NodeAgent("orch-throughput", "a", "127.0.0.1", folder / "n", no_code, lambda: {}, dict(os.environ))
        self.runs = self.ack = 0

    def close(self) -> None:
        self.runner.run(self.agent.close(1000))
        self.runner.close()

    def measure(self, script: str, ranks: int = 2, **change: Any) -> Measured:
        return self.runner.run(asyncio.wait_for(self._measure(script, ranks, change), 120))

    async def _measure(self, script: str, ranks: int, change: dict[str, Any]) -> Measured:
        self.runs += 1
        path = self.folder / f"train{self.runs}.py"
        path.write_text(script)
        started = tuple(RankStart(rank, rank, rank) for rank in range(ranks))
        env = change.pop("env", {})
        part = StartPart(
            self.runs, 1, (str(path),), None, None, {"GLOO_SOCKET_IFNAME": "lo", **env}, {}, "cpu", started, ranks, 0,
            "127.0.0.1", 0, 60, 1 << 20, **change,
        )  # fmt: skip
        await self.agent.start(1, part)
        gang, looks, log = GangProgress(), {}, b""
        while True:
            report = await self.agent.sync(1, self.ack, 60, 1)
            self.ack = report.sequence
            mine = [look for look in report.progress if look.run == self.runs]
            gang.observe(mine, datetime.now(UTC))
            looks |= {look.rank: look for look in mine}
            log += b"".join(chunk.data for chunk in report.logs if chunk.run == self.runs)
            status = next(status for status in report.parts if status.run == self.runs)
            if status.ended:
                break
        assert set(status.ranks.values()) == {0}, log.decode()
        gang.end(datetime.now(UTC))
        said = [json.loads(line) for line in log.decode().splitlines() if line.startswith("{")]
        await self.agent.forget(1, self.runs, 1)
        progress = gang.summary()
        assert progress is not None
        return Measured(progress, looks, said)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    one = Node(tmp_path_factory.mktemp("throughput"))
    yield one
    one.close()


SELF_MEASURED = """
import json, os, time, torch, torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset, DistributedSampler

class Watch:
    "From the end of the first step to the end of the last, as a careful script would."
    def __init__(self):
        self.steps = self.samples = self.counted = 0
        self.first = self.last = None
    def step(self, samples):
        self.last = time.monotonic()
        self.steps += 1
        self.samples += samples
        if self.first is None:
            self.first = self.last
        else:
            self.counted += samples
    def say(self, **more):
        spent = self.last - self.first
        print(json.dumps(dict(steps=self.steps, samples=self.samples, rate=self.counted / spent,
                              step_time=spent / (self.steps - 1), rank=int(os.environ["RANK"]), **more)), flush=True)

watch = Watch()
def data(count, **options):
    return TensorDataset(torch.randn(count, 16), torch.randn(count, 1))
"""

DDP = """
dist.init_process_group("gloo")
class Slow(torch.nn.Linear):
    "The second rank takes longer, and the first one waits for it."
    def forward(self, x):
        time.sleep(0.002 + 0.015 * dist.get_rank())
        return super().forward(x)

model = torch.nn.parallel.DistributedDataParallel(Slow(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
train = data(1610)
sampler = DistributedSampler(train)
loader = DataLoader(train, batch_size=10, sampler=sampler)
for epoch in range(2):
    for x, y in loader:
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step(); optimizer.zero_grad()
        watch.step(len(x))
watch.say()
dist.destroy_process_group()
"""


def agrees(measured: Measured) -> None:
    """Steps and samples to the one, rates to 2 %."""
    progress = measured.progress
    assert progress.steps == max(measured.own("steps"))
    assert progress.samples == sum(measured.own("samples"))
    assert progress.samples_per_s == pytest.approx(sum(measured.own("rate")), rel=0.02)
    assert progress.step_time == pytest.approx(mean(measured.own("step_time")), rel=0.02)
    assert progress.source == "auto"


def test_ddp_with_an_uneven_last_batch_is_measured_as_the_script_measures_itself(node: Node) -> None:
    measured = node.measure(SELF_MEASURED + DDP)
    agrees(measured)
    # 805 samples a rank: 80 batches of 10 and one of 5.
    assert measured.progress.steps == 162
    # Both ranks' steps take as long; DDP knows whose own work it is.
    assert measured.progress.slowest_rank == 1
    assert measured.progress.rank_time_max > measured.progress.rank_time_min + 0.005


FSDP = """
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
train = data(800)
loader = DataLoader(train, batch_size=8, sampler=DistributedSampler(train))
for x, y in loader:
    torch.nn.functional.mse_loss(model(x), y).backward()
    time.sleep(0.005)
    optimizer.step(); optimizer.zero_grad()
    watch.step(len(x))
watch.say()
dist.destroy_process_group()
"""


def test_fsdp_is_measured_as_the_script_measures_itself(node: Node) -> None:
    agrees(node.measure(SELF_MEASURED + FSDP))


ACCUMULATION = """
model, held_out = torch.nn.Linear(16, 1), DataLoader(data(64), batch_size=16)
first, second = (torch.optim.SGD(model.parameters(), lr=0.001) for _ in range(2))
scaler = torch.amp.GradScaler("cpu")
loader = DataLoader(data(1200), batch_size=4, num_workers=1)
pending = 0
for number, (x, y) in enumerate(loader, 1):
    scaler.scale(torch.nn.functional.mse_loss(model(x), y)).backward()
    pending += len(x)
    if number % 3:
        continue
    time.sleep(0.005)
    scaler.step(first); scaler.update()
    second.step()
    first.zero_grad()
    watch.step(pending)
    pending = 0
    if number % 30 == 0:
        for x, y in held_out:
            with torch.no_grad():
                model(x)
watch.say()
"""


def test_accumulation_with_a_scaler_two_optimizers_workers_and_validations_in_between(node: Node) -> None:
    measured = node.measure(SELF_MEASURED + ACCUMULATION, ranks=1)
    agrees(measured)
    assert measured.progress.steps == 100
    assert measured.looks[0].batch_samples == 1200 + 10 * 64


LIGHTNING = """
import warnings; warnings.filterwarnings("ignore")
import lightning, logging
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 1)
    def training_step(self, batch, index):
        time.sleep(0.005)
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
    def validation_step(self, batch, index):
        self.layer(batch[0])
    def on_train_batch_end(self, outputs, batch, index):
        watch.step(len(batch[0]))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

trainer = lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, enable_progress_bar=False, logger=False,
    enable_model_summary=False, default_root_dir=os.path.dirname(__file__) + "/lightning", val_check_interval=0.5,
)
trainer.fit(Module(), DataLoader(data(1010), batch_size=10), DataLoader(data(100), batch_size=10))
watch.say()
"""


def test_lightning_is_measured_as_the_script_measures_itself(node: Node) -> None:
    agrees(node.measure(SELF_MEASURED + LIGHTNING))


ACCELERATE = """
from accelerate import Accelerator
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = torch.nn.Linear(16, 1)
model, optimizer, loader = accelerator.prepare(
    model, torch.optim.AdamW(model.parameters()), DataLoader(data(1610), batch_size=5, shuffle=True))
pending = 0
for epoch in range(2):
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
            time.sleep(0.003)
            optimizer.step(); optimizer.zero_grad()
        pending += len(x)
        if accelerator.sync_gradients:
            watch.step(pending)
            pending = 0
watch.say()
accelerator.end_training()
"""


def test_accelerate_is_measured_as_the_script_measures_itself(node: Node) -> None:
    agrees(node.measure(SELF_MEASURED + ACCELERATE))


COMPILED = """
folder = os.environ["ORCH_CHECKPOINT_DIR"]
os.makedirs(folder, exist_ok=True)
model = torch.nn.Linear(16, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = DataLoader(data(400), batch_size=10)

@torch.compile(backend="eager")
def train(x, y):
    torch.nn.functional.mse_loss(model(x), y).backward()
    time.sleep(0.005)
    optimizer.step()
    optimizer.zero_grad()

@torch.compile(backend="eager")
def epoch(batches):
    for x, y in batches:
        train(x, y)
        watch.step(len(x))
    torch.save(model.state_dict(), folder + "/new.pt")

epoch(iter(loader))
step = torch.compile(optimizer.step, backend="eager")
for x, y in loader:
    torch.nn.functional.mse_loss(model(x), y).backward()
    step()
    watch.step(len(x))
watch.say()
"""


def test_what_is_compiled_is_counted_and_left_alone(node: Node) -> None:
    measured = node.measure(
        SELF_MEASURED + COMPILED, ranks=1, env={"ORCH_CHECKPOINT_DIR": str(node.folder / "compiled")}
    )
    assert (measured.progress.steps, measured.progress.samples, measured.progress.saved_steps) == (80, 800, 40)


CHECKPOINTS = """
class Heavy:
    def __reduce__(self):
        time.sleep(0.4)
        return dict, ()

folder = os.environ["ORCH_CHECKPOINT_DIR"]
os.makedirs(folder, exist_ok=True)
torch.save({}, folder + "/old.pt"); torch.load(folder + "/old.pt")
torch.save({}, os.path.dirname(folder) + "/no-checkpoint.pt")
model = torch.nn.Linear(16, 1)
optimizer, saving, began = torch.optim.SGD(model.parameters(), lr=0.01), 0.0, None
for step in range(1, 101):
    torch.nn.functional.mse_loss(model(torch.randn(8, 16)), torch.zeros(8, 1)).backward()
    time.sleep(0.01)
    optimizer.step()
    if began is None:
        began, first_at = time.monotonic(), time.time()
    if step == 60:
        before = time.monotonic()
        torch.save({"model": model.state_dict(), "more": Heavy()}, folder + "/new.pt")
        saving += time.monotonic() - before
train = time.monotonic() - began - saving
time.sleep(0.5)
print(json.dumps(dict(train=train, saving=saving, first_at=first_at)), flush=True)
"""


def test_a_cold_ranks_checkpoints_and_its_ledger_match_the_clock_on_the_wall(node: Node) -> None:
    folder = str(node.folder / "ckpt" / "run")
    began = datetime.now(UTC)
    measured = node.measure(
        SELF_MEASURED + CHECKPOINTS, ranks=1, env={"ORCH_CHECKPOINT_DIR": folder, "MALLOC_ARENA_MAX": "2"}
    )
    ended = datetime.now(UTC)
    progress, (said,) = measured.progress, measured.said
    assert (progress.steps, progress.saves, progress.saved_steps, progress.resumed) == (100, 2, 60, True)
    assert measured.looks[0].saves_begun == measured.looks[0].saves_ended == 2
    attempt = Attempt(1, a_placement(a=(0,)), began, began, ended, Outcome.USER_ERROR, progress=progress)
    counted = account(attempt, began, ended)
    assert counted.allocated == round((ended - began).total_seconds() * 1000)
    assert counted.starting == pytest.approx((said["first_at"] - began.timestamp()) * 1000, rel=0.01, abs=5)
    assert counted.productive + counted.lost == pytest.approx(said["train"] * 1000, rel=0.01, abs=5)
    assert counted.checkpoint == pytest.approx(said["saving"] * 1000, rel=0.01, abs=5)
    assert counted.lost == pytest.approx(said["train"] * 1000 * 40 / 99, rel=0.05)
    assert counted.idle >= 500


TOLD = """
import orchestrator, time
for step in range(1, 41):
    time.sleep(0.01)
    orchestrator.report(step=step, samples=16, loss=1 / step)
    print(f"step {step} tokens/s: {step * 100:,}")
"""


def test_what_a_script_reports_and_what_its_log_tells_is_kept(node: Node) -> None:
    measured = node.measure(TOLD, ranks=2, throughput={"tokens": r"tokens/s: ([0-9,]+)"})
    progress = measured.progress
    assert (progress.source, progress.steps, progress.samples) == ("report", 40, 2 * 40 * 16)
    assert progress.metrics == {"loss": 1 / 40, "tokens_per_s": 4000, "step": 40}
    assert progress.step_time == pytest.approx(0.0105, rel=0.2)
