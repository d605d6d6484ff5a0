"""Names of files from names of tests."""

from __future__ import annotations

import hashlib
import re

STRANGE = re.compile(r"[^A-Za-z0-9_.=+-]+")
LONGEST = 100  # characters: a file system takes 255 bytes, and the name is not all of it
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*")


def file_name(node: str) -> str:
    """A name that any file system takes, for the id of a test behind its file: "TestA::test_b[1]".

    Two tests never have one name: what could not be kept as it is leaves a digest behind.
    """
    test, bracket, parameters = node.partition("[")
    plain = test.replace("::", ".")
    plain += f"-{parameters.removesuffix(']')}" if bracket else ""
    safe = STRANGE.sub("-", plain).strip("-")[:LONGEST]
    if safe == plain and NAME.fullmatch(safe):
        return safe
    digest = hashlib.sha256(node.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{safe}-{digest}" if NAME.fullmatch(safe) else f"test-{digest}"
