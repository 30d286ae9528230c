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
from http.client import HTTPException
from pathlib import Path

import click
from ray._private.services import find_node_ids

_SERVICE = "http://169.254.169.254"
_TOKEN_S = 21600  # the longest that EC2 gives
_ASK_S = 5.0  # what AWS recommends
_TIMEOUT_S = 2.0
_DRAIN_S = 25.0  # of one `ray drain-node`
_CLI_S = 4.0  # until it has started and counts the rest


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
            OSError, http.client.HTTPException: the service does not answer, or not as it should.
            ValueError: it says something that is no notice.
        """
        try:
            told = self._told()
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            self._token = ""  # it has run out
            told = self._told()
        if not told:
            return None
        try:
            found = json.loads(told)
            return Notice(action=str(found["action"]), at=datetime.fromisoformat(found["time"]).astimezone(UTC))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"instance-action is {told[:200]!r}") from error

    def _told(self) -> str:
        """What stands at instance-action; empty where nothing does."""
        if not self._token:
            self._token = self._ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)})
        try:
            return self._ask("GET", "meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
            raise

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
        except (OSError, ValueError, HTTPException) as error:
            if not failing:
                _say(f"the metadata service does not tell: {error}; asking on")
            failing = True
        else:
            failing = False
            if found is not None:
                return found
        time.sleep(every)


def announce(notice: Notice, node: str) -> bool:
    """Drain a node; until Ray takes it or the notice's time is over, and once at least. Whether Ray took it.

    Args:
        notice: what is coming.
        node: id of a Ray node on this machine; empty: the only one.
    """
    while True:
        try:
            _drain(notice, own_node(node))
            return True
        except _Failed as error:
            _say(f"{error}; again")
        if not notice.seconds:
            return False
        time.sleep(1)


class _Failed(Exception):  # noqa: N818 - one try
    """A try that came to nothing."""


def own_node(node: str) -> str:
    """The id of this machine's Ray node.

    Raises:
        _Failed: none runs now, or none of the id asked for, or more than one where none is.
    """
    found = sorted(map(str, find_node_ids()))
    if node and node not in found:
        raise _Failed(f"no Ray node {node} runs on this machine")
    if not node and len(found) != 1:
        raise _Failed(f"{len(found)} Ray nodes run on this machine, where one is needed (or --node)")
    return node or found[0]


def _drain(notice: Notice, node: str) -> None:
    """Ask Ray once.

    Raises:
        _Failed: it did not take it.
    """
    ray = str(Path(sys.executable).with_name("ray"))
    left = max(0, int(notice.seconds - _CLI_S))
    command = (ray, "drain-node", "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message",
               f"spot: {notice.action} at {notice.at:%H:%M:%S} UTC", "--deadline-remaining-seconds", str(left))  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRAIN_S, check=False)
    except subprocess.TimeoutExpired:
        raise _Failed(f"ray drain-node has not ended in {_DRAIN_S:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise _Failed(f"ray drain-node failed: {said}")
    _say(f"{notice.action} in {notice.seconds:.0f} s: node {node} is being drained")


def _say(line: str) -> None:
    click.echo(f"notices: {line}", err=True)


@click.command(help=__doc__)
@click.option("--node", default="", help="Id of the Ray node; default: the one that runs on this machine.")
@click.option(
    "--every", default=_ASK_S, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between asks."
)
@click.option(
    "--lock", default=Path("~/.ray/notices.lock"), show_default=True, type=click.Path(path_type=Path),
    help="File that a watcher holds, so that a second one ends; one for each node where several share a machine.",
)  # fmt: skip
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
        if not announce(notice, node):
            raise click.ClickException(f"the node goes ({notice.action}), and Ray was not told in time")


if __name__ == "__main__":
    main()
