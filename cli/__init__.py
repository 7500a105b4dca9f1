"""The `orch` command: parse, call, print."""
