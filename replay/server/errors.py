"""What the API answers when it refuses: status, type and message of contract §1 and §2.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replay.recording import JsonObject

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    """The `error.type` that goes with a status."""
    if status in _TYPES:
        return _TYPES[status]
    return "api_error" if status >= 500 else "invalid_request_error"


class ApiError(Exception):
    """Raised when a request is refused; becomes the error envelope."""

    def __init__(self, status: int, message: str, *, details: JsonObject | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details

    def body(self, request_id: str) -> JsonObject:
        """The envelope that is sent."""
        error: JsonObject = {"type": error_type(self.status), "message": self.message}
        if self.details is not None:
            error["details"] = self.details
        return {"type": "error", "error": error, "request_id": request_id}


def invalid(message: str, code: str | None = None) -> ApiError:
    """A 400, with an `error_code` where the contract has one."""
    return ApiError(400, message, details={"error_code": code} if code else None)


def missing(what: str, name: str) -> ApiError:
    """A 404."""
    return ApiError(404, f"{what} not found: {name}")
