"""The errors of the library, one tree; every message is one line: what, where, what to do.

ManetError
|-- InputError        the user's input cannot be used (the commands exit with 2)
|   `-- WeightsError  weights are missing, of another size or hash, or of another network
|-- NoRoomError       this machine's disk is full: the same again succeeds once there is room
`-- PictureError      one picture cannot be used: it becomes a row of the rejects
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a picture was rejected: the whole vocabulary of the column `reason`."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_A_PICTURE = "not_a_picture"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    ANIMATED = "animated"
    UNSUPPORTED = "unsupported"
    CRASHED_DECODER = "crashed_decoder"
    TIMED_OUT = "timed_out"
    DEAD_FEATURE_MAP = "dead_feature_map"


def one_line(error: BaseException) -> str:
    """What an error of another library says, as a part of one of our lines: 200 characters at most."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class ManetError(Exception):
    """Root of every error that this library raises on purpose."""


class InputError(ManetError):
    """The user's input cannot be used."""


class WeightsError(InputError):
    """Weights are missing, damaged, or belong to another network."""


class NoRoomError(ManetError):
    """A file could not be written on this machine."""


class PictureError(ManetError):
    """One picture cannot be used.

    Args:
        reason: one word of the fixed vocabulary.
        detail: one line for a person.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["PictureError"], tuple[Reason, str]]:
        return (PictureError, (self.reason, self.detail))
