"""Texts of others, from cards, records and file names, made safe for a terminal."""

import re

# Anything that could move the cursor, recolour a terminal, hide, or turn the reading direction; and what XML forbids.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """One line without control characters; what is taken out is shown as �."""
    return _UNPRINTABLE.sub("�", text)


def plain_lines(text: str) -> str:
    """The same with its line breaks kept."""
    return "\n".join(map(plain, text.split("\n")))
