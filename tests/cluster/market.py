"""EC2's instance metadata service, as far as it tells of the spot market: IMDSv2 on a port of this machine."""

import json
import secrets
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cluster.faults import InThread
from tests.clusters import RealCluster
from tests.conftest import ROOT


class SpotMarket(InThread):
    """Answers at `address`; there is no notice until `take`."""

    def __init__(self) -> None:
        self.told = ""  # what stands at instance-action; empty: 404
        self.tokens: set[str] = set()
        self.refused = 0
        self.gives = True  # tokens that are good
        market = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert self.path == "/latest/api/token"
                assert 0 < int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
                token = secrets.token_hex(8)
                market.tokens |= {token} if market.gives else set()
                self._answer(200, token)

            def do_GET(self) -> None:
                if self.headers["X-aws-ec2-metadata-token"] not in market.tokens:
                    market.refused += 1
                    self._answer(401, "")
                elif self.path != "/latest/meta-data/spot/instance-action" or not market.told:
                    self._answer(404, "")
                else:
                    self._answer(200, market.told)

            def _answer(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, seconds: float) -> None:
        """Give notice that the instance ends in so many seconds, as EC2 words it."""
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        self.told = json.dumps({"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"})

    def watched(self, made: RealCluster, node: str, lock: Path) -> "subprocess.Popen[str]":
        """The watcher of one node of a cluster, as its own process."""
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.notices", "--every", "0.2", "--lock", str(lock), "--node", node],
            cwd=ROOT, text=True, stderr=subprocess.PIPE,
            env={**made.environ, "RAY_ADDRESS": made.gcs, "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.address},
        )  # fmt: skip
