"""A decode process whose decoder obeys what the bytes say: stands in for the bugs of real ones. Run by test_decoding.py."""

import os
import signal
import time

from jobs.decoder import serve
from manet.errors import PictureError, Reason
from manet.images import PictureConfig, Pixels, decode


def obey(data: bytes, config: PictureConfig) -> Pixels:
    """Crash, hang, be killed, take all memory; or decode."""
    if data == b"crash":
        os.abort()
    if data == b"leave":
        os._exit(3)
    if data == b"hang":
        time.sleep(600)
    if data.startswith(b"killed:"):  # once only, as when somebody else kills it: the file remembers
        try:
            os.close(os.open(data[7:], os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        raise PictureError(Reason.EMPTY, "seen again")
    if data == b"memory":
        return decode_nothing()
    if data == b"talk":
        print("a library's warning", flush=True)  # noqa: T201 - what is tested
        raise PictureError(Reason.CORRUPT, "it talks")
    return decode(data, config)


def decode_nothing() -> Pixels:
    """More memory than a decode process may have."""
    try:
        bytearray(1 << 42)
    except MemoryError:
        raise PictureError(Reason.TOO_LARGE, "no memory") from None
    raise AssertionError


if __name__ == "__main__":
    serve(obey)
