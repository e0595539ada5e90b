"""The one way in which a request is refused, and the one shape in which that is told."""

import json
from typing import Any


class RequestError(Exception):
    """A request that cannot be answered: HTTP status, a code for programs, words for people.

    `retry_after_s` is told to the client as Retry-After: the same request may do better then.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    def encode(self, request_id: str) -> bytes:
        """Return the error as the body of an answer."""
        return json.dumps(self.document(request_id)).encode()

    def document(self, request_id: str) -> dict[str, Any]:
        """Return the error as every client sees it."""
        return {
            "error": {"code": self.code, "message": self.message, "request_id": request_id},
        }


def bad_request(message: str) -> RequestError:
    """Return the error of a request whose form is wrong."""
    return RequestError(400, "bad_request", message)


def unreadable(message: str) -> RequestError:
    """Return the error of a request whose form is right and whose image cannot be read."""
    return RequestError(422, "unreadable_image", message)


def too_large(message: str) -> RequestError:
    """Return the error of a request over one of the limits."""
    return RequestError(413, "payload_too_large", message)


def too_late() -> RequestError:
    """Return the error of a request whose time has passed, or would pass before its turn."""
    return RequestError(
        503, "deadline_exceeded", "the answer would come too late; try again later", 1
    )
