"""What was seen of file trees when they were last put into the store, so that only what changed is read again.

One file for a template's root or a sandbox, in `listings` of the storage folder: a cache, which may be deleted.
"""

from __future__ import annotations

import json
import logging
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zstandard

from events.entries import path_of
from events.tree_reader import Seen

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listing:
    """What was seen of a tree."""

    snapshot_id: str = ""
    """Under which its chunks are in the store."""
    digest: str = ""
    """Of that manifest."""
    seen: dict[str, Seen] = field(default_factory=dict)


class Listings:
    """The listings of one storage folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, name: str) -> Listing:
        """The last one of a tree; an empty one where there is none, or none that can be read."""
        try:
            with zstandard.open(self._folder / name, "rt", encoding="utf-8", newline="\n") as lines:
                told = json.loads(next(lines, ""))
                seen = {}
                for line in lines:
                    numbers, _, entry = line.removesuffix("\n").partition("\t")
                    stamp, size = numbers.rpartition(" ")[0], numbers.rpartition(" ")[2]
                    seen[path_of(entry)] = Seen(tuple(map(int, stamp.split())), entry, int(size))
            if len(seen) != told["entries"]:
                return Listing()  # cut off
            return Listing(told["snapshot_id"], told["digest"], seen)
        except (OSError, ValueError, TypeError, KeyError, zstandard.ZstdError):
            return Listing()

    def save(self, name: str, listing: Listing) -> None:
        """Keep one, in place of the last. Where that fails it is a warning: the next look at the tree takes longer."""
        try:
            self._save(name, listing)
        except OSError as error:
            log.warning("listing not kept name=%s %s", name, error)

    def _save(self, name: str, listing: Listing) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        head = {"snapshot_id": listing.snapshot_id, "digest": listing.digest, "entries": len(listing.seen)}
        fresh = self._folder / f"{name}.{secrets.token_hex(4)}.new"
        try:
            # Line by line: all of it at once would be in memory three times.
            with zstandard.open(fresh, "wt", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(head) + "\n")
                file.writelines(
                    f"{' '.join(map(str, one.stamp))} {one.bytes}\t{one.line}\n" for one in listing.seen.values()
                )
            fresh.rename(self._folder / name)
        finally:
            fresh.unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        """Forget one. No error where there is none."""
        (self._folder / name).unlink(missing_ok=True)
