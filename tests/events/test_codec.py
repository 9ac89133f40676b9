from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import pytest
from pydantic import ValidationError

from events.codec import ADAPTER, CODEC, Codec
from events.envelope import event_id_for, new_events
from events.payload import Payload
from events.sqlite_log import SqliteLog
from events.types import SessionIdled, SessionReleased

if TYPE_CHECKING:
    from pathlib import Path

    from events.payload import JsonObject
    from events.types import EventData

DESIGNED = """
session.claimed .attached .result_posted .idled .lease_lost .released .failed .terminated .sandbox_kept
tool_call.requested .started .completed .interrupted .denied
sandbox.created .started .frozen .thawed .suspended .resumed .snapshotted .forked .branched .crashed .recovered .killed
sandbox.adopted .snapshot_stored .stopped .process_started .process_ended .forward_opened .forward_closed .file_copied
egress.connected .closed .refused .policy_changed
replay.verified .diverged
bisect.begun .probed .found
"""


def test_every_designed_type_is_there_and_no_other() -> None:
    designed, entity = set(), ""
    for line in DESIGNED.split("\n"):
        for name in line.split():
            entity = entity if name.startswith(".") else name.partition(".")[0]
            designed.add(entity + name[name.index(".") :])
    assert set(CODEC.models) == designed


def test_names_are_entity_and_participle_and_data_is_closed() -> None:
    for name, model in CODEC.models.items():
        assert re.fullmatch(r"[a-z_]+\.[a-z_]+", name)
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"
        assert model.__doc__


def test_the_union_reads_what_the_codec_writes() -> None:
    data = SessionReleased(claim_id="c", reason="idle")
    encoded = CODEC.encode(data)
    assert json.loads(encoded) == {"type": "session.released", "claim_id": "c", "reason": "idle"}
    assert ADAPTER.validate_json(encoded) == CODEC.decode("session.released", 1, encoded, 1) == data
    with pytest.raises(ValidationError):
        ADAPTER.validate_json(b'{"type":"session.vanished"}')


class Idled(Payload):
    """A newer `session.idled`."""

    schema_version: ClassVar[int] = 2

    type: Literal["session.idled"] = "session.idled"
    stop_reason: str
    thread_id: str


def _stored(path: Path) -> list[tuple[str, bytes]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT data, hash FROM events").fetchall()


def _add_thread(raw: JsonObject) -> JsonObject:
    return {**raw, "thread_id": "main"}


def test_a_type_without_an_upcaster_is_found_at_once() -> None:
    with pytest.raises(LookupError, match=r"no upcaster from version 1 of session\.idled"):
        Codec([Idled], {})


def test_an_old_log_is_read_with_a_new_codec_and_its_bytes_stay(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with SqliteLog(path) as old:
        old.append("session-s", new_events("c", [SessionIdled(stop_reason="end_turn")]), expected=0)
    before = _stored(path)
    with SqliteLog(path, codec=Codec([Idled], {("session.idled", 1): _add_thread})) as new:
        [event] = new.read("session-s")
        data: object = event.data
        assert data == Idled(stop_reason="end_turn", thread_id="main")
        assert event.schema_version == 1
        assert list(new.read_data("session-s")) == [event.data]
        newer = cast("EventData", Idled(stop_reason="x", thread_id="t"))
        [later] = new.append("session-s", new_events("d", [newer]), expected=1)
        assert later.schema_version == 2
        assert new.verify() is None
    assert _stored(path)[:1] == before


def test_an_id_depends_on_the_command_and_the_ordinal_alone() -> None:
    first, second = new_events("command", [SessionIdled(stop_reason="a"), SessionIdled(stop_reason="b")])
    again = new_events("command", [SessionIdled(stop_reason="c")])[0]
    assert first.event_id == again.event_id == event_id_for("command", 0)
    assert second.event_id == event_id_for("command", 1) != first.event_id
    # Written in logs: it must never change.
    assert str(event_id_for("command", 0)) == "a4d35fc0-87a1-54e4-b83c-7cb21c894666"
