"""What goes wrong, as HTTP says it."""

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from mmspec.errors import MmspecError
from mmspec.serve.batcher import Busy, Closing


class Refusal(MmspecError):
    """A request that is answered with an error of this HTTP status."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """What every error looks like."""

    error: ErrorDetails


# What any endpoint may answer beside what was asked for, for the description.
ERROR_RESPONSES: dict[int | str, dict] = {
    400: {"model": ErrorBody, "description": "The request is wrong; the message says how."},
    401: {"model": ErrorBody, "description": "The API key is missing or wrong."},
    404: {"model": ErrorBody, "description": "No such model."},
    408: {"model": ErrorBody, "description": "The body did not come in time."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    429: {"model": ErrorBody, "description": "The queue is full: ask again after Retry-After seconds."},
    503: {"model": ErrorBody, "description": "The server is shutting down, or a model has stopped."},
    504: {"model": ErrorBody, "description": "The request took longer than the server allows."},
}

FAILED = "the server failed on this request; its log says why"


def error_response(error: Exception) -> JSONResponse:
    """The answer to a request that failed."""
    status, code, headers = 503 if isinstance(error, Closing) else 400, None, {}
    if isinstance(error, Refusal):
        status, code = error.status, error.code
    elif isinstance(error, Busy):
        status, code, headers = 429, "queue_full", {"Retry-After": "2"}
    kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
    body = {"error": {"message": str(error), "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status, headers)
