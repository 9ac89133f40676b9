"""The ASGI application: every endpoint, and around them request ids, the journal and the faults."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from replay.server.endpoint import bind, json
from replay.server.errors import ApiError
from replay.server.faults import Fault, Wrong
from replay.server.platform import Platform, Served
from replay.server.routes import admin, environments, events, memory, sessions, skills, work

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MODULES = (work, environments, sessions, events, memory, skills, admin)


def build(platform: Platform) -> ASGIApp:
    """The application of a platform."""
    rules = [rule for module in _MODULES for rule in module.RULES]
    routes = [Route(rule.path, bind(rule, platform), methods=[rule.method]) for rule in rules]
    app = Starlette(routes=routes, exception_handlers=_HANDLERS)
    return Gate(app, platform)


class Gate:
    """What every request passes: it gets an id and a line in the journal, and meets the fault that waits for it."""

    def __init__(self, app: ASGIApp, platform: Platform) -> None:
        self._app = app
        self._platform = platform

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        served = _journal_line(scope)
        self._platform.journal.append(served)
        cut = _cutter(send)
        request_id = self._platform.ids.mint("req_")
        scope["state"] = {"request_id": request_id, "cut": cut}

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                served.status = message["status"]
                served.credential = scope["state"].get("credential", "")
                message["headers"] = [*message["headers"], (b"request-id", request_id.encode())]
            await send(message)

        fault = self._platform.faults.take(scope["method"], scope["path"])
        if fault is None:
            await self._app(scope, receive, reply)
        else:
            await self._go_wrong(fault, scope, receive, reply)

    async def _go_wrong(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        if fault.wrong is Wrong.SLOW:
            await asyncio.sleep(fault.seconds)
            await self._app(scope, receive, send)
            return
        if fault.wrong in (Wrong.REFUSED, Wrong.LOST_RESPONSE):
            if fault.wrong is Wrong.LOST_RESPONSE:
                await self._app(scope, receive, _swallow)
            scope["state"]["cut"]()
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        if fault.wrong is Wrong.EMPTY:
            await json(None)(scope, receive, send)
            return
        error = fault.error()
        response = json(error.body(scope["state"]["request_id"]), error.status)
        if fault.retry is not None:
            response.headers["x-should-retry"] = str(fault.retry).lower()
        await response(scope, receive, send)


async def _swallow(message: Message) -> None:
    """Lose a response."""


def _cutter(send: Send) -> Any:
    """What cuts a request's connection. ASGI has no word for it: `send` is a method of uvicorn's request cycle, which
    holds the transport."""
    cycle = getattr(send, "__self__", None)
    transport = getattr(cycle, "transport", None)
    return transport.abort if transport is not None else lambda: None


def _journal_line(scope: Scope) -> Served:
    headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
    return Served(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        helper=headers.get("x-stainless-helper", ""),
        worker_id=headers.get("anthropic-worker-id", ""),
    )


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return json(error.body(request.scope["state"]["request_id"]), error.status)


def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return json(refusal.body(request.scope["state"]["request_id"]), error.status_code)


def _failed(request: Request, error: Exception) -> Response:
    """A bug of this server: said in the envelope here, and with its trace by uvicorn."""
    refusal = ApiError(500, f"Internal server error: {type(error).__name__}")
    return json(refusal.body(request.scope["state"]["request_id"]), 500)


_HANDLERS = {ApiError: _refused, HTTPException: _unrouted, Exception: _failed}
