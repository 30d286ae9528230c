import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def _servers(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command and b"weed" in command:
                found.append(int(entry.name))
    return found


def test_the_server_ends_with_its_owner_even_when_that_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-m", "cluster.local_s3", "--dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
        cwd=Path(__file__).parents[2],
    )
    assert owner.stdout is not None
    lines = [owner.stdout.readline() for _ in range(5)]
    owner.stdout.close()
    assert lines[0].startswith("export AWS_ENDPOINT_URL=http://127.0.0.1:")
    assert _servers(tmp_path)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 20
    while _servers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _servers(tmp_path)
