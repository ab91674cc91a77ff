"""The README's examples run and say what they say."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

ROOT = Path(__file__).parents[3]


def captured(kind: str) -> str:
    """The encoding of a message among the vectors, as hex."""
    vectors = json.loads((ROOT / "specs" / "vectors" / "messages.json").read_text())["accepted"]
    encodings: list[str] = [row["encoding"] for row in vectors if row["type"] == kind]
    return encodings[0]


def test_examples() -> None:
    text = (ROOT / "shared-proto" / "README.md").read_text()
    names = {"CAPTURED_TENDER": captured("tender/1"), "CAPTURED_DISPOSAL": captured("disposal/1")}
    example = doctest.DocTestParser().get_doctest(text, names, "README.md", "README.md", 0)
    assert len(example.examples) > 30
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(example)
    assert result.failed == 0
