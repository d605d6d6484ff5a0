"""A map between two traces as text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.trace.alignment import SECTIONS, Alignment, Match
from harness.trace.chain import Move, parse_move

TITLES = {"params": "parameters", "buffers": "buffers", "points": "layers", "others": "others"}
SHOWN = 20
ORDER = 12  # numbers of an order that are shown


def show_alignment(out: Console, alignment: Alignment, labels: tuple[str, str]) -> None:
    """What is matched with what, how it lies, how sure that is; and what has no partner."""
    every = [match for _, match in alignment.matches()]
    sure = sum(match.sure == "certain" for match in every)
    alone = len(alignment.only_a), len(alignment.only_b)
    out.print(
        Text(
            f"ALIGNED: {len(every)} matches, {sure} certain and {len(every) - sure} likely; "
            f"without a partner {alone[0]} of {labels[0]} and {alone[1]} of {labels[1]}",
            "bold",
        )
    )
    for section in SECTIONS:
        matches = getattr(alignment, section)
        if matches:
            out.print(_table(TITLES[section], matches, labels))
    if alignment.slots:
        pairs = ", ".join(f"{m.a[0]} is {m.b[0]} ({m.sure})" for m in alignment.slots)
        out.print(f"slots of the optimizer: {pairs}")
    for section, match in alignment.matches():
        if match.note:
            out.print(Text(f"  * {TITLES[section]}, {_names(match.b)}: {match.note}", "yellow"))
    for label, names in zip(labels, (alignment.only_a, alignment.only_b), strict=True):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            out.print(f"without a partner in {label}: {', '.join(names[:SHOWN])}{more}")


def _table(title: str, matches: tuple[Match, ...], labels: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in (*labels, "layout", "sure", "by"):
        table.add_column(heading, overflow="fold")
    for match in matches:
        style = "" if match.sure == "certain" else "yellow"
        row = _names(match.a), _names(match.b), in_words(match), match.sure, ", ".join(match.by)
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table


def _names(names: tuple[str, ...]) -> str:
    """Names in short: what all have before the last slash stands once."""
    if len(names) == 1:
        return names[0]
    return " + ".join(names)


def in_words(match: Match) -> str:
    """The chain of a match for people: "transposed, then blocks 0 2 1 3 along axis 1"."""
    moves = [parse_move(text) for text in match.steps]
    return ", then ".join(_words(moves)) or "as it is"


def _words(moves: list[Move]) -> Iterator[str]:
    for move in moves:
        order = " ".join(map(str, move.numbers[1 : ORDER + 1]))
        order += " .." if len(move.numbers) > ORDER + 1 else ""
        yield {
            "axes": "transposed" if move.numbers == (1, 0) else f"axes {_list(move.numbers)}",
            "shape": f"[{_sizes(move.numbers)}] read as [{_sizes(move.to)}]",
            "blocks": f"blocks {order} along axis {move.numbers[0]}",
            "order": f"places {order} along axis {move.numbers[0]}",
            "reverse": f"axis {move.numbers[0]} in reverse",
            "split": f"split along axis {move.numbers[0]}",
            "join": f"joined along axis {move.numbers[0]}",
            "sum": "added up",
            "unsum": "the sum of them",
        }[move.kind]


def _list(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def _sizes(numbers: tuple[int, ...]) -> str:
    return re.sub(r"-1\b", "..", ", ".join(map(str, numbers)))
