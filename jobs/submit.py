"""Run a job on a cluster: the same command behind `manet submit`, by the cluster's job server.

  manet submit --address http://localhost:8265 extract --catalog s3://shop/catalog --model s3://shop/model --out s3://shop/descriptors
  manet submit --attach manet-extract-1f0c9a72

The job's flags are checked here, by the job's own parser, before anything is sent; a `--config` file of this machine is sent
as flags. The driver runs on the head node unless --driver-label or --driver-resource say where: never on a spot node by
chance. Its log is followed; its remarks go to stderr, its JSON lines to stdout, its summary last; its exit code becomes this
command's. A lost connection is made again; Ctrl-C leaves the job running. The token comes from RAY_AUTH_MODE=token and
RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN. Keys never travel: the nodes have their own.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.errors import BadInputError, JobFailedError
from cluster.submission import JobServer, Outcome, Submission
from cluster.telemetry import say
from jobs.make import CODE, code

PACKAGES = ("jobs", "manet", "cluster")
MIB = 1 << 20
PATHS = {  # flags of all jobs that name a file or a folder
    "out", "catalog", "queries", "fewshot", "model", "plain", "baseline", "fuse", "descriptors", "index", "dedup", "evaluation",
    "comparison", "source", "images", "picture", "ids", "tokens", "masks", "init", "rates", "prices",
    "backbone_weights", "saliency_weights", "text_weights", "pseudo_masks", "pseudo_text",
}  # fmt: skip
_ANYWHERE = re.compile(r"/|[a-z0-9]+://|(own|pip):|(none|random|pretrained|classical|rendered)$")  # or weights by name
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"X-Amz-(Signature|Credential|Security-Token)=|://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)
_SECRET_VARIABLES = ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MANET_TOKENS")


class Config(BaseModel):
    """Flags of `manet submit`. They stand before the job; what follows the job's name is the job's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    command: tuple[str, ...] = Field(default=(), json_schema_extra={"argument": True})
    """The job and its flags."""
    address: str = ""
    """Job server of the cluster, http(s)://HOST:PORT (8265 on the head); default: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS."""
    attach: str = ""
    """Follow a job that was submitted earlier, by its id."""
    code: str = "upload"
    """Where the cluster has this program from: `upload` (sent as working directory), `image` (it is installed on the nodes),
    or a pinned package that pip brings (manet==0.1.0, or the URI of a wheel)."""
    python: str = "python"
    """Interpreter on the cluster."""
    env: tuple[str, ...] = ()
    """NAME=VALUE for the job's environment; anybody who may list jobs can read it, so no secrets."""
    driver_label: tuple[str, ...] = ()
    """KEY=VALUE that the driver's node must carry (ray.io/market-type=on-demand); default: the head node."""
    driver_resource: tuple[str, ...] = ()
    """NAME=AMOUNT of a custom resource that the driver books, for clusters that have nodes for drivers."""
    ca: str = ""
    """File of the certificates that an https address is checked against; default: the system's."""
    reconnect_seconds: float = Field(default=300.0, ge=0)
    """Seconds that a lost job server is waited for."""
    wait: bool = True
    """Follow the job to its end; --no-wait prints its id and leaves it."""

    @field_validator("env", "driver_label", "driver_resource")
    @classmethod
    def _pairs(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for item in given:
            if not item.partition("=")[0] or "=" not in item:
                raise ValueError(f"{item!r} is not NAME=VALUE")
        return given

    @field_validator("env")
    @classmethod
    def _public(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for item in given:
            if _SECRET_NAME.search(item.partition("=")[0]):
                raise ValueError(
                    f"{item.partition('=')[0]} looks like a secret, and all who list jobs can read this; give it to the nodes"
                )
        return given

    @field_validator("driver_resource")
    @classmethod
    def _amounts(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for item in given:
            try:
                float(item.partition("=")[2])
            except ValueError:
                raise ValueError(f"{item!r}: the amount is not a number") from None
        return given


def run(config: Config) -> dict[str, Any]:
    """Submit and follow; returns the summary of the job itself."""
    if bool(config.command) == bool(config.attach):
        raise BadInputError("give a job (manet submit extract --catalog ...) or --attach ID, one of them")
    address = config.address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise BadInputError(
            "--address is required: http://HOST:8265 of the cluster's head (or set RAY_API_SERVER_ADDRESS)"
        )
    words = checked_words(config.command)
    _refuse_secrets((*words, *config.env))
    server = JobServer(address.rstrip("/"), ca=config.ca, patience=config.reconnect_seconds)
    job = config.attach or f"manet-{config.command[0]}-{secrets.token_hex(4)}"
    if config.command:
        with tempfile.TemporaryDirectory() as folder:
            server.submit(_submission(config, job, words, Path(folder)))
        say(f"submitted {job} to {server.address}")
    if not config.wait:
        return {"kind": "submit", "id": job, "address": server.address}
    output = _Output()
    try:
        outcome = server.follow(job, output.line)
    except KeyboardInterrupt:
        raise JobFailedError(
            f"{job} is followed no more and goes on; see it: manet submit --address {server.address} --attach {job}; "
            f"end it: ray job stop --address {server.address} {job}"
        ) from None
    return _ended(job, outcome, output)


def checked_words(command: Sequence[str]) -> list[str]:
    """A job's command line with all flags spelled out, those of its --config file too, after its own parser has taken it.

    Raises:
        click.ClickException, BadInputError: what the job itself would say.
    """
    from jobs.cli import parse, spell_out

    if not command:
        return []
    if command[0] == "submit":
        raise BadInputError("submit cannot submit itself")
    names, config = parse(command)
    for name, value in _settings(config):
        if name in PATHS and value and not _ANYWHERE.match(value):
            raise BadInputError(
                f"--{name.replace('_', '-')} {value}: a relative path would lie in the job's temporary folder on the cluster; "
                "give an address that all nodes can reach, like s3://bucket/prefix"
            )
    return [*names, *spell_out(config), *(["--debug"] if "--debug" in command else [])]


def _settings(config: BaseModel) -> Iterator[tuple[str, str]]:
    """Name and value of each text that was set, of one stage too (`--set` of `manet pipeline`)."""
    for name in config.model_fields_set:
        value = getattr(config, name)
        for each in value if isinstance(value, tuple) else [value]:
            if name == "set":
                flag, _, text = each.partition("=")
                yield flag.partition(".")[2].replace("-", "_"), text
            elif isinstance(each, str):
                yield name, each


def _refuse_secrets(words: Sequence[str]) -> None:
    """Raises BadInputError where a word would show a credential to all who may list jobs."""
    values = [value for name in _SECRET_VARIABLES if len(value := os.environ.get(name, "")) >= 8]
    for word in words:
        if _SECRET_TEXT.search(word) or any(value in word for value in values):
            raise BadInputError(
                "a flag holds a credential, and all who list jobs could read it; give it to the nodes instead"
            )


def _submission(config: Config, job: str, words: Sequence[str], folder: Path) -> Submission:
    runtime_env: dict[str, Any] = {"env_vars": {**dict(map(_pair, config.env)), CODE: json.dumps(code())}}
    if config.code == "upload":
        files, size = stage(folder)
        runtime_env["working_dir"] = str(folder)
        say(f"code: {files} files, {size / MIB:.2f} MiB as working directory")
    elif config.code != "image":
        if not re.search(r"==|://", config.code):
            raise BadInputError(f"--code {config.code}: write upload, image, or a pinned package like manet==0.1.0")
        runtime_env["pip"] = [config.code]
    return Submission(
        id=job,
        entrypoint=shlex.join([config.python, "-m", "jobs", *words]),
        runtime_env=runtime_env,
        metadata={"job": config.command[0], **code()},
        resources={name: float(amount) for name, amount in map(_pair, config.driver_resource)},
        labels=dict(map(_pair, config.driver_label)),
    )


def stage(folder: Path) -> tuple[int, int]:
    """Copy the program, and nothing else, into `folder`; files and bytes."""
    root = Path(__file__).resolve().parents[1]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def _pair(item: str) -> tuple[str, str]:
    name, _, value = item.partition("=")
    return name, value


class _Output:
    """Tells a job's JSON lines from its remarks; the last of them is its summary. Its last `manet:` line is why it failed."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] | None = None
        self.reason = self.last = ""
        self._held = ""

    def line(self, line: str) -> None:
        """One line of the job's log."""
        found = _json(line)
        if found is None:
            if line.strip():
                say(line)
                self.last = line.strip()
            if line.startswith("manet: "):
                self.reason = line.removeprefix("manet: ")
            return
        if self._held:
            print(self._held, flush=True)  # noqa: T201 - the job's own output, passed on
        self._held, self.summary = line, found


def _json(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _ended(job: str, outcome: Outcome, output: _Output) -> dict[str, Any]:
    """The summary of a job that is done.

    Raises:
        BadInputError, JobFailedError: it is not, with its own reason.
    """
    if outcome.exit_code == 0 and outcome.status == "SUCCEEDED":
        if output.summary is None:
            raise JobFailedError(f"{job} ended well, but its log holds no summary; see ray job logs {job}")
        return output.summary
    why = output.reason or output.last or " ".join(outcome.message.split()) or "no reason in its log"
    kind = BadInputError if outcome.exit_code == 2 else JobFailedError
    raise kind(f"{job} {outcome.status.lower()} with exit code {outcome.exit_code}: {why}")
