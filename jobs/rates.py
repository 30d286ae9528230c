"""Measured rates: the file that the benchmarks write (`--rates FILE`) and `manet plan` reads.

Each rate carries its origin: the command that measured it, when, at which commit, on what. A benchmark replaces its own rates in
the file and leaves those of the others.
"""

import datetime
import os
import platform
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import BadInputError, ObjectMissingError
from cluster.session import available_cpus
from cluster.storage import split_uri
from jobs.config import first_fault
from jobs.make import code
from jobs.strict_yaml import YamlFaultError, read_yaml


class Record(BaseModel):
    """A table of a file that people edit or benchmarks write: nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(Record):
    """Where a rate comes from."""

    command: str
    date: str
    commit: str
    hardware: str

    def __str__(self) -> str:
        return f"measured {self.date} on {self.hardware} at {self.commit[:7] or 'no commit'} by {self.command}"


class DecodeRate(Record):
    """Fetching, decoding and resizing: pictures a CPU-second at `size` px, and mean bytes of a picture's file."""

    origin: Origin
    size: int = Field(ge=1)
    pictures_per_cpu_s: float = Field(gt=0)
    picture_bytes: float = Field(gt=0)


class ModelRate(Record):
    """Describing: pictures a second of one worker on one device, bytes that it writes for each, seconds until it works.

    `precision` and `model_cpus` are those of the flags it was measured with; empty and 0 in a file that does not tell.
    """

    origin: Origin
    device: str
    size: int = Field(ge=1)
    pictures_per_s: float = Field(gt=0)
    descriptor_bytes: float = Field(gt=0)
    start_s: float = Field(ge=0)
    precision: str = ""
    model_cpus: float = Field(default=0.0, ge=0)


class IndexRate(Record):
    """Building an index of `rows` in `cells`: CPU-seconds of training and of filling, bytes a vector in store and in memory."""

    origin: Origin
    rows: int = Field(ge=1)
    dim: int = Field(ge=1)
    cells: int = Field(ge=1)
    train_cpu_s: float = Field(gt=0)
    fill_cpu_s: float = Field(gt=0)
    stored_bytes: float = Field(gt=0)
    resident_bytes: float = Field(gt=0)


class CoordinationRate(Record):
    """Parts a second that the driver and the engine carried to `actors` actors when these were not the limit."""

    origin: Origin
    actors: int = Field(ge=1)
    parts_per_s: float = Field(gt=0)


class Rates(Record):
    """What has been measured; models by device (`cpu`, or the GPU's name)."""

    decode: DecodeRate | None = None
    models: dict[str, ModelRate] = {}
    index: IndexRate | None = None
    coordination: CoordinationRate | None = None


def origin(device: str = "") -> Origin:
    """This process's command, here and now."""
    return Origin(
        command=" ".join(["manet", *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        commit=code().get("commit", ""),
        hardware=", ".join(filter(None, (f"{available_cpus()} CPUs of {_cpu_name()}", device))),
    )


def read_rates(uri: str, flag: str) -> Rates:
    """The rates in a file, JSON or YAML.

    Raises:
        BadInputError: there is none, or it holds something else.
    """
    store, name = split_uri(uri)
    try:
        return Rates.model_validate(read_yaml(store.read(name)))
    except ObjectMissingError:
        raise BadInputError(f"{flag} {uri}: no such file; `manet bench extract --rates {uri}` writes it") from None
    except YamlFaultError as error:
        raise BadInputError(f"{flag} {uri}: neither JSON nor YAML: {error}") from None
    except ValidationError as error:
        raise BadInputError(f"{flag} {uri}: {first_fault(error)}") from None


def add_rates(uri: str, found: Rates, flag: str = "--rates") -> None:
    """Put what a benchmark found into a file, in the place of what it found before.

    Raises:
        BadInputError: the file holds something else than rates.
    """
    store, name = split_uri(uri)
    old = read_rates(uri, flag) if store.exists(name) else Rates()
    new = {key: value for key in Rates.model_fields if (value := getattr(found, key))}
    if found.models:
        new["models"] = {**old.models, **found.models}
    store.write(name, old.model_copy(update=new).model_dump_json(indent=1, exclude_none=True).encode())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), os.uname().machine)
