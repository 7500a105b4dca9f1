"""Do the documents hold: links that lead somewhere, commands that exist, a diagram that is the code's own?"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(document: Path) -> set[str]:
    """What GitHub calls the document's headings."""
    headings = re.findall(r"^#+ +(.*)$", CODE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    dead = []
    for link in LINK.findall(CODE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue  # another site; a test that asks it fails with the network
        path, _, anchor = unquote(link).partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_the_commands_that_readme_tells_to_type_are_targets_of_the_makefile() -> None:
    told = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {"demo", "test"} <= told
    assert told <= targets


def test_every_target_of_the_makefile_is_phony_and_says_what_it_is_for() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):.*", makefile, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)

    assert phony
    assert sorted(phony[1].split()) == sorted(targets)
    assert sorted(re.findall(r"^([a-z]+):.*## \S", makefile, re.MULTILINE)) == sorted(targets)


def test_the_diagram_of_states_is_the_tables_own() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text()

    assert script("draw_states").redrawn(document) == document, "run: python scripts/draw_states.py"


def test_the_tables_of_causes_are_the_code_s_own() -> None:
    document = (ROOT / "docs" / "failures.md").read_text()

    assert script("draw_causes").redrawn(document) == document, "run: python scripts/draw_causes.py"


def test_the_lock_names_every_dependency_once_and_no_registry() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [Requirement(line) for line in (*project["project"]["dependencies"], *project["dependency-groups"]["dev"])]
    text = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE)
    locked = dict(pins)

    assert len(pins) == len(locked)
    assert "://" not in text
    wrong = [str(each) for each in asked if locked.get(canonicalize_name(each.name), "0") not in each.specifier]
    assert not wrong, "run: make lock"


def test_a_line_that_was_drawn_over_is_recorded_in_its_last_form() -> None:
    raw = "starting\r\x1b[Krunning \x1b[32m2 of 2\x1b[0m\r\nepoch 1\r\n"

    assert script("record").screen(raw) == "running \x1b[32m2 of 2\x1b[0m\nepoch 1\n"


def test_a_long_output_says_how_much_of_it_was_left_out() -> None:
    text = script("record").shortened("\n".join(map(str, range(40))), 11)

    assert text.split("\n")[3:6] == ["3", "\x1b[2m... 30 lines ...\x1b[0m", "34"]
