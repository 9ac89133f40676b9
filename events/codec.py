"""Event data to bytes and back, whatever version wrote it.

Reading: a row of the newest schema is validated straight from its JSON. An older one goes through the *upcasters*
first, pure functions from the raw JSON of one schema version to that of the next; the stored bytes never change. A
newer one, or an unknown type, was written by a newer Hourglass and is refused, naming the type and the position: a
state folded without it would be wrong. Readers that only display take the stored row as it is (`SqliteLog.rows`).

How to change an event type: raise `schema_version` on its model and register an upcaster from the version before. An
optional new field needs neither.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Union, cast, get_args

import orjson
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from events.errors import EventNotStorable, EventTooNew, UnknownEventType
from events.types import EventData, JsonObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from events.payload import Payload


_SUSPICIOUS_BYTES = 4096
_SUSPICIOUS_DEPTH = 100
_OPENING = re.compile(rb"[\[{]")


class Codec:
    """A registry of event types: name, model, schema version, upcasters."""

    def __init__(
        self, models: Iterable[type[Payload]], upcasters: Mapping[tuple[str, int], Callable[[JsonObject], JsonObject]]
    ) -> None:
        self.models = {str(model.model_fields["type"].default): model for model in models}
        self.versions = {name: model.schema_version for name, model in self.models.items()}
        self._validators = {name: model.__pydantic_validator__.validate_json for name, model in self.models.items()}
        self.current_data = _current_data(self.versions)
        """SQL: a row's data where it is inline and of the newest schema, else NULL."""
        self._upcasters = dict(upcasters)
        for name, newest in self.versions.items():
            for version in range(1, newest):
                if (name, version) not in self._upcasters:
                    msg = f"no upcaster from version {version} of {name}"
                    raise LookupError(msg)

    def encode(self, data: EventData) -> bytes:
        """JSON, as it is stored.

        Raises:
            EventNotStorable: the data can't be JSON (lone surrogates), or nobody could read it back (too deep, numbers
                too long).
        """
        try:
            encoded = data.__pydantic_serializer__.to_json(data)
            # What is nested deeper than the parser goes would be written and never read again. Only what could be is
            # tried, since trying doubles the cost.
            if len(encoded) > _SUSPICIOUS_BYTES or len(_OPENING.findall(encoded)) > _SUSPICIOUS_DEPTH:
                self._validators[data.type](encoded)
        except (PydanticSerializationError, ValidationError, ValueError, RecursionError) as error:
            raise EventNotStorable(type=data.type, detail=str(error).splitlines()[0]) from error
        return encoded

    def decode(self, event_type: str, schema_version: int, encoded: str | bytes, position: int) -> EventData:
        """Validate stored JSON, brought to the newest schema.

        Raises:
            UnknownEventType, EventTooNew: written by a newer Hourglass.
            pydantic.ValidationError: not what the type promises.
        """
        newest = self.versions.get(event_type)
        if schema_version == newest:
            return cast("EventData", self._validators[event_type](encoded))
        if newest is None:
            raise UnknownEventType(type=event_type, position=position)
        if schema_version > newest:
            raise EventTooNew(type=event_type, position=position, found=schema_version, supported=newest)
        raw = orjson.loads(encoded)
        for version in range(schema_version, newest):
            raw = self._upcasters[event_type, version](raw)
        return cast("EventData", self.models[event_type].model_validate(raw))

    def decode_page(self, page: str) -> list[EventData]:
        """Validate many rows at once, which takes half the time: a JSON array of what `current_data` gives.

        Raises:
            ValueError: at least one of them is not what its type promises: decode them one by one.
        """
        return self._page_adapter.validate_json(page)

    @cached_property
    def _page_adapter(self) -> TypeAdapter[list[EventData]]:
        first, *others = self.models.values()
        if not others:
            return TypeAdapter(list[first])  # type: ignore[valid-type]
        return TypeAdapter(list[Annotated[Union[first, *others], Field(discriminator="type")]])  # type: ignore[valid-type]


def _current_data(versions: Mapping[str, int]) -> str:
    changed = "".join(f" WHEN '{name}' THEN {version}" for name, version in versions.items() if version != 1)
    newest = f"CASE type{changed} ELSE 1 END" if changed else "1"
    return f"CASE schema_version WHEN {newest} THEN data END"


def _more_fields(raw: JsonObject) -> JsonObject:
    """The newer schema has fields that the older lacks, and their defaults say so."""
    return raw


UPCASTERS: dict[tuple[str, int], Callable[[JsonObject], JsonObject]] = dict.fromkeys(
    (
        ("sandbox.created", 1),
        ("sandbox.stopped", 1),
        ("sandbox.crashed", 1),
        ("sandbox.killed", 1),
        ("sandbox.snapshotted", 1),
    ),
    _more_fields,
)
"""By type and the schema version that it takes."""

ADAPTER: TypeAdapter[EventData] = TypeAdapter(EventData)
"""The union as a whole, for JSON whose type stands only inside it."""


def _union_members() -> tuple[type[Payload], ...]:
    union, *_ = get_args(EventData)
    return cast("tuple[type[Payload], ...]", get_args(union))


CODEC = Codec(_union_members(), UPCASTERS)
"""The event types of this version of Hourglass."""
