"""Errors as OpenAI's API tells them: a status and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from herdbook.errors import UserError

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          429: "rate_limit_error"}  # fmt: skip
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class ApiError(Exception):
    """What a client is told.

    Args:
        status: of HTTP.
        param: the parameter that is wrong, as in `messages[0].role`.
        code: a name that programs can compare.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return as_json(self.body(), self.status, headers)


def of_user(error: UserError, param: str | None = None, code: str | None = None) -> ApiError:
    """What a person could mend on the command line, the sender of a request can mend too."""
    where = error.where if param is None else param
    return ApiError(400, error.what if error.todo is None else f"{error.what} ({error.todo})", param=where, code=code)


def draining() -> ApiError:
    """What is told to new requests while the server ends."""
    return ApiError(503, "the server is ending and takes no new requests", code="draining", retry_after=5)


def dumps(value: Any) -> bytes:
    """JSON of ASCII alone: half of a surrogate pair in a client's text has no bytes in UTF-8, but has an escape."""
    return _ENCODER.encode(value).encode("ascii")


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(dumps(value), status, headers, media_type="application/json")
