"""Runs multi-node training jobs: the right GPUs, the right links, and the truth about both."""

__version__ = "0.1.0"
