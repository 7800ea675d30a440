"""Secrets are cut out of every text that leaves the process through an error."""

from __future__ import annotations

import re

_PATTERNS = (
    # user:password@host in an address
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]+):[^\s@/]+@"), r"\1:***@"),
    # key=value and "key": "value" for keys that name a secret
    (
        re.compile(
            r"(?i)([\"']?\b[\w-]*(?:password|passwd|secret|token|api[_-]?key|private[_-]?key)[\w-]*[\"']?\s*[=:]\s*)"
            r"(\"[^\"]*\"|'[^']*'|[^\s,;&\]})]+)"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 ***"),
)


def redact(text: str) -> str:
    """``text`` without what looks like a credential."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
