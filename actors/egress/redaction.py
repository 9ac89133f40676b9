"""Overwriting a secret in what a server says, so that one that repeats its requests gives nothing away.

As itself, in base64 at each of its three offsets and in both alphabets, in percent-encoding, and as JSON has it.
A server that is to be trusted with a secret may of course write it in ways that nobody here knows.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable

SHORTEST = 6
"""Bytes of an encoded secret below which it is not looked for: it would be found everywhere."""

PARTIAL = 4
"""Bytes of a secret's beginning that are overwritten at the end of a body: a server may be asked to cut it there."""


class Redactor:
    """Overwrites secrets with as many asterisks, also where one is split over two pieces."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """`secrets`: none empty."""
        forms = {form for secret in secrets for form in spellings(secret)}
        # The longest first, since a shorter one may be a part of it.
        self._forms = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms)))
        self._longest = len(self._forms[0])
        self._starts = {form[0] for form in self._forms}
        self._kept = b""

    def whole(self, data: bytes) -> bytes:
        """A piece that stands alone."""
        return self._pattern.sub(lambda found: b"*" * len(found.group()), data)

    def feed(self, data: bytes) -> bytes:
        """What may go on now: all but the beginning of what may be a secret."""
        data = self.whole(self._kept + data)
        cut = self._open_end(data)
        self._kept = data[cut:]
        return data[:cut]

    def rest(self) -> bytes:
        """What was kept back; nothing follows, and what comes now is another message."""
        kept, self._kept = self._kept, b""
        return kept if len(kept) < PARTIAL else b"*" * len(kept)

    def _open_end(self, data: bytes) -> int:
        """Where a secret may begin that is not whole yet; else the end."""
        for at in range(max(0, len(data) - self._longest + 1), len(data)):
            if data[at] in self._starts and any(form.startswith(data[at:]) for form in self._forms):
                return at
        return len(data)


def spellings(secret: bytes) -> set[bytes]:
    """A secret in each way in which it is looked for."""
    text = secret.decode("latin-1")
    quoted = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    quoted |= {re.sub("%..", lambda code: code.group().lower(), form) for form in quoted}
    quoted |= {json.dumps(text)[1:-1], json.dumps(text)[1:-1].replace("/", "\\/")}
    found = {form.encode() for form in quoted} | {base64.b64encode(secret), base64.urlsafe_b64encode(secret)}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret).rstrip(b"=")
        # What is shared with the bytes before and behind it differs with them.
        core = encoded[-(-before * 8 // 6) :]
        if (before + len(secret)) % 3:
            core = core[:-1]
        found |= {core, core.translate(bytes.maketrans(b"+/", b"-_"))}
    return {secret} | {form for form in found if len(form) >= SHORTEST}
