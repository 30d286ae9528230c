"""Answer queries online: index -> an HTTP API and a search page, until it is stopped.

  manet serve --index run/index
  manet serve --index s3://shop/index --host 0.0.0.0 --port 80 --embedders 8 --gpu --gateways 2 --tokens tokens.txt

Reads an index (always its newest version: a new one is taken up while it serves) and the model that it names. The page is at
/, the API's description at /v1/openapi.json, metrics for Prometheus at /metrics. Pictures are described and searched exactly
as `manet search` does it. Nobody but this machine can ask unless --host says otherwise. Where tokens are given (one a line in
--tokens, where # begins a comment line, or parted by commas in $MANET_TOKENS), every call of the API needs one. SIGTERM or
Ctrl-C: no new request is taken, those in hand are answered, then it ends. Fails when the index or its model cannot be used,
the port is taken, or Ray's own processes end. On a cluster it is one application of Ray Serve beside others, whose address
all of them share; it fails there when it runs already, or when Ray Serve listens elsewhere than --host and --port say.
"""

import hashlib
import os
import signal
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cluster.errors import BadInputError, JobFailedError
from cluster.session import SessionConfig, is_session_lost, joins_cluster, quiet, ray_session, require_resources
from cluster.telemetry import say
from jobs.memory import FOR_PASSES, inherited
from jobs.querying import open_index, query_spec
from jobs.serving.settings import UPLOADS, ServingConfig

if TYPE_CHECKING:
    from jobs.serving.listening import Door

_NAME = "manet"
_WATCH_S = 2.0  # between two looks whether Ray is still there
_LOOK_S = 0.5  # in which Ray's processes end, where a signal reached them too
_RAY_SERVE = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # fewer hops between threads
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # else every gateway listens at a port of its own as well
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # a fifth of it, Ray's own, keeps some 4% of a core busy
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_enable_metrics_collection": "0",  # nobody reads Ray's own here; the service's are at /metrics
    "RAY_raylet_report_resources_period_milliseconds": "1000",
}
"""Of Ray Serve's own processes on this machine alone; a driver's handles want others, and a cluster has its own."""


class Config(SessionConfig, ServingConfig):
    """Flags of `manet serve`."""

    host: str = "127.0.0.1"
    """Address to listen at: 127.0.0.1 is this machine alone, 0.0.0.0 every network it is in."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen at."""
    tokens: str = ""
    """File of bearer tokens, one a line, lines that begin with # left out; default: $MANET_TOKENS, else nobody needs one."""


def run(config: Config) -> dict[str, Any]:
    """Serve until a signal; returns how long it did.

    Raises:
        BadInputError: the index, the model, the tokens or the address cannot be used.
        JobFailedError: the replicas do not come up, or Ray's own processes end.
    """
    tokens = _token_hashes(config)
    if Path(config.index).is_file():
        raise BadInputError(f"--index {config.index}: is a file, not an index")
    index = open_index(config.index)
    spec = query_spec(index)
    model = spec.open_model(config.model)
    from jobs.serving.listening import Door

    began = time.monotonic()
    with ExitStack() as stack:
        door = None if joins_cluster(config) else stack.enter_context(closing(Door(config.host, config.port)))
        with inherited(_RAY_SERVE):
            stack.enter_context(ray_session(config))
        shared = door is None and _is_shared(config)
        require_resources(
            cpus=1, gpus=float(config.gpu), workers=config.embedders, flags="--embedders (or give --ray-cpus)"
        )
        try:
            gateways = _deploy(config, model, spec, tokens, door)
            stop = _stop_on_signal()  # only now: until it is up, a signal ends it as it ends any job
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
            host = f"[{host}]" if ":" in host else host
            say(f"serve: http://{host}:{config.port}/ answers from {index.uri}; Ctrl-C stops it")
            while not stop.wait(_WATCH_S):
                if is_session_lost():
                    raise JobFailedError("Ray's own processes have ended, and the service with them; start it again")
            time.sleep(_LOOK_S)
            if is_session_lost():
                say("serve: the signal went to Ray's own processes too; requests in hand are lost")
            else:
                say("serve: stopping; requests in hand are answered first")
                _drain(config, gateways)
        finally:
            if door is None:  # a session of this machine alone ends with all that runs in it
                _leave(shared=shared)
    return {"kind": "serve", "index": index.uri, "seconds": round(time.monotonic() - began, 1)}


def _is_shared(config: Config) -> bool:
    """Whether the cluster has a Ray Serve already, in which this service would be one application of several.

    Raises:
        BadInputError: it has one, and there is no place in it for this service.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    standing: Any = _get_global_client(raise_if_no_controller_running=False)
    if standing is None:
        return False
    if _NAME in serve.status().applications:
        raise BadInputError(
            f"this cluster has a service named {_NAME} already: stop the job that started it; if that is gone, "
            f"{_NAME} is ended on the cluster by: python -c \"from ray import serve; serve.delete('{_NAME}')\""
        )
    at = standing.http_config
    if (at.host, at.port) != (config.host, config.port):
        raise BadInputError(
            f"--host {config.host} --port {config.port}: Ray Serve runs on this cluster already and listens at "
            f"--host {at.host} --port {at.port}; give these, or end it by `serve shutdown`"
        )
    return True


def _leave(*, shared: bool) -> None:
    """Take the service off a cluster; Ray Serve too, unless that stood before it or somebody else has come to use it."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        if _NAME in serve.status().applications:
            serve.delete(_NAME)
        if not shared and not serve.status().applications:
            serve.shutdown()
    except (RayError, RayServeException, TimeoutError) as error:
        say(f"serve: {_NAME} may still stand on the cluster: {_one_line(error)}")


def _deploy(config: Config, model: Any, spec: Any, tokens: frozenset[str], door: "Door | None") -> Any:  # noqa: ANN401 - Artifact, QuerySpec; a handle of Ray Serve
    """Start the replicas, and without a door the proxies that listen for them; the gateways' handle.

    Raises:
        JobFailedError: they do not come up.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import LoggingConfig

    from jobs.serving.embedder import MOST_BATCHED, Embedder, EmbedderSettings
    from jobs.serving.gateway import Gateway, ProxiedGateway
    from jobs.streaming import picture_config
    from manet.images import auto_batch

    for name in ("ray.serve", "ray.serve._private"):
        quiet(name)
    pictures = picture_config(model, spec.size)
    settings = EmbedderSettings(model=model, spec=spec, pictures=pictures, gpu=config.gpu)
    batch = spec.batch_size or (MOST_BATCHED if config.gpu else auto_batch(pictures.size))
    pending = config.pending or -(-config.embedders * max(8, 4 * batch) // config.gateways)
    taken = (1 + UPLOADS) * pending + 256  # a gateway turns searches away itself, and has others to answer
    drain = config.request_seconds + 5
    often: dict[str, Any] = {
        "graceful_shutdown_timeout_s": drain,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2,
    }
    embedder = serve.deployment(
        num_replicas=config.embedders,
        max_ongoing_requests=taken * config.gateways,  # never reached: a handle that waits for room looks for it late
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": float(config.gpu),
            "runtime_env": {"env_vars": {} if config.gpu else FOR_PASSES},
        },
        **often,
    )(Embedder).bind(settings)
    plain = ServingConfig(**{name: getattr(config, name) for name in ServingConfig.model_fields})
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=config.gateways,
        max_ongoing_requests=taken,
        ray_actor_options={"num_cpus": 0},  # it mostly waits; decode processes and searches take what embedders leave
        **often,
    )(Gateway if door else ProxiedGateway).bind(
        plain, settings, tokens, pending, embedder, batch, door.path if door else ""
    )
    try:
        serve.start(
            proxy_location="Disabled" if door else "EveryNode",
            http_options=HTTPOptions(host=config.host, port=config.port),
            logging_config=LoggingConfig(log_level="ERROR", enable_access_log=False),
        )
        return serve.run(
            gateway, name=_NAME, route_prefix="/", logging_config={"log_level": "ERROR", "enable_access_log": False}
        )
    except (RuntimeError, TimeoutError, RayServeException) as error:
        raise JobFailedError(f"the service does not come up: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[-300:]


def _drain(config: Config, gateways: Any) -> None:  # noqa: ANN401 - a handle of Ray Serve
    """Let no gateway take a new request, and wait until those in hand are answered. What is on its way has the time that a
    request may take to come in, and that time once more to be answered. A gateway that is lost has nothing in hand.
    """
    from ray.exceptions import RayError
    from ray.util import list_named_actors

    began = time.monotonic()
    busy: dict[str, tuple[int, int]] = {}
    while (waited := time.monotonic() - began) < 2 * config.request_seconds:
        late = waited > config.request_seconds  # no upload is waited for any more
        awaited = any(in_hand or (coming and not late) for in_hand, coming in busy.values())
        if not awaited and (late or len(busy) == config.gateways):
            break
        try:
            name, in_hand, uploads = gateways.drain.remote().result(timeout_s=config.request_seconds)
            living = {each["name"] for each in list_named_actors(all_namespaces=True)}
        except (TimeoutError, RayError):
            break  # no gateway is left that answers
        busy[name] = in_hand, uploads
        busy = {each: counts for each, counts in busy.items() if each in living}
        time.sleep(0.05)


def _stop_on_signal() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _token_hashes(config: Config) -> frozenset[str]:
    """sha256 of each bearer token: the tokens themselves stay in this process.

    Raises:
        BadInputError: the file cannot be read or holds none, or a line cannot be one; the message names no token.
    """
    where, part = "$MANET_TOKENS", "entry"
    listed = os.environ.get("MANET_TOKENS", "").split(",")
    if config.tokens:
        where, part = f"--tokens {config.tokens}", "line"
        try:
            listed = Path(config.tokens).read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            raise BadInputError(f"{where}: it cannot be read; a text file, one token a line") from None
        listed = ["" if line.lstrip().startswith("#") else line for line in listed]
    tokens = [token.strip() for token in listed]
    for number, token in enumerate(tokens, 1):
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise BadInputError(
                f"{where}: {part} {number} is no token: it holds whitespace, or a character that no header takes"
            )
    if (config.tokens or os.environ.get("MANET_TOKENS")) and not any(tokens):
        raise BadInputError(f"{where}: it holds no token")
    return frozenset(hashlib.sha256(token.encode()).hexdigest() for token in tokens if token)
