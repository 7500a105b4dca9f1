"""ddp_step.py under Ray Train: `python ray_train_step.py STORAGE`, as the entrypoint of a Ray job."""

import os
import sys
from pathlib import Path

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

HERE = str(Path(__file__).resolve().parent)


def each_worker(config: dict[str, str]) -> None:
    sys.path.insert(0, config["folder"])
    import ddp_step

    ddp_step.main(config["out"], group_is_there=True)


TorchTrainer(
    each_worker,
    train_loop_config={"folder": HERE, "out": os.environ["BENCH_OUT"]},
    torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
    run_config=RunConfig(storage_path=sys.argv[1]),
).fit()
