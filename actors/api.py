"""Anthropic's API as Hourglass uses it: which credential, and what a failure means.

Failures are sorted here and nowhere else. *Fatal*: a 4xx that a repeat will not mend. *Transient*: everything else that
the network or the server did (contract §1, §9); 408, 409 and 429 are transient.
"""

from __future__ import annotations

import base64
import binascii
import os

import httpx2
import orjson
from anthropic import APIError, APIStatusError, AsyncAnthropic

API_ERRORS: tuple[type[Exception], ...] = (APIError, httpx2.HTTPError, TimeoutError, ValueError)
"""What a call of the API may raise: the SDK's own errors, the transport's while a stream is read, and `ValueError` for
a body that is not what was asked for: the SDK lets JSON errors through, and gives other bodies as they are."""

_RETRYABLE_4XX = frozenset({408, 409, 429})
_SECRET_BYTES_MAX = 64 * 1024


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an API error; None for anything that never got an answer."""
    return error.status_code if isinstance(error, APIStatusError) else None


def is_fatal(error: BaseException) -> bool:
    """Whether repeating the call can't help."""
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in _RETRYABLE_4XX


def is_rejected_credential(error: BaseException) -> bool:
    """Whether the server refused who we are (contract §2.2), rather than what we asked."""
    return status_of(error) in (401, 403)


def describe(error: BaseException) -> str:
    """One line for a log or an event: status and the server's own words, without headers or keys."""
    status = status_of(error)
    text = " ".join(str(error).split())[:500]
    return f"HTTP {status}: {text}" if status is not None else f"{type(error).__name__}: {text}"


def forget_credentials() -> None:
    """Drop every variable of this process that may hold a key, so that nothing it starts inherits one."""
    for name in [name for name in os.environ if name.startswith("ANTHROPIC_") or name == "HOURGLASS_ENVIRONMENT_KEY"]:
        del os.environ[name]


def connect(base_url: str | None, token: str) -> AsyncAnthropic:
    """A client that sends `token` as a bearer and nothing else.

    The SDK would add a key or headers that it finds in the environment; callers run after `forget_credentials`. Its
    spans have no content, whatever the environment says: what a tool was given and returned is nobody's trace.
    """
    return AsyncAnthropic(
        base_url=base_url, auth_token=token, open_telemetry={"traces": {"content_mode": "metadata_only"}}
    )


def as_bearer(client: AsyncAnthropic, token: str) -> AsyncAnthropic:
    """The same client, connection pool included, with another credential."""
    return client.copy(auth_token=token, base_url=client.base_url)


def session_token(secret: str | None) -> str | None:
    """The per-item token in a work item's `secret` (contract §2): unpadded URL-safe base64 of a JSON object.

    Returns None where there is none, or where the secret can't be read; the environment key serves the item then.
    """
    if not secret or len(secret) > _SECRET_BYTES_MAX:
        return None
    try:
        payload = orjson.loads(base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4)))
    except (binascii.Error, ValueError):
        return None
    token = payload.get("sessions_token") if isinstance(payload, dict) else None
    return token if isinstance(token, str) and token else None
