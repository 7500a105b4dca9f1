#!/usr/bin/env bash
# Does what we would publish work? Builds the wheel, looks into it, and runs it away from the source tree.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.venv/bin/python"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$python" -m pip wheel -qq --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$work" .
wheel=("$work"/*.whl)
"$python" - "${wheel[0]}" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

names = zipfile.ZipFile(sys.argv[1]).namelist()
tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
assert tops == {"orchestrator", "cli"}, f"the wheel holds {sorted(tops)}"
there = {str(path) for top in tops for path in Path(top).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
assert not (missing := sorted(there - set(names))), f"the wheel lacks {missing}"
print(f"{len(names)} files: all of orchestrator/ and cli/, nothing of jobs/ or tests/")
PYTHON

# A second full installation would take minutes and test pip. The new environment has its own interpreter and our wheel;
# the packages that the wheel needs are lent by .venv through a .pth file (which does not carry .venv's own .pth files, so
# that the editable installation there is out of reach).
"$python" -m venv "$work/venv"
away="$work/venv/bin/python"
"$away" -m pip install -qq --disable-pip-version-check --no-deps "${wheel[0]}"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
  "$("$away" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"

cd "$work"
"$away" -c '
import cli, orchestrator, sys
for package in (cli, orchestrator):
    assert package.__file__.startswith(sys.prefix), f"{package.__name__} came from {package.__file__}"
'
# pyarrow and psycopg belong to extras that need not be installed.
"$away" - <<'PYTHON' >/dev/null
import sys

sys.modules |= dict.fromkeys(("pyarrow", "psycopg"))  # whoever imports them gets ImportError
sys.argv = ["orch", "--help"]
from cli.main import main

main()
PYTHON
venv/bin/orch --help >/dev/null
venv/bin/orch schema | "$away" -c 'import json, sys; json.load(sys.stdin)'
echo "The installed wheel imports, says its help and prints its schema."
