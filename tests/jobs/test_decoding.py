"""`jobs.decoding`: real decode processes that crash, hang and are killed."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from cluster.errors import JobFailedError
from jobs.decoding import SLOTS, Decoder
from manet.errors import PictureError, Reason
from manet.images import PictureConfig, decode
from tests.manet.test_images import JPEG, PNG

CONFIG = PictureConfig(size=32)


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    """A decode process that does what the bytes say."""
    decoder = Decoder(CONFIG, 5.0, "tests.jobs.bad_decoder")
    yield decoder
    decoder.close()


def _decoded(decoder: Decoder, pictures: list[bytes]) -> tuple[np.ndarray, list[Reason | None]]:
    out = np.zeros((len(pictures), 32, 32, 3), np.uint8)
    errors = decoder.decode(pictures, out)
    return out, [None if error is None else error.reason for error in errors]


def test_the_pixels_are_those_of_the_one_path() -> None:
    """Many batches; with an error in the middle."""
    decoder = Decoder(CONFIG, 30.0)
    pictures = [JPEG, PNG, b"", JPEG[:200]] * (SLOTS // 2)
    out, reasons = _decoded(decoder, pictures)
    decoder.close()
    assert reasons == [None, None, Reason.EMPTY, Reason.TRUNCATED] * (SLOTS // 2)
    assert (out[0::4] == decode(JPEG, CONFIG)).all()
    assert (out[1::4] == decode(PNG, CONFIG)).all()
    assert decoder.restarts == 0


def test_a_crash_costs_its_picture_only(decoder: Decoder) -> None:
    out, reasons = _decoded(decoder, [JPEG, b"crash", PNG, b"leave", JPEG])
    assert reasons == [None, Reason.CRASHED_DECODER, None, Reason.CRASHED_DECODER, None]
    assert (out[[0, 4]] == decode(JPEG, CONFIG)).all()
    assert (out[2] == decode(PNG, CONFIG)).all()
    assert decoder.restarts == 4  # each was tried again, alone
    errors = decoder.decode([b"crash", b"leave"], np.zeros((2, 32, 32, 3), np.uint8))
    assert "SIGABRT" in str(errors[0])
    assert "exit code 3" in str(errors[1])


def test_a_hang_ends_at_the_time_limit(decoder: Decoder) -> None:
    out, reasons = _decoded(decoder, [b"hang", JPEG])
    assert reasons == [Reason.TIMED_OUT, None]
    assert (out[1] == decode(JPEG, CONFIG)).all()


def test_a_process_that_is_killed_from_outside_costs_nothing(decoder: Decoder, tmp_path: Path) -> None:
    _, reasons = _decoded(decoder, [JPEG, b"killed:" + os.fsencode(tmp_path / "seen"), JPEG])
    assert reasons == [None, Reason.EMPTY, None]  # it was decoded the second time
    assert decoder.restarts == 1
    process = decoder._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert _decoded(decoder, [JPEG, PNG])[1] == [None, None]


def test_memory_is_bounded_and_what_libraries_say_goes_nowhere(
    decoder: Decoder, capfd: pytest.CaptureFixture[str]
) -> None:
    _, reasons = _decoded(decoder, [b"memory", b"talk", JPEG])
    assert reasons == [Reason.TOO_LARGE, Reason.CORRUPT, None]
    assert capfd.readouterr() == ("", "")


def test_closing_leaves_no_process_and_no_pipe(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what it opened itself: other threads of this process open files meanwhile."""
    opened: list[str] = []
    files: list[IO[bytes]] = []
    spawn = decoder._spawn

    def watched(errors: IO[bytes]) -> subprocess.Popen[bytes]:
        process = spawn(errors)
        for file in (process.stdin, process.stdout):
            assert file is not None
            opened.append(str(Path(f"/proc/self/fd/{file.fileno()}").readlink()))
        files.append(errors)
        return process

    monkeypatch.setattr(decoder, "_spawn", watched)
    _decoded(decoder, [JPEG, b"crash"])
    decoder.decode([JPEG], np.zeros((1, 32, 32, 3), np.uint8))
    process = decoder._process
    assert process is not None
    decoder.close()
    assert process.returncode == -signal.SIGKILL
    left = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that the folder was read by
            left.add(str(path.readlink()))
    assert len(set(opened)) >= 4 and not left & set(opened)
    assert len(files) >= 2 and all(file.closed for file in files)


def test_a_process_that_cannot_start_fails_the_job() -> None:
    decoder = Decoder(CONFIG, 3.0, "tests.jobs.no_such_module")
    with pytest.raises(JobFailedError, match="no_such_module"):
        decoder.decode([JPEG], np.zeros((1, 32, 32, 3), np.uint8))


def test_it_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import jobs.decoder, sys; assert not {'torch', 'ray', 'boto3', 'cluster', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_errors_carry_one_line(decoder: Decoder) -> None:
    (error,) = decoder.decode([b"crash"], np.zeros((1, 32, 32, 3), np.uint8))
    assert isinstance(error, PictureError)
    assert "\n" not in error.detail
