"""The harnesses by name. Each has `run(data)`, which raises where a promise is broken, and `SEEDS` to begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from tests.fuzz import answers, decoder, guest, mux, relay, trees

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Harness(Protocol):
    """A module of this folder."""

    SEEDS: tuple[bytes, ...]
    run: Callable[[bytes], None]


HARNESSES = cast(
    "Mapping[str, Harness]",
    {"decoder": decoder, "mux": mux, "guest": guest, "answers": answers, "trees": trees, "relay": relay},
)
