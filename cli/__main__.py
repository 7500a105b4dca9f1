"""`python -m cli` is `orch`."""

from cli.main import main

main()
