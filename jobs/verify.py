"""Hold an artifact against the truth: every checksum; of descriptors every count too, and a random sample described again.

  manet verify s3://shop/descriptors --sample 32

Reads every byte of an artifact of any kind; of descriptors also the catalog and the model that the manifest names (--catalog,
--model where they were moved). Writes nothing. On the hardware that described the gallery, the sample comes out bit for bit;
elsewhere its cosine with what is stored must be at least --min-cosine.
"""

import random
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.artifact import Artifact, open_artifact, peek
from cluster.errors import BadInputError, IntegrityError
from cluster.session import available_cpus
from cluster.storage import open_store
from cluster.telemetry import say
from jobs.inputs import Kind, Table, local_copy, open_model, open_table
from jobs.parquet import read_parquet
from jobs.pictures import load_picture
from jobs.streaming import picture_config
from manet.errors import PictureError
from manet.tables import descriptors_to_numpy


class Config(BaseModel):
    """Flags of `manet verify`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: str = Field(json_schema_extra={"argument": True})
    """Artifact; of an index its newest version is checked."""
    sample: int = Field(default=16, ge=0)
    """Pictures of descriptors that are described again; 0: none, and neither catalog nor model is read."""
    catalog: str = ""
    """Where the catalog (or the table of queries) lies now, if it was moved."""
    model: str = ""
    """Where the model lies now, if it was moved."""
    min_cosine: float = Field(default=0.999, ge=0, le=1)
    """Least cosine between a stored descriptor and the same picture described again."""
    seed: int = 0
    """Seed of the sample."""
    gpu: bool = False
    """Describe the sample on a GPU."""


def run(config: Config) -> dict[str, Any]:
    """Check; returns the figures.

    Raises:
        IntegrityError: something differs; the first fault is named.
    """
    claim, _ = peek(open_store(config.out))
    artifact = open_artifact(config.out, claim.kind if claim is not None else "descriptors")
    artifact.verify()
    say(f"verify: {len(artifact.manifest.parts)} files have the size and sha256 of the manifest")
    found = _counts(config, artifact) if artifact.manifest.kind == "descriptors" else {}
    return {"kind": "verify", "out": artifact.uri, "files": len(artifact.manifest.parts), **found}


def _counts(config: Config, artifact: Artifact) -> dict[str, Any]:
    """Rows and rejects of descriptors, held against the summary, and what the sample shows."""
    rows = sum(part.rows for part in artifact.parts("part-"))
    rejects = sum(part.rows for part in artifact.parts("rejects-"))
    summary = artifact.manifest.summary
    if (rows, rejects) != (summary["rows"], summary["rejects"]):
        raise IntegrityError(f"{artifact.uri}: {rows} rows and {rejects} rejects, the summary says otherwise")
    return {"rows": rows, "rejects": rejects, **(_sample(config, artifact) if config.sample else {})}


def _sample(config: Config, artifact: Artifact) -> dict[str, Any]:
    """Describe a random sample again, and hold it against what is stored."""
    inputs = artifact.manifest.inputs
    kind: Kind = "queries" if "queries" in inputs else "catalog"
    if not {kind, "model"} <= inputs.keys():
        raise BadInputError(
            f"{artifact.uri} was made of no catalog and model, so no sample can be made: give --sample 0"
        )
    if "descriptor" not in artifact.manifest.config:
        raise BadInputError(f"{artifact.uri} does not say which descriptor it holds: give --sample 0")
    table = open_table(config.catalog or inputs[kind].uri, kind, "--catalog", relevant=False)
    model = open_model(config.model or inputs["model"].uri)
    for name, given, wanted in (
        ("catalog", table.source, inputs[kind]),
        ("model", model.as_input(), inputs["model"]),
    ):
        if given.sha256 != wanted.sha256:
            raise BadInputError(f"--{name}: {given.uri} is not the {name} of {artifact.uri}; give where that lies now")
    chosen = sorted(random.Random(config.seed).sample(range(table.rows), min(config.sample, table.rows)))
    same, worst = 0, 1.0
    describe = _describing(config, artifact, model)
    for row in chosen:
        cosine, equal = _check(artifact, table, row, describe)
        if cosine < config.min_cosine:
            name = table.pictures(row, row + 1)[0][0]
            raise IntegrityError(
                f"{artifact.uri}: {name} comes out otherwise now: cosine {cosine:.4f} with what is stored"
            )
        same, worst = same + equal, min(worst, cosine)
    say(f"verify: {same} of {len(chosen)} pictures come out bit for bit, the worst cosine is {worst:.6f}")
    return {"sample": len(chosen), "same_bits": same, "worst_cosine": round(worst, 6)}


def _describing(config: Config, artifact: Artifact, model: Artifact) -> Any:  # noqa: ANN401 - a closure
    """uri -> descriptors by column, None where the picture cannot be used; as `extract` does it."""
    import torch

    from manet.checkpoint import load_model
    from manet.describe import Describer

    made = artifact.manifest.config
    torch.set_num_threads(1 if not config.gpu else available_cpus())
    names = tuple(name for name in str(made["descriptor"]).split(",") if name)
    describer = Describer(
        load_model(local_copy(model)),
        names=names,  # type: ignore[arg-type]
        device="cuda" if config.gpu else "cpu",
        batch_size=made["batch_size"],
        precision=made["precision"],
        scales=made.get("scales", (1.0,)),
    )
    pictures = picture_config(model, made["size"])

    def describe(source: tuple[str, str, bytes | None]) -> dict[str, Any] | None:
        loaded = load_picture(source[1], pictures, source[2])
        if isinstance(loaded, PictureError):
            return None
        described = describer.describe(loaded[None])
        if described.dead[0]:
            return None
        single = len(names) == 1
        return {"descriptor" if single else f"descriptor_{name}": v[0] for name, v in described.vectors.items()}

    return describe


def _check(artifact: Artifact, table: Table, row: int, describe: Any) -> tuple[float, bool]:  # noqa: ANN401
    """Cosine of a picture's stored descriptor with a new one, and whether they are the same bits; rejects must be so again."""
    source = table.sources(row, row + 1)[0]
    new = describe(source)
    (part,) = artifact.parts(f"part-{row // artifact.manifest.config['part_rows']:05d}.parquet")
    stored = read_parquet(artifact.read(part))
    ids = stored["image_id"].to_pylist()
    if (source[0] in ids) != (new is not None):
        raise IntegrityError(
            f"{artifact.uri}: {source[0]} is {'a row' if new is None else 'a reject'}, and is not so now"
        )
    if new is None:
        return 1.0, True
    cosine, equal = 1.0, True
    for column, vector in new.items():
        old = descriptors_to_numpy(stored, column)[1][ids.index(source[0])]
        a, b = old.astype(np.float64), vector.astype(np.float64)
        cosine = min(cosine, float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
        equal = equal and bool((old == vector).all())
    return cosine, equal
