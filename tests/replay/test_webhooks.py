"""Webhooks, as the SDK unwraps them (contract §15)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import standardwebhooks

if TYPE_CHECKING:
    import anthropic

    from replay.server import RecordedServer
    from tests.replay.conftest import Begin, Caller

ID = "webhook-id"


@dataclass
class Receiver:
    """Takes deliveries; answers the first `statuses`, then 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], str]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            kept.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(kept.statuses.pop(0) if kept.statuses else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        kept.url = f"http://127.0.0.1:{listening.server_address[1]}/hook"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield kept
        listening.shutdown()
        thread.join()


@pytest.fixture
def key(server: RecordedServer, receiver: Receiver) -> str:
    server.call(lambda platform: setattr(platform.webhooks, "retry_seconds", 0.01))
    return server.add_webhook(receiver.url)


def settle(server: RecordedServer, count: int) -> None:
    server.wait_for(lambda p: len(p.webhooks.deliveries) >= count, timeout=10, what=f"{count} deliveries")


def test_the_sdk_unwraps_what_is_sent(
    server: RecordedServer, client: anthropic.Anthropic, receiver: Receiver, key: str, begin: Begin
) -> None:
    session = begin("bash-true")
    settle(server, 5)
    events = [client.beta.webhooks.unwrap(body, headers=headers, key=key) for headers, body in receiver.got]
    # One delivery may overtake another: only what came is promised, not its order.
    kinds = {event.data.type for event in events}
    assert kinds >= {"session.created", "session.status_run_started", "session.status_idled"}
    assert {event.data.id for event in events if event.data.type.startswith("session.")} == {session}
    headers, body = receiver.got[0]
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        client.beta.webhooks.unwrap(body.replace("session", "sessiom"), headers=headers, key=key)


def test_a_delivery_is_tried_three_times(server: RecordedServer, app: Caller, receiver: Receiver, key: str) -> None:
    receiver.statuses = [500, 503, 500, 200]
    app("POST", "/v1/environments", {"name": "one"})
    settle(server, 3)
    app("POST", "/v1/environments", {"name": "two"})
    settle(server, 4)
    tried = server.call(lambda p: [(d.attempt, d.status) for d in p.webhooks.deliveries])
    assert tried == [(1, 500), (2, 503), (3, 500), (1, 200)]
    assert len({headers[ID] for headers, _ in receiver.got[:3]}) == 1
    assert key


def test_duplicates_and_disorder_can_be_had(server: RecordedServer, app: Caller, receiver: Receiver, key: str) -> None:
    app("POST", "/_replay/faults", {"fault": "webhooks", "duplicates": 1})
    app("POST", "/v1/environments", {"name": "one"})
    settle(server, 2)
    assert receiver.got[0][0][ID] == receiver.got[1][0][ID]
    app("POST", "/_replay/faults", {"fault": "webhooks", "reorder": True})
    ids = [app("POST", "/v1/environments", {"name": name}).body["id"] for name in ("two", "three")]
    settle(server, 4)
    order = server.call(lambda p: [d.event["data"]["id"] for d in p.webhooks.deliveries[2:]])
    assert order == ids[::-1]
    assert key


def test_a_redirect_disables_the_endpoint(server: RecordedServer, app: Caller, receiver: Receiver, key: str) -> None:
    receiver.statuses = [302]
    app("POST", "/v1/environments", {"name": "one"})
    settle(server, 1)
    app("POST", "/v1/environments", {"name": "two"})
    assert len(receiver.got) == 1
    assert key


def test_nobody_there_is_no_answer(server: RecordedServer, app: Caller) -> None:
    server.call(lambda platform: setattr(platform.webhooks, "retry_seconds", 0.0))
    app("POST", "/_replay/webhooks", {"url": "http://127.0.0.1:9/"})
    app("POST", "/v1/environments", {"name": "one"})
    settle(server, 3)
    assert server.call(lambda p: [d.status for d in p.webhooks.deliveries]) == [0, 0, 0]


def test_only_this_machine_is_delivered_to(app: Caller) -> None:
    answer = app("POST", "/_replay/webhooks", {"url": "http://192.0.2.1/"})
    assert answer.status == 400
    assert "this machine" in answer.error["message"]
