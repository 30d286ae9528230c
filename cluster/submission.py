"""A command on a cluster's job server: submitted once, followed to its end whatever the connection does.

The server keeps the job and its log; a client that loses it comes back, skips what it has seen and goes on. Ray reads the token
from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token when RAY_AUTH_MODE is `token`; it stands nowhere else.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlparse

from cluster.errors import BadInputError, JobFailedError
from cluster.session import quiet
from cluster.telemetry import say

CONNECT_S = 10.0  # s to the first answer of the server's port
REQUEST_S = 60.0  # s that one request may take
QUIET_S = 60.0  # s without a line of the log after which its connection is made anew: it may hang
POLL_S = 2.0  # s between two looks at a job that has no log to follow
LONGEST_PAUSE_S = 30.0
_TRIES = 4  # to get the end of a log
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is sent: the command line, its runtime environment, and where its driver may run (default: the head node)."""

    id: str
    entrypoint: str
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended: its driver's exit code (1 where it has none), Ray's word for it, and Ray's message."""

    exit_code: int
    status: str
    message: str


class _AwayError(Exception):
    """The server cannot be reached or is not itself; it may come back."""


class _UnknownError(Exception):
    """The server knows no such job."""


class JobServer:
    """The job server of one cluster.

    Args:
        address: http(s)://HOST:PORT of the cluster's dashboard.
        ca: certificates that an https address is checked against; empty: the system's.
        patience: seconds that a lost server is waited for.

    Raises:
        BadInputError: it cannot be reached, or refuses the token.
    """

    def __init__(self, address: str, *, ca: str = "", patience: float = 300.0) -> None:
        self.address, self._patience = address, patience
        try:
            _knock(address)
            self._client = _client(address, ca)
        except (_AwayError, OSError) as error:
            raise BadInputError(f"--address {address}: no cluster answers there: {_line(error)}") from None
        except _RefusedError as error:
            raise BadInputError(f"--address {address}: {error}") from None

    def submit(self, submission: Submission) -> None:
        """Send a job. A lost answer is asked for again: the id makes a second sending harmless.

        Raises:
            BadInputError: the server refuses the token.
            JobFailedError: it refuses the job, or is away for too long.
        """

        def send() -> None:
            with contextlib.suppress(_UnknownError):
                self._client.get_job_info(submission.id)
                return  # it came through the last time
            self._client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=submission.id,
                runtime_env=dict(submission.runtime_env),
                metadata=dict(submission.metadata),
                entrypoint_resources=dict(submission.resources) or None,
                entrypoint_label_selector=dict(submission.labels) or None,
            )

        self._patiently(send, submission.id)

    def follow(self, job: str, line: Callable[[str], None]) -> Outcome:
        """Hand every line of the job's log to `line`, once, until the job has ended.

        Raises:
            BadInputError: the server knows no such job, or refuses the token.
            JobFailedError: it is away for too long, or came back without the job.
        """
        log, known, said = _Log(line), False, ""
        while True:
            try:
                info = self._patiently(lambda: self._client.get_job_info(job), job)
            except _UnknownError:
                if known:
                    raise JobFailedError(
                        f"{self.address} knows {job} no more: its head was started anew; submit the same command again, "
                        "it goes on where it was"
                    ) from None
                raise BadInputError(f"--attach {job}: {self.address} knows no such job") from None
            known = True
            if info.status.is_terminal():
                self._rest(job, log)
                code = 0 if info.status.value == "SUCCEEDED" else 1
                exit_code = code if info.driver_exit_code is None else int(info.driver_exit_code)
                return Outcome(exit_code=exit_code, status=info.status.value, message=info.message or "")
            seen = log.seen
            if info.status.value == "PENDING":
                if info.message and info.message != said:
                    say(f"{job}: {_line(info.message)}")
                    said = info.message
            else:
                self._tail(job, log)
            if log.seen == seen:
                time.sleep(POLL_S)

    def _tail(self, job: str, log: "_Log") -> None:
        """Follow the log until its connection ends, breaks, or is silent for long."""
        import aiohttp

        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):
            asyncio.run(log.follow(self._client.tail_job_logs(job)))

    def _rest(self, job: str, log: "_Log") -> None:
        """What the log has beyond what was followed; its node may be gone."""
        for attempt in range(_TRIES):
            try:
                log.again(self._client.get_job_logs(job))
                break
            except (_AwayError, _UnknownError, JobFailedError):
                if attempt == _TRIES - 1:
                    say(f"{job}: the end of its log cannot be had; the node that it ran on may be gone")
                else:
                    time.sleep(POLL_S)
        log.end()

    def _patiently(self, call: Callable[[], _Result], job: str) -> _Result:
        """A request, made again with growing pauses while the server is away."""
        began, pause = 0.0, 1.0
        while True:
            try:
                return call()
            except _RefusedError as error:
                raise BadInputError(f"--address {self.address}: {error}") from None
            except _AwayError as error:
                began = began or time.monotonic()
                if time.monotonic() - began + pause > self._patience:
                    raise JobFailedError(
                        f"{self.address} does not answer for {self._patience:g} s ({_line(error)}); the job may be running: "
                        f"manet submit --attach {job}, or the same command again, which goes on where it was"
                    ) from None
                say(f"{self.address} does not answer ({_line(error)}); again in {pause:g} s")
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)


class _RefusedError(Exception):
    """The server refuses the token."""


class _Log:
    """A job's log, read from its beginning by every connection: what was seen is skipped."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self.seen = 0
        self._line, self._part = line, ""

    async def follow(self, chunks: Any) -> None:  # noqa: ANN401 - Ray's async iterator of text
        """Take what one connection gives, until it ends or gives nothing for `QUIET_S`."""
        at = 0
        with contextlib.suppress(StopAsyncIteration, TimeoutError):
            while True:
                text = await asyncio.wait_for(anext(chunks), QUIET_S)
                at += len(text)
                self._take(text[len(text) - max(0, at - self.seen) :])

    def again(self, text: str) -> None:
        """Take the whole log."""
        self._take(text[self.seen :])

    def end(self) -> None:
        """Nothing more comes."""
        if self._part:
            self._line(self._part)

    def _take(self, text: str) -> None:
        self.seen += len(text)
        *lines, self._part = (self._part + text).split("\n")
        for line in lines:
            self._line(line)


def _knock(address: str) -> None:
    """Open the port: a host that drops packets would otherwise be waited for minutes."""
    parts = urlparse(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise BadInputError(f"--address {address}: write http://HOST:8265, the address of the cluster's dashboard")
    if parts.username or parts.password:
        raise BadInputError("--address: no user and password in an address; the token comes from RAY_AUTH_TOKEN_PATH")
    socket.create_connection(
        (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), CONNECT_S
    ).close()


def _client(address: str, ca: str) -> Any:  # noqa: ANN401 - Ray's JobSubmissionClient, imported lazily
    """Ray's client with a limit to each request, and with errors that say what kind they are."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:  # noqa: ANN401 - as Ray has it
            try:
                reply = super()._do_request(method, endpoint, timeout=REQUEST_S, **more)
            except AuthenticationError:
                raise _RefusedError(_TOKEN) from None
            except requests.RequestException as error:
                raise _AwayError(_kind(error)) from None
            if reply.status_code >= 500:
                raise _AwayError(f"HTTP {reply.status_code} {reply.text.strip()[-200:]}")
            if reply.status_code == 404 and endpoint.startswith("/api/jobs/"):
                raise _UnknownError
            return reply

        def _raise_error(self, reply: Any) -> None:  # noqa: ANN401
            raise JobFailedError(f"{address} refuses the job: {_line(reply.text)}")

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        quiet(f"ray.{name}")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets the environment win over what it is told
    try:
        return Client(address, verify=ca or True)
    except AuthenticationError:
        raise _RefusedError(_TOKEN) from None
    except RuntimeError as error:
        raise _AwayError(_line(error)) from None


_TOKEN = "the token is wrong or missing; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN)"  # noqa: S105


def _kind(error: Exception) -> str:
    """A connection's error without the addresses of Python objects that it is full of."""
    reason: BaseException = error
    while isinstance(reason.args[0] if reason.args else None, BaseException):
        reason = reason.args[0]
    return f"{type(error).__name__}: {_line(getattr(reason, 'reason', None) or reason)}"


def _line(text: object) -> str:
    return " ".join(str(text).split())
