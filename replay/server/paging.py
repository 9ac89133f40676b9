"""Lists in pages: `limit`, `page`, and the next page's name (contract §1)."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from replay.server.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from replay.recording import JsonObject

T = TypeVar("T")


def whole_number(query: Mapping[str, str], key: str, low: int, high: int) -> int | None:
    """A number of the query within its bounds, or None where it is not given. Raises ApiError (400)."""
    text = query.get(key)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise invalid(f"{key}: must be an integer from {low} to {high}")
    return number


def page(
    items: Sequence[T], query: Mapping[str, str], name: Callable[[T], str], *, default: int = 20, most: int = 100
) -> tuple[list[T], str | None]:
    """The page that a query asks for, and the next one's name. A page begins behind a named item, so that items added
    meanwhile shift nothing. Raises ApiError (400)."""
    limit = whole_number(query, "limit", 1, most) or default
    start = 0
    if token := query.get("page"):
        last = _decode(token)
        names = [name(item) for item in items]
        if last not in names:
            raise invalid("page: not a page of this list")
        start = names.index(last) + 1
    chosen = list(items[start : start + limit])
    more = start + limit < len(items)
    return chosen, _encode(name(chosen[-1])) if more and chosen else None


def listing(
    items: Sequence[JsonObject], query: Mapping[str, str], *, key: str = "id", default: int = 20, most: int = 100
) -> JsonObject:
    """The list envelope of a page."""
    chosen, following = page(items, query, lambda item: str(item[key]), default=default, most=most)
    return {"data": chosen, "next_page": following}


def in_period(stamp: str, query: Mapping[str, str], key: str = "created_at") -> bool:
    """Whether a stamp lies within the query's `created_at[gt|gte|lt|lte]`."""
    bounds: dict[str, Any] = {"gt": stamp.__gt__, "gte": stamp.__ge__, "lt": stamp.__lt__, "lte": stamp.__le__}
    return all(
        f"{key}[{name}]" not in query or holds(_comparable(query[f"{key}[{name}]"])) for name, holds in bounds.items()
    )


def _comparable(stamp: str) -> str:
    """An RFC 3339 stamp of a client, in the server's own form, in which text order is time order."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        raise invalid(f"created_at: {stamp!r} is not an RFC 3339 time") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _decode(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except ValueError:
        raise invalid("page: not a page of this list") from None
