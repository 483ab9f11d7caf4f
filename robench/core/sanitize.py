"""Making untrusted text from cards, records and file names safe for a terminal."""

import json
import re

# Characters that move the cursor, recolour a terminal, are invisible, change the reading direction, or are invalid XML.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """Return `text` as one line, with control characters replaced by �."""
    return _UNPRINTABLE.sub("�", text)


def escaped(text: str) -> str:
    """JSON with the characters that `plain` replaces escaped, so that its strings stay the same."""
    return "\n".join(_UNPRINTABLE.sub(_escape, line) for line in text.split("\n"))


def _escape(character: re.Match[str]) -> str:
    return json.dumps(character[0])[1:-1]


def plain_lines(text: str) -> str:
    """Like `plain`, but keep line breaks."""
    return "\n".join(map(plain, text.split("\n")))
