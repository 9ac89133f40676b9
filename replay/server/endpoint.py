"""From a request to a handler and back: who asks, what was sent, what is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from replay.server.errors import ApiError, invalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from replay.recording import JsonObject
    from replay.server.credentials import Kind, Principal
    from replay.server.platform import Platform


@dataclass
class Exchange:
    """One request that was let in."""

    request: Request
    platform: Platform
    principal: Principal

    def __getitem__(self, name: str) -> str:
        """A parameter of the path."""
        return str(self.request.path_params[name])

    @property
    def query(self) -> Mapping[str, str]:
        """The query; see `several` for repeated keys."""
        return self.request.query_params

    def several(self, key: str) -> list[str]:
        """The values of a repeated key, with brackets or without (contract §1)."""
        return self.request.query_params.getlist(f"{key}[]") + self.request.query_params.getlist(key)

    def flag(self, key: str) -> bool:
        """A boolean of the query."""
        return self.query.get(key, "").lower() in ("1", "true")

    async def body(self) -> JsonObject:
        """The JSON object that was sent; an empty body is an empty one. Raises ApiError (400, 413)."""
        most = self.platform.settings.max_request_bytes
        data = bytearray()
        async for chunk in self.request.stream():
            data += chunk
            if len(data) > most:
                raise ApiError(413, f"Request exceeds the maximum size of {most} bytes")
        if not data:
            return {}
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise invalid("The request body is not valid JSON") from None
        if not isinstance(body, dict):
            raise invalid("The request body must be a JSON object")
        return body


@dataclass(frozen=True)
class Rule:
    """One endpoint: method, path, who may ask, what answers."""

    method: str
    path: str
    allowed: frozenset[Kind]
    handler: Callable[[Exchange], Awaitable[Response]]


def json(body: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def bind(rule: Rule, platform: Platform) -> Callable[[Request], Awaitable[Response]]:
    """A Starlette endpoint: identify, refuse or hand on."""

    async def endpoint(request: Request) -> Response:
        principal = platform.credentials.identify(request.headers)
        request.scope["state"]["credential"] = principal.kind.value
        principal.require(rule.allowed)
        return await rule.handler(Exchange(request, platform, principal))

    return endpoint
