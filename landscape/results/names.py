"""Names that users give, made fit for groups, files and terminals."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, unquote

# Kept as they are in group names; the rest, and anything that a shell, HTML or netCDF could trip over, becomes %XX of its UTF-8 bytes.
_PLAIN = re.compile(r"[0-9A-Za-z_+=,.-]")


def escape_name(name: str, longest: int = 255) -> str:
    """Return the group name for a name that a user gave; `unescape_name` takes it back.

    Letters and digits of any script, `_ + = , - .` and inner spaces stay as they are. At most `longest` bytes: netCDF readers stop at 256.

    Raises:
        ValueError: The name is empty, too long, or holds what no text file can hold.
        TypeError: The name is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; it must be a string")
    if not name:
        raise ValueError("name is empty; give the result a name")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"name {name!r} holds a lone surrogate, which is no text; choose another name") from None
    if "\0" in name:
        raise ValueError(f"name {name!r} holds a NUL character, which files cannot keep; choose another name")

    composed = unicodedata.is_normalized("NFC", name)  # netCDF readers compose names, which would lose the difference

    def kept(place: int, character: str) -> bool:
        first, last = place == 0, place == len(name) - 1
        if not character.isascii():
            return composed and character.isalnum()
        if character == " ":
            return not (first or last)
        return bool(_PLAIN.match(character)) and not (first and character in ".-")

    escaped = "".join(c if kept(i, c) else quote(c, safe="") if quote(c, safe="") != c else f"%{ord(c):02X}" for i, c in enumerate(name))
    if len(escaped.encode()) > longest:
        raise ValueError(f"name {name[:40]!r}... takes {len(escaped.encode())} bytes in a file; at most {longest} are allowed")
    return escaped


def unescape_name(escaped: str) -> str:
    """Return the name that a group name stands for."""
    return unquote(escaped, errors="strict")


def file_name(name: str) -> str:
    """Return a name for a file, without a suffix, that stands for any name a user may give."""
    return escape_name(name, longest=200)


def printable(text: str) -> str:
    r"""Return text safe for a terminal: control characters and invisible marks become \x1b and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
