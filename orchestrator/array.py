"""What `array:` means: its values, the placeholders that they replace, and the words by which its runs are called.

Plain text and numbers only, so that spec_fields.py can check with it. Runs are numbered from 0, the last key counting fastest:
`{lr: [0.1, 0.01], seed: 0..2}` has lr=0.1 in runs 0 to 2 and lr=0.01 in runs 3 to 5.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from orchestrator.checks import env_text, one_line
from orchestrator.document import shown

MAX_RUNS = 10_000
MAX_KEYS = 16

Axes = Mapping[str, Sequence[str]]

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_RANGE = re.compile(r"(-?[0-9]{1,9})\.\.(-?[0-9]{1,9})")
# `{{lr}}` is the text {lr}; a brace that does not enclose one word is plain text, as in JSON.
_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][A-Za-z0-9_]*)\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")


def key(name: str) -> str:
    if not _KEY.fullmatch(name):
        raise ValueError(f"{shown(name)} must be 1 to 63 of letters, digits and '_', and not begin with a digit")
    return name


def values(given: Any) -> tuple[str, ...]:
    """The values of one key: of a list, or of a range whose ends are both in it. Raises ValueError."""
    if isinstance(given, str) and (found := _RANGE.fullmatch(given)):
        first, last = int(found[1]), int(found[2])
        if not first <= last:
            raise ValueError(f"{shown(given)} must go from the smaller to the larger number")
        if last - first >= MAX_RUNS:
            raise ValueError(f"{shown(given)} has {last - first + 1:,} values; an array may have {MAX_RUNS:,} runs")
        return tuple(map(str, range(first, last + 1)))
    if not isinstance(given, list | tuple):
        raise ValueError(f"must be a list, such as [0.1, 0.01], or a range, such as 0..9, not {shown(given)}")
    texts = [env_text(value) for value in given]
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"must hold plain values, not {shown(odd[0])}")
    if not texts:
        raise ValueError("is empty: it needs one value at least")
    if twice := next((text for text in texts if texts.count(text) > 1), None) if len(texts) < 1000 else None:
        raise ValueError(f"has {shown(twice)} twice")
    return tuple(map(one_line, texts))


def size(axes: Axes) -> int:
    """How many runs there are."""
    return prod(map(len, axes.values()))


def at(axes: Axes, index: int) -> dict[str, str]:
    """The values of run `index`."""
    found = {}
    for name in reversed(list(axes)):
        index, position = divmod(index, len(axes[name]))
        found[name] = axes[name][position]
    return {name: found[name] for name in axes}


def placeholders(texts: Iterable[str]) -> set[str]:
    """The names in braces."""
    return {found[2] for text in texts for found in _PLACEHOLDER.finditer(text) if found[2]}


def filled(text: str, chosen: Mapping[str, str]) -> str:
    """The text with its placeholders replaced."""
    return _PLACEHOLDER.sub(lambda found: f"{{{found[1]}}}" if found[1] else chosen[found[2]], text)


def filled_command(words: Iterable[str], chosen: Mapping[str, str]) -> str:
    """The command of these words with their placeholders replaced; a value is part of one word, whatever is in it."""
    return shlex.join(filled(word, chosen) for word in words)


def written(texts: Sequence[str]) -> str:
    """Values as a person would write them: `0..9`, or `[0.1, 0.01]`."""
    numbers = [int(text) for text in texts if re.fullmatch(r"-?(0|[1-9][0-9]{0,8})", text)]
    if len(texts) > 2 and numbers == list(range(numbers[0] if numbers else 0, (numbers or [0])[0] + len(texts))):
        return f"{texts[0]}..{texts[-1]}"
    return f"[{', '.join(texts)}]"


def check(axes: Axes, run: str, env: Mapping[str, str], checkpoint: str | None) -> None:
    """What the keys, the command and the environment say of each other. Raises ValueError with all that is wrong."""
    if not axes:
        raise ValueError("is empty: it needs one key at least, such as {seed: 0..9}")
    if (runs := size(axes)) > MAX_RUNS:
        counts = " x ".join(str(len(each)) for each in axes.values())
        raise ValueError(f"has {runs:,} runs ({counts}); an array may have {MAX_RUNS:,}")
    wrong = []
    words = shlex.split(run)
    if words and placeholders(words[:1]):
        wrong.append(f"cannot choose the script: {shown(words[0])} has a placeholder in it")
    used = placeholders([*words, *env.values()])
    if unknown := sorted(used - set(axes)):
        wrong.append(
            f"{_braced(unknown)} in run or env is none of its keys ({', '.join(axes)}); plain text is {{{{{unknown[0]}}}}}"
        )
    if unused := [name for name in axes if name not in used]:
        verb = "is" if len(unused) == 1 else "are"
        wrong.append(f"{', '.join(unused)} {verb} used nowhere: write {_braced(unused)} into run or env")
    if checkpoint is not None and checkpoint.startswith("/"):
        wrong.append("its runs would all write the same absolute checkpoint folder: name one without a leading /")
    if wrong:
        raise ValueError("; ".join(wrong))


def _braced(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


# Words for runs -------------------------------------------------------------------------------------------------------

MAX_ID_DIGITS = 18
"""A number of more digits is no id: databases count to 2**63."""
_REF = re.compile(r"([a-z0-9][a-z0-9-]{0,62})(?:\[([0-9]{0,6})\])?")


@dataclass(frozen=True)
class Ref:
    """What a user calls a run or an array by: `41`, `sweep`, `sweep[3]`, `sweep[]`, `41[]`."""

    word: str
    """An id, where it is digits alone, or a name."""
    index: int | None = None
    """Which run of the array."""
    whole: bool = False
    """The whole array, said by empty brackets."""

    def __str__(self) -> str:
        return f"{self.word}[]" if self.whole else self.word if self.index is None else f"{self.word}[{self.index}]"


def parse_ref(text: str) -> Ref | None:
    """None for what can be no run's."""
    found = _REF.fullmatch(text)
    if found is None:
        return None
    return Ref(found[1], int(found[2]) if found[2] else None, found[2] == "")


def run_id(text: str) -> int | str:
    """A run's id where the text can be one, else the text, which may be a name."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_ID_DIGITS else text


def dependency(given: Any) -> int | str:
    """One entry of `after:`: an id, or a name as `str(Ref)` writes it. Raises ValueError."""
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    ref = parse_ref(given) if isinstance(given, str) else None
    if ref is None or (ref.word.isdigit() and len(ref.word) > MAX_ID_DIGITS):
        raise ValueError(
            f"{shown(given)} must be a run's id or name, such as 41 or pretrain, or of an array sweep[] or sweep[3]"
        )
    return int(ref.word) if str(ref).isdigit() else str(ref)
