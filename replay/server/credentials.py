"""The three kinds of credential, told apart by value (contract §2), and who may ask what."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import orjson

from replay.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(StrEnum):
    """Whose credential it is."""

    API = "api_key"
    ENVIRONMENT = "environment_key"
    SESSION = "sessions_token"


EVERYBODY = frozenset(Kind)


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    kind: Kind
    environment_id: str = ""
    """The environment that an environment key or a sessions token is bound to."""
    session_id: str = ""
    """The session that a sessions token is bound to."""

    def require(self, allowed: frozenset[Kind]) -> None:
        """Refuse a credential of a kind that the endpoint does not take (contract §2.1). Raises ApiError."""
        if self.kind not in allowed:
            raise ApiError(401, "Authentication failed")

    def require_environment(self, environment_id: str) -> None:
        """Refuse the key of another environment. Raises ApiError."""
        if self.kind is not Kind.API and self.environment_id != environment_id:
            raise ApiError(403, "Token not authorized for this environment")

    def require_session(self, session_id: str, environment_id: str) -> None:
        """Refuse the token of another session, and the key of another session's environment. Raises ApiError."""
        self.require_environment(environment_id)
        if self.kind is Kind.SESSION and self.session_id != session_id:
            raise ApiError(403, "Token not authorized for this session")


class Credentials:
    """Every credential that was ever valid here."""

    def __init__(self, api_key: str) -> None:
        self._known: dict[str, Principal] = {api_key: Principal(Kind.API)}
        self._revoked: set[str] = set()

    def environment_key(self, environment_id: str) -> str:
        """Mint an environment key."""
        return self._mint("sk-ant-oat01-", Principal(Kind.ENVIRONMENT, environment_id))

    def sessions_token(self, environment_id: str, session_id: str) -> str:
        """Mint the token of one claim."""
        return self._mint("sk-ant-sst01-", Principal(Kind.SESSION, environment_id, session_id))

    def revoke(self, token: str) -> None:
        """Refuse `token` from now on; a token that was never valid is left unknown."""
        if token in self._known:
            self._revoked.add(token)

    def accept(self, token: str, principal: Principal) -> None:
        """Take a token of the caller's choice, e.g. one given on a command line."""
        self._known[token] = principal

    def identify(self, headers: Mapping[str, str]) -> Principal:
        """Who sends these headers: `Authorization: Bearer` or else `x-api-key`. Raises ApiError (401)."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            token = headers.get("x-api-key", "")
        if not token:
            raise ApiError(401, "x-api-key header is required")
        token = token.strip()
        if token in self._revoked:
            raise ApiError(401, "OAuth access token has been revoked.")
        principal = self._known.get(token)
        if principal is None:
            raise ApiError(401, "OAuth access token is invalid")
        return principal

    def _mint(self, prefix: str, principal: Principal) -> str:
        token = prefix + secrets.token_urlsafe(32)
        self._known[token] = principal
        return token


def pack_secret(sessions_token: str) -> str:
    """A work item's `secret`: unpadded URL-safe base64 of a JSON object that holds the token (contract §2)."""
    packed = orjson.dumps({"sessions_token": sessions_token, "session_ingress_token": secrets.token_urlsafe(16)})
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()
