"""What a job file may say, for editors and for beginners: its JSON Schema, and a file to start from."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.checks import default_name
from orchestrator.spec import JobSpec


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job file, with every key, its meaning and examples.

    Only words that draft-07 and 2020-12 share are in it, as editors know one or the other.
    """
    made = JobSpec.model_json_schema()
    keys = {key: _for_a_file(schema) for key, schema in made["properties"].items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "orch job",
        "description": "A training job for `orch submit`.",
        "type": "object",
        "properties": keys,
        "required": made["required"],
        "additionalProperties": False,
    }


def _for_a_file(schema: dict[str, Any]) -> dict[str, Any]:
    # pydantic's title is the key again; a default of null or of nothing means that the key is absent.
    return {word: value for word, value in schema.items() if word != "title" and (word != "default" or value)}


def starter_job(script: str, file: str = "job.yaml") -> str:
    """A commented job.yaml that runs `script`, for `orch init`."""
    return f"""\
# A job for orch. Submit it with: orch submit {file}
# Every key is explained by: orch schema

run: {json.dumps(script, ensure_ascii=False)}   # a script inside workdir and its arguments, as for torchrun
name: {json.dumps(default_name(script))}
workers: 1   # how many ranks, one GPU each: a total such as 16, or NODESxPER_NODE such as 2x8

# device: auto            # cuda, cpu, or auto: cuda where the cluster has it
# backend: auto           # nccl, gloo, or auto: what init_process_group should use, in ORCH_BACKEND
# near: leaf              # nvlink, node, leaf, pod or a label; leaf! is never looser, leaf~30m waits that long for it
# gpu: [H100, H200]       # acceptable types; default: any, but one type to a gang
# only: [gpu-01, gpu-02]  # the only nodes that the run may get
# workdir: .              # its snapshot runs; what .gitignore and .orchignore name stays out
# python: /venv/bin/python   # the interpreter of the ranks; default: orch's own
# env: {{OMP_NUM_THREADS: "4"}}
# secrets: [WANDB_API_KEY]   # names only; the values are taken from your environment and stored nowhere
# cudnn: {{benchmark: true}}   # benchmark and deterministic, set before the script's first line
# requires: {{torch: ">=2.8", driver: ">=570"}}   # versions that a node must have
# checkpoint: ckpt        # a folder that is the same on every attempt, in ORCH_CHECKPOINT_DIR
# time_limit: 12h         # how long an attempt may run
# after: [41, pretrain]   # runs that must have succeeded before
# array: {{lr: [0.1, 0.01], seed: 0..9}}   # a run for each combination; {{lr}} and {{seed}} in run and env
# array_limit: 4          # so many of them at once
# priority: 0             # higher goes first
# team: vision
# grace: 30s              # between SIGTERM and SIGKILL
# hang: 10m               # how long no rank may get on before the attempt is ended; off: never
# retry: {{infra: 10, user: 0}}   # attempts that may follow one that broke, by cause
# on_degraded: fail       # warn or fail, where NCCL takes worse links than the placement promised
# throughput: {{samples: "samples/s: ([0-9.]+)"}}   # read from rank 0's log, where orch sees nothing by itself
# tags: {{sweep: a}}        # words of your own to find runs by
"""
