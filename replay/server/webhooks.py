"""Webhook deliveries, signed as Standard Webhooks are (contract §15)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson

from replay.server.errors import invalid

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from typing import IO

    from replay.recording import JsonObject
    from replay.server.clock import Clock, Ids

ATTEMPTS = 3
_TIMEOUT_SECONDS = 10.0


@dataclass
class Endpoint:
    """Where deliveries go. Plain HTTP to this machine alone: it is a test server's."""

    url: str
    secret: str
    enabled: bool = True


@dataclass
class Delivery:
    """One attempt, for tests to look at. `status` is 0 where nobody answered."""

    url: str
    event: JsonObject
    attempt: int
    status: int


@dataclass
class Webhooks:
    """Every endpoint, and the faults of their deliveries."""

    clock: Clock
    ids: Ids
    retry_seconds: float = 5.0
    """Before a further attempt."""
    duplicates: int = 0
    """How many of the next events are delivered twice."""
    reorder: bool = False
    """Hold each event back until the next one was delivered."""
    deliveries: list[Delivery] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._endpoints: list[Endpoint] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: JsonObject | None = None
        self._organization_id = self.ids.mint("org_")
        self._workspace_id = self.ids.mint("wrkspc_")

    def add(self, url: str) -> Endpoint:
        """Deliver to `url` from now on; the endpoint has the `whsec_` key. Raises ApiError (400) beyond loopback."""
        if urlsplit(url).hostname not in ("127.0.0.1", "::1", "localhost"):
            raise invalid("url: a recorded-session server delivers to this machine alone")
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self._endpoints.append(Endpoint(url, secret))
        return self._endpoints[-1]

    def emit(self, kind: str, resource_id: str, thread_id: str | None = None) -> None:
        """Deliver an event to every endpoint, in the background."""
        if not self._endpoints:
            return
        data = {"type": kind, "id": resource_id, "organization_id": self._organization_id,
                "workspace_id": self._workspace_id}  # fmt: skip
        if thread_id is not None:
            data["session_thread_id"] = thread_id
        event = {"type": "event", "id": self.ids.mint("whevt_"), "created_at": self.clock.stamp(), "data": data}
        if self.reorder:
            if self._held is None:
                self._held = event
            else:
                self._start([event, self._held])
                self._held = None
            return
        copies = 1
        if self.duplicates > 0:
            self.duplicates -= 1
            copies = 2
        self._start([event] * copies)

    async def settle(self) -> None:
        """Deliver what is held back, and wait for every delivery."""
        if self._held is not None:
            held, self._held = self._held, None
            self._start([held])
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def close(self) -> None:
        """Stop delivering."""
        for task in self._tasks:
            task.cancel()

    def _start(self, events: list[JsonObject]) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver_all(events))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver_all(self, events: list[JsonObject]) -> None:
        for event in events:
            for endpoint in self._endpoints:
                await self._deliver(endpoint, event)

    async def _deliver(self, endpoint: Endpoint, event: JsonObject) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            if not endpoint.enabled:
                return
            status = await asyncio.to_thread(_post, endpoint, event)
            self.deliveries.append(Delivery(endpoint.url, event, attempt, status))
            if 200 <= status < 300:
                return
            if 300 <= status < 400:
                endpoint.enabled = False
                return
            await asyncio.sleep(self.retry_seconds if attempt < ATTEMPTS else 0)


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of a delivery."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Follow none: a redirect disables the endpoint."""


_OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


def _post(endpoint: Endpoint, event: JsonObject) -> int:
    """One signed attempt, signed anew; its status, 0 where nobody answered."""
    body = orjson.dumps(event)
    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "webhook-id": event["id"],
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(endpoint.secret, event["id"], timestamp, body),
    }
    request = urllib.request.Request(endpoint.url, data=body, headers=headers, method="POST")
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0
