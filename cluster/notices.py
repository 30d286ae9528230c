"""Tell Ray that this node will be gone, as soon as EC2's spot market tells the node: what runs there can write a checkpoint.

  python -m cluster.notices     # beside `ray start`, on every node of a spot group

Asks the instance metadata service (IMDSv2; AWS_EC2_METADATA_SERVICE_ENDPOINT names another one) every few seconds. On a notice
of termination, stop or hibernation it drains the node: Ray places nothing there any more, and training writes a checkpoint within
the epoch. Then it ends. Ends at once where it runs already on this node. Fails when the time is over and Ray has not taken it.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from ray._private.services import find_node_ids

_SERVICE = "http://169.254.169.254"
_TOKEN_S = 21600  # the longest that EC2 gives
_ASK_S = 5.0  # what AWS recommends
_TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What the market will do with this instance, and when."""

    action: str
    at: datetime

    @property
    def seconds(self) -> float:
        """Until then; 0: it is over."""
        return max(0.0, (self.at - datetime.now(UTC)).total_seconds())


class Metadata:
    """The instance metadata service.

    Args:
        service: its address.
    """

    def __init__(self, service: str) -> None:
        self._service, self._token = service.rstrip("/"), ""

    def notice(self) -> Notice | None:
        """The market's notice; None: there is none.

        Raises:
            OSError: the service does not answer.
            ValueError: it answers something else.
        """
        if not self._token:
            self._token = self._ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)})
        try:
            told = self._ask("GET", "meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 401:  # the token has run out: the next call gets another
                self._token = ""
                return None
            if error.code == 404:
                return None
            raise
        try:
            found = json.loads(told)
            return Notice(action=str(found["action"]), at=datetime.fromisoformat(found["time"]).astimezone(UTC))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"instance-action is {told[:200]!r}") from error

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> str:
        request = urllib.request.Request(  # noqa: S310 - http, to this node's own address
            f"{self._service}/latest/{path}", method=method, headers=dict(headers)
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())


def wait_for_notice(metadata: Metadata, every: float) -> Notice:
    """Ask until there is one; what the service fails in is said once, until it answers again."""
    failing = False
    while True:
        try:
            found = metadata.notice()
        except (OSError, ValueError) as error:
            if not failing:
                _say(f"the metadata service does not tell: {error}; asking on")
            failing = True
        else:
            failing = False
            if found is not None:
                return found
        time.sleep(every)


def announce(notice: Notice, node: str) -> bool:
    """Drain a node until the notice's time; again until Ray takes it. Whether it did."""
    ray = str(Path(sys.executable).with_name("ray"))
    drain = (ray, "drain-node", "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message",
             f"spot: {notice.action} at {notice.at:%H:%M:%S} UTC")  # fmt: skip
    while (left := notice.seconds) > 0:
        command = [*drain, "--deadline-remaining-seconds", str(int(left))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            _say("ray drain-node does not end; again")
            continue
        if done.returncode == 0:
            _say(f"{notice.action} in {left:.0f} s: node {node} is being drained")
            return True
        _say(f"ray drain-node failed, again: {(done.stderr.strip() or done.stdout.strip() or '?').splitlines()[-1]}")
        time.sleep(1)
    return False


def _say(line: str) -> None:
    click.echo(f"notices: {line}", err=True)


def _own_node() -> str:
    """Id of the node that runs on this machine.

    Raises:
        click.UsageError: none does, or more than one.
    """
    found = sorted(find_node_ids())
    if len(found) != 1:
        raise click.UsageError(f"{len(found)} Ray nodes run on this machine; start one, or name it with --node")
    return str(found[0])


@click.command(help=__doc__)
@click.option("--node", default="", help="Id of the Ray node; default: the one that runs on this machine.")
@click.option(
    "--every", default=_ASK_S, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between asks."
)
@click.option("--lock", default=Path("~/.ray/notices.lock"), show_default=True, type=click.Path(path_type=Path))
def main(node: str, every: float, lock: Path) -> None:
    """Watch."""
    path = lock.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("runs already on this node")
            return
        notice = wait_for_notice(Metadata(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _SERVICE)), every)
        if not announce(notice, node or _own_node()):
            raise click.ClickException(f"the node goes ({notice.action}), and Ray was not told in time")


if __name__ == "__main__":
    main()
