"""What the configuration of every job shares: fields that become flags, and which of them decide the result."""

from collections.abc import Container
from typing import Any, ClassVar

from pydantic import BaseModel, Field, ValidationError

from cluster.artifact import canonical
from cluster.session import SessionConfig


def how(default: Any, **bounds: Any) -> Any:  # noqa: ANN401 - stands for any field's default, as pydantic.Field does
    """A field that says how to run, not what to make: it is left out of the claim, so a resumed run may change it."""
    return Field(default=default, json_schema_extra={"how": True}, **bounds)


def deciding(config: type[BaseModel], *, skip: Container[str]) -> list[str]:
    """Fields of a config that decide the result: all but those made by `how` and those in `skip`."""
    return [
        name
        for name, field in config.model_fields.items()
        if name not in skip and not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("how"))
    ]


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, with its place."""
    first = error.errors()[0]
    place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


class JobConfig(SessionConfig):
    """Fields of every job that writes an artifact. A field's docstring is its flag's help."""

    INPUTS: ClassVar[tuple[str, ...]] = ()  # fields that name inputs: claimed by content, not by address
    ONLY_WITH: ClassVar[
        dict[str, str]
    ] = {}  # field -> the one without which it decides nothing: then it is not claimed

    out: str
    """Folder of the artifact to write: a local path or s3://bucket/prefix."""
    overwrite: bool = how(False)
    """Drop what stands in --out, of this command too: leave it out to go on with a run that was stopped."""

    def claimed(self) -> list[str]:
        """Names of the fields that decide what is in the artifact."""
        idle = {name for name, needed in self.ONLY_WITH.items() if not getattr(self, needed)}
        return deciding(type(self), skip={"out", *SessionConfig.model_fields, *self.INPUTS, *idle})

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return canonical(self)
