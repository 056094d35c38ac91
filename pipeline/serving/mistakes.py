"""Messages for the person at the page, or the author of a request. Each has a status of HTTP."""

from starlette.responses import JSONResponse

RETRY_SECONDS = 1


class Mistake(Exception):
    status = 400


class Missing(Mistake):
    status = 404


class Busy(Mistake):
    status = 429


class Stopping(Mistake):
    status = 503


def refusal(mistake: Mistake) -> JSONResponse:
    """The answer of the API instead of a result."""
    headers = {"Retry-After": str(RETRY_SECONDS)} if isinstance(mistake, Busy) else None
    return JSONResponse({"detail": str(mistake)}, mistake.status, headers)
