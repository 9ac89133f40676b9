"""Marks in a snapshot store at a URL, where there are no locks: who adds to it, or prunes it, says so there.

Each writes a mark of its own first, then looks for the other's, and steps back where there is one. A mark that nobody
has renewed for an hour is of somebody who died, and is removed by whoever finds it. So one that could not renew its
mark in time, or finds it gone, must believe that the other has begun.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from events.store_errors import MarkLost, StoreBusy, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.shelf import Stored

_log = logging.getLogger(__name__)

Kind = Literal["adding", "pruning"]
_MARK_SECONDS = 3600.0
_RENEW_SECONDS = 600.0
_MARGIN_SECONDS = 300.0
"""So much earlier a mark's holder takes it for expired: others' clocks may differ from its own."""
_FOLDER = "marks"
_HOLDERS: dict[Kind, str] = {"adding": "a snapshot is being added to it", "pruning": "it is being pruned"}
_IN_THE_WAY: dict[Kind, tuple[Kind, ...]] = {"adding": ("pruning",), "pruning": ("adding", "pruning")}


class Place(Protocol):
    """Objects by name. Its methods raise `StoreUnavailable`."""

    url: str

    def read(self, name: str) -> bytes | None:
        """See `Shelf`."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put an object, over what is there."""
        ...

    def list(self, folder: str) -> Iterator[Stored]:
        """See `Shelf`."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object. No error where there is none."""
        ...


class Mark:
    """A mark that is held, and renewed by a thread."""

    def __init__(self, place: Place, kind: Kind) -> None:
        self.name = f"{kind}-{secrets.token_hex(8)}"
        self._place = place
        self._written = (0.0, 0.0)
        """When, by the clock on the wall, and by that which also counts while the machine sleeps."""
        self._lost = ""

    def write(self) -> None:
        """Put it there. Raises `StoreUnavailable`."""
        self._written = self._put()

    def check_here(self) -> None:
        """Raise `MarkLost` where nobody has to respect it any more, as far as is known without a request."""
        if not self._lost and any(now - then > _MARK_SECONDS - _MARGIN_SECONDS for now, then in self._since()):
            self._lost = "it could not be renewed for an hour"
        if self._lost:
            raise MarkLost(store=self._place.url, mark=self.name, detail=self._lost)

    def check(self) -> None:
        """Raise `MarkLost` where nobody has to respect it any more, and `StoreUnavailable`."""
        self.check_here()
        if self._place.read(f"{_FOLDER}/{self.name}") is None:
            self._lost = "somebody removed it"
        self.check_here()

    def renew(self) -> None:
        """Write it again, if it is still there: one that was removed must not come back. Raises as `check`."""
        self.check()
        written = self._put()
        # As old as it was until it was written: somebody may have removed it while this thread stood still.
        self.check_here()
        self._written = written

    def remove(self) -> None:
        """Take it away. One that can't be is in the way of others for an hour, and no harm."""
        try:
            self._place.remove(f"{_FOLDER}/{self.name}")
        except StoreUnavailable as error:
            _log.warning("mark not removed mark=%s %s", self.name, error)

    def _put(self) -> tuple[float, float]:
        now = _now()
        self._place.write(f"{_FOLDER}/{self.name}", json.dumps({"at": now[0]}).encode())
        return now

    def _since(self) -> Iterator[tuple[float, float]]:
        return zip(_now(), self._written, strict=True)


@contextmanager
def marked(place: Place, kind: Kind, wait_seconds: float) -> Iterator[Mark]:
    """Hold a mark while nobody holds one that is in its way.

    Raises `StoreBusy` where somebody does for `wait_seconds`, `StoreUnavailable`.
    """
    mark = Mark(place, kind)
    until = time.monotonic() + wait_seconds
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(mark, done), name=f"mark {mark.name}", daemon=True)
    try:
        while True:
            mark.write()
            holder = _holder(place, _IN_THE_WAY[kind], mark.name)
            if not holder:
                break
            place.remove(f"{_FOLDER}/{mark.name}")
            if time.monotonic() >= until:
                raise StoreBusy(store=place.url, holder=holder)
            time.sleep(0.1 + secrets.randbelow(100) / 1000)
        renewing.start()
        yield mark
    finally:
        done.set()
        if renewing.ident is not None:
            # Else it could put the mark back after this.
            renewing.join()
        mark.remove()


def _renew(mark: Mark, done: threading.Event) -> None:
    while not done.wait(_RENEW_SECONDS):
        try:
            mark.renew()
        except StoreUnavailable as error:
            _log.warning("mark not renewed, and tried again mark=%s %s", mark.name, error)
        except MarkLost as error:
            _log.warning("mark lost %s", error)
            return


def _holder(place: Place, kinds: tuple[Kind, ...], but: str) -> str:
    """What somebody does who has a mark of one of these kinds; "" where nobody has. Expired ones are removed."""
    for found in list(place.list(_FOLDER)):
        kind = next((one for one in kinds if found.name.startswith(f"{one}-")), None)
        if kind is None or found.name == but:
            continue
        told = place.read(f"{_FOLDER}/{found.name}")
        if told is None:
            continue
        at = _time_of(told)
        if at is None:
            # Who wrote it may be at work: to wait is safe.
            return f"perhaps {_HOLDERS[kind]}: {_FOLDER}/{found.name} can't be read; remove it if nobody does"
        if time.time() - at < _MARK_SECONDS:
            return _HOLDERS[kind]
        place.remove(f"{_FOLDER}/{found.name}")
    return ""


def _time_of(told: bytes) -> float | None:
    try:
        at = float(json.loads(told)["at"])
    except (ValueError, TypeError, KeyError):
        return None
    return at if math.isfinite(at) else None


def _now() -> tuple[float, float]:
    return time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
