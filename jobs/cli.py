"""The command line: flags from each job's config, one-line errors, exit codes, the summary.

Every command is `manet JOB --flag value` = `python -m jobs JOB --flag value`. Exit codes: 0 done, 1 failed,
2 bad usage or bad input. `--config FILE.yaml` sets any flag; a flag given on the command line wins.
"""

import atexit
import contextlib
import importlib
import os
import signal
import sys
import traceback
import typing
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, UnionType
from typing import Any, Literal, cast

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster.errors import BadInputError, ClusterError
from cluster.session import SessionConfig
from cluster.telemetry import emit_summary, say
from jobs.strict_yaml import YamlFaultError, read_yaml
from manet.errors import InputError, ManetError

JOBS: dict[str, str] = {
    "render": "a rendered beauty catalogue with exact ground truth -> catalog + queries",
    "ingest": "a folder, a table, a URL list or the challenge's CSVs -> catalog or queries",
    "fewshot": "catalog -> labelled few-shot set (TF-IDF categories, split 8:2)",
    "train": "few-shot set -> model (Ray Train: saliency stage, then joint stage)",
    "extract": "catalog + model -> SR-MAC descriptors (Ray Data)",
    "status": "a folder -> what is done, missing, rejected, from storage alone",
    "verify": "descriptors -> every checksum, and a sample described again",
    "index": "descriptors -> sharded faiss index (Ray tasks)",
    "search": "index + pictures -> ranked ids, one JSON line a picture",
    "dedup": "index -> groups of near-duplicates (Ray tasks)",
    "evaluate": "index + queries -> MAP@7 and its kin",
    "compare": "catalog + queries + model -> every descriptor side by side",
    "report": "what the jobs wrote -> one self-contained page",
    "pipeline": "catalog + queries -> all of the above and a report",
    "serve": "index -> HTTP API and search page, until it is stopped",
    "plan": "pictures + nodes + measured rates + prices -> hours, cost, storage, the bottleneck",
    "bench": "rates of this installation against the machine's own ceiling",
    "submit": "any of these on a cluster, by its job server: sent, followed, its exit code and summary",
    "gc": "a folder -> files that no manifest or receipt claims, listed or removed",
}


class _Jobs(click.Group):
    """Imports a job only when it is asked for, so that `manet --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(JOBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in JOBS:
            return None
        module = importlib.import_module(f"jobs.{cmd_name}")
        if hasattr(module, "COMMANDS"):
            commands = {
                name: command(name, config, run, f"{run.__doc__}\n\n{sys.modules[run.__module__].__doc__}")
                for name, (config, run) in module.COMMANDS.items()
            }
            if hasattr(module, "Config"):
                return _Family(command(cmd_name, module.Config, module.run, module.__doc__ or ""), commands)
            return click.Group(cmd_name, list(commands.values()), help=_paragraphs(module.__doc__ or ""))
        return command(cmd_name, module.Config, module.run, module.__doc__ or "")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Jobs"):
            formatter.write_dl(list(JOBS.items()))


class _Family(click.Command):
    """A command of its own that has others below it: `manet index --descriptors ...`, `manet index add ...`."""

    def __init__(self, own: "_Command", others: "dict[str, _Command]") -> None:
        super().__init__(own.name, params=own.params, callback=own.callback, help=own.help, short_help=own.short_help)
        self.others, self.config = others, own.config

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401 - as click has it
    ) -> click.Context:
        if args and args[0] in self.others:
            return self.others[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        if args and not args[0].startswith("-"):
            raise click.UsageError(f"{info_name} has no command {args[0]!r}; it has {', '.join(self.others)}")
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands below it, each with its own --help"):
            formatter.write_dl([(name, other.short_help or "") for name, other in self.others.items()])


class _Command(click.Command):
    """A command and the config that its flags make."""

    config: type[BaseModel]


def command(name: str, config: type[BaseModel], run: typing.Callable[[Any], dict[str, Any]], doc: str) -> _Command:
    """A click command whose flags are the fields of `config`."""
    options: list[click.Parameter] = [
        _option(key, config.model_fields[key])
        for key in sorted(config.model_fields, key=lambda key: key in SessionConfig.model_fields)
    ]
    options.append(
        click.Option(["--config"], type=click.Path(path_type=Path), help="YAML file that sets any of these.")
    )
    options.append(click.Option(["--debug"], is_flag=True, help="Show the traceback of an error, and Ray's own log."))

    def callback(**given: Any) -> None:  # noqa: ANN401 - click hands every flag over
        given.pop("debug")
        emit_summary(run(_load(config, given.pop("config"), given)))

    made = _Command(
        name,
        params=options,
        callback=callback,
        help=_paragraphs(doc),
        short_help=JOBS.get(name) or (run.__doc__ or "").strip().partition("\n")[0],
        context_settings={"allow_interspersed_args": not any(option.nargs == -1 for option in options)},
    )
    made.config = config
    return made


def parse(words: Sequence[str]) -> tuple[list[str], BaseModel]:
    """A command line without `manet`: the names of its command and its config, checked; nothing is run.

    Raises:
        click.ClickException, BadInputError: as the command itself would say.
    """
    found: click.Command = _Jobs("manet")
    names, rest = list[str](), list(words)
    with click.Context(found) as root:
        while isinstance(found, click.Group):
            name, below, rest = found.resolve_command(root, rest or [""])
            names, found = [*names, str(name)], cast(click.Command, below)  # click raises where there is none
        context = found.make_context(names[-1], rest)
    config = cast(_Command | _Family, context.command).config
    given = {key: value for key, value in context.params.items() if key not in {"config", "debug"}}
    return [*names[:-1], *str(context.info_name).split()], _load(config, context.params["config"], given)


def spell_out(config: BaseModel) -> list[str]:
    """The words that make this config: arguments, and a flag for each field that was set."""
    arguments, flags = list[str](), list[str]()
    for key, value in config.model_dump(mode="json", include=config.model_fields_set, exclude_none=True).items():
        extra, flag = type(config).model_fields[key].json_schema_extra, f"--{key.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(extra, dict) and extra.get("argument"):
                arguments.append(str(each))
            elif isinstance(each, bool):
                flags.append(flag if each else f"--no-{flag[2:]}")
            else:
                flags += [flag, str(each)]
    return [*flags, *arguments]


def _option(key: str, field: FieldInfo) -> click.Parameter:
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("argument"):
        many = typing.get_origin(field.annotation) is tuple
        shown = f"[{key.upper()} ...]" if many else key.upper()
        return click.Argument([key], metavar=shown, nargs=-1 if many else 1, required=not many, type=click.UNPROCESSED)
    flag = f"--{key.replace('_', '-')}"
    kind = _inner_type(field.annotation)
    text = field.description or ""
    default = field.get_default(call_default_factory=True)
    required = field.is_required() or default is PydanticUndefined
    shown = "required" if required else f"default: {_show(default)}"
    text = f"{text}  [{shown}]"
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", key], default=None, help=text)
    if typing.get_origin(kind) is tuple:
        return click.Option([flag, key], multiple=True, default=None, help=f"{text} May be given more than once.")
    if typing.get_origin(kind) is Literal:
        return click.Option([flag, key], type=click.Choice(typing.get_args(kind)), default=None, help=text)
    plain = kind if kind in (int, float, str) else str
    return click.Option([flag, key], type=plain, default=None, help=text)


def _inner_type(annotation: Any) -> Any:  # noqa: ANN401 - annotations are of any type
    if isinstance(annotation, UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(inner for inner in typing.get_args(annotation) if inner is not type(None))
    return annotation


def _show(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return "none" if default in ("", None) else str(default)


def _load(config: type[BaseModel], path: Path | None, given: dict[str, Any]) -> BaseModel:
    values = _read_config(path, config) if path else {}
    values |= {key: value for key, value in given.items() if value is not None and value != ()}
    for key, field in config.model_fields.items():
        if field.is_required() and values.get(key) == "":
            raise BadInputError(f"--{key.replace('_', '-')} is empty; see --help")
    try:
        return config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
        if first["type"] == "missing":
            raise BadInputError(f"{flag} is required; see --help") from None
        message = first["msg"].removeprefix("Value error, ")
        raise BadInputError(f"{flag}: {message}" if flag else message) from None


def _read_config(path: Path, config: type[BaseModel]) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"--config {path}: {error.strerror}") from None
    except YamlFaultError as error:
        raise BadInputError(f"--config {path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise BadInputError(f"--config {path}: must be a mapping of flag: value")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    if unknown := sorted(values.keys() - config.model_fields.keys()):
        raise BadInputError(f"--config {path}: unknown key {unknown[0]}; the keys are the flags of --help")
    for key, value in values.items():
        if isinstance(value, bool) and _inner_type(config.model_fields[key].annotation) in (int, float):
            raise BadInputError(f"--config {path}: {key} is a number, not {str(value).lower()}")
    return values


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code.

    The interpreter is not torn down: threads of Arrow and Ray may still let go of Python objects then, which aborts the
    process after all its work is done.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _stop)
    exit_code = _run(arguments, debug="--debug" in arguments)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(exit_code)


def _run(arguments: list[str], *, debug: bool) -> int:
    root = _Jobs("manet", help=__doc__)
    try:
        root.main(arguments, prog_name="manet", standalone_mode=False)
    except click.ClickException as error:
        return _fail(2, error.format_message().rstrip(".") + "; see --help", debug)
    except (KeyboardInterrupt, click.Abort):
        same = "the same command without --overwrite" if "--overwrite" in arguments else "the same command"
        return _fail(1, f"stopped; {same} continues where it was", debug)
    except Exception as error:
        return _explain(error, debug)
    return 0


def _explain(error: BaseException, debug: bool) -> int:
    cause = root_cause(error)
    if isinstance(cause, (BadInputError, InputError)):
        return _fail(2, str(cause), debug)
    if isinstance(cause, (ClusterError, ManetError)):
        return _fail(1, str(cause), debug)
    return _fail(1, f"unexpected {type(cause).__name__}: {_one_line(cause)} (--debug shows where)", debug)


def root_cause(error: BaseException) -> BaseException:
    """The error of a Ray task behind what Ray wraps around it; any other error itself."""
    seen = error
    while not (isinstance(seen, (ClusterError, ManetError)) and not hasattr(seen, "cause")):
        inner = getattr(seen, "cause", None) or seen.__cause__
        if not isinstance(inner, BaseException):
            return seen
        seen = inner
    return seen


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _fail(code: int, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    say(f"manet: {' '.join(message.split())}")
    return code


def _paragraphs(doc: str) -> str:
    """A docstring for click: indented blocks keep their lines."""
    blocks = doc.strip().split("\n\n")
    return "\n\n".join(f"\b\n{block}" if block.startswith(" ") or "\n  " in block else block for block in blocks)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
