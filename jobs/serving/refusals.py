"""Every way in which a request is refused: one status, one code, one line for a person; the same JSON everywhere."""

from manet.errors import PictureError, Reason

_BY_REASON = {
    Reason.MISSING: 404,
    Reason.UNREADABLE: 502,
    Reason.TOO_LARGE: 413,
    Reason.NOT_A_PICTURE: 415,
    Reason.UNSUPPORTED: 415,
}
_FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
_FOR_PEOPLE = {
    Reason.MISSING: "The picture is no longer where the catalogue says.",
    Reason.UNREADABLE: "The picture cannot be read from where the catalogue says.",
    Reason.EMPTY: "The file is empty.",
    Reason.NOT_A_PICTURE: f"This file is not a picture. Give {_FORMATS}.",
    Reason.TRUNCATED: "The picture's file is cut off: its end is missing. Give a whole one.",
    Reason.CORRUPT: "The picture's file is damaged.",
    Reason.TOO_LARGE: "The picture is too large.",
    Reason.ANIMATED: "The picture is animated; give a still one.",
    Reason.UNSUPPORTED: f"Pictures of this format are not supported. Give {_FORMATS}.",
    Reason.CRASHED_DECODER: "The picture cannot be decoded.",
    Reason.TIMED_OUT: "The picture takes too long to decode.",
    Reason.DEAD_FEATURE_MAP: "Nothing can be seen in the picture.",
}


class Refusal(Exception):  # noqa: N818 - no fault of ours: an answer
    """A request that gets an error for an answer.

    Args:
        status: HTTP status, 4xx or 503.
        code: one word for programs.
        message: one line for people.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers beside the body."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        more = {
            401: {"WWW-Authenticate": "Bearer"},
            408: {"Connection": "close"},
        }  # else the rest of the body is waited for
        return found | more.get(self.status, {})

    def body(self) -> dict[str, dict[str, str]]:
        """The answer's JSON."""
        return {"error": {"code": self.code, "message": self.message}}


def head_too_large() -> Refusal:
    """A request whose address and headers are longer than any that is sent in good faith."""
    return Refusal(431, "headers_too_large", "The request's address and headers are too large.")


def length_required() -> Refusal:
    """A body that comes in chunks, so that nobody knows how long it will be."""
    return Refusal(411, "length_required", "Send the body's Content-Length.")


def of_picture(error: PictureError, most_pixels: int = 0) -> Refusal:
    """What is wrong with a picture, as an answer: no detail of files or addresses leaves the service.

    Args:
        error: what is wrong.
        most_pixels: that a picture may have, where it was decoded under this limit.
    """
    message = _FOR_PEOPLE[error.reason]
    if error.reason is Reason.TOO_LARGE and most_pixels:
        message = f"The picture has too many pixels: at most {most_pixels:,} (width x height) are taken."
    return Refusal(_BY_REASON.get(error.reason, 422), str(error.reason), message)
