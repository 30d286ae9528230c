"""What the tests of commands share: their summary line, their one-line errors, the checksums that they left."""

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

from cluster.artifact import open_artifact

Done = subprocess.CompletedProcess[str]


def summary_of(done: Done) -> dict[str, Any]:
    """The last line on stdout of a command that succeeded."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_refused(done: Done, code: int, *words: str) -> None:
    """It exited with `code`, nothing on stdout, and its last line on stderr names what is wrong; never a traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("manet: "), done.stderr
    for word in words:
        assert word in lines[-1]
    if code == 2:
        assert len(lines) == 1, done.stderr


def checksums(uri: object, kind: str = "descriptors") -> dict[str, str]:
    """Part name -> sha256 as the manifest has them, after the stored bytes were held against it."""
    artifact = open_artifact(str(uri), kind)
    artifact.verify()
    return {part.name: part.sha256 for part in artifact.manifest.parts}


def scalars(events: Path) -> dict[str, list[tuple[int, float]]]:
    """What a TensorBoard file holds: name -> (step, value) in order."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = events.read_bytes(), 0
    found: dict[str, list[tuple[int, float]]] = {}
    while at < len(data):  # a record: length, its checksum, the event, its checksum
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        at += length + 16
    return found
