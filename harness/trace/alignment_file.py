"""A map between two traces as a TOML file, which people read and edit."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from harness.errors import HarnessError
from harness.trace.alignment import SECTIONS, Alignment, Match
from harness.trace.schema import said

LIMIT = 256 << 20  # bytes
HEAD = """\
# Which tensors of trace a are which of trace b, and the steps that turn the former into the latter.
# Steps: axes ORDER, shape SIZES to SIZES, blocks AXIS ORDER, order AXIS ORDER, reverse AXIS,
# split AXIS SIZES, join AXIS SIZES, sum COUNT, unsum COUNT. Read by --map; edit as you like.
"""
_NAMES = ("only_a", "only_b", "notes")


def written(alignment: Alignment) -> str:
    """The map as TOML."""
    lines = [HEAD]
    for name in _NAMES:
        values = getattr(alignment, name)
        if values:
            lines.append(f"{name} = [\n" + "".join(f"  {_text(v)},\n" for v in values) + "]\n")
    for section in (*SECTIONS, "slots"):
        for match in getattr(alignment, section):
            lines.append(f"\n[[{section}]]\n" + "".join(f"{line}\n" for line in _entry(match)))
    return "".join(lines)


def write_alignment(alignment: Alignment, path: str | Path) -> None:
    """Write the map to a TOML file."""
    Path(path).write_text(written(alignment), "utf-8")


def read_alignment(path: str | Path) -> Alignment:
    """The map in a TOML file. Raises HarnessError that names the file, the entry and the value."""
    file = Path(path)
    try:
        if file.stat().st_size > LIMIT:
            raise HarnessError(f"{file}: over {LIMIT} bytes, which no map needs")
        tree = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise HarnessError(f"{file}: no map can be read: {said(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HarnessError(f"{file}: is no TOML: {said(error)}") from None
    known = (*SECTIONS, "slots", *_NAMES)
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"; did you mean {near[0]}" if near else ""
            raise HarnessError(f"{file}: {said_of(key)} is no part of a map{hint}: {_all(known)}")
    given: dict[str, Any] = {}
    for section in (*SECTIONS, "slots"):
        entries = tree.get(section, [])
        if not isinstance(entries, list):
            raise HarnessError(f"{file}: {section} is no list of entries: write [[{section}]]")
        given[section] = tuple(
            _match(entry, f"{file}: [[{section}]] {k}") for k, entry in enumerate(entries, start=1)
        )
    for name in _NAMES:
        given[name] = _strings(tree.get(name, []), f"{file}: {name}")
    made = Alignment(**given)
    made.check(str(file))
    return made


def said_of(value: object) -> str:
    """A value of a file that is not trusted, for a message."""
    return said(ValueError(repr(value)))[:120]


def _match(entry: Any, at: str) -> Match:
    """One entry of a section."""
    if not isinstance(entry, dict):
        raise HarnessError(f"{at}: {said_of(entry)} is no entry: a = .., b = .., steps = [..]")
    fields = Match.__struct_fields__
    for key in entry:
        if key not in fields:
            raise HarnessError(f"{at}: {said_of(key)} is no field of an entry: {_all(fields)}")
    given = dict(entry)
    for name in ("a", "b", "steps", "by"):
        value = given.get(name, [])
        given[name] = _strings([value] if isinstance(value, str) else value, f"{at}: {name}")
    try:
        return msgspec.convert(given, Match)
    except msgspec.ValidationError as error:
        value = given.get("sure") if "sure" in str(error) else given.get("note")
        raise HarnessError(
            f"{at}: {said_of(value)}: {said(error)}; sure is certain or likely, note a text"
        ) from None


def _strings(value: Any, at: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise HarnessError(f"{at}: {said_of(value)} is no list of texts")
    return tuple(value)


def _all(names: Any) -> str:
    return f"there are {', '.join(names)}"


def _entry(match: Match) -> Iterator[str]:
    """The lines of an entry; what has its default is left out, but how sure it is."""
    fields: Mapping[str, tuple[str, ...]] = {"a": match.a, "b": match.b}
    for key, names in fields.items():
        yield f"{key} = {_text(names[0]) if len(names) == 1 else _list(names)}"
    if match.steps:
        yield f"steps = {_list(match.steps)}"
    yield f"sure = {_text(match.sure)}"
    if match.by:
        yield f"by = {_list(match.by)}"
    if match.note:
        yield f"note = {_text(match.note)}"


def _list(values: tuple[str, ...]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _text(value: str) -> str:
    """A basic string of TOML: JSON's, with the one control character that JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
