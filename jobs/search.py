"""Find the products in pictures: index + pictures -> ranked ids, one JSON line a picture.

  manet search --index s3://shop/index --picture photo.jpg --picture s3://inbox/other.png
  manet search --index s3://shop/index --picture photo.jpg --category lipstick --ids in-stock.txt

Reads an index (its newest version, or --version) and the model that it names. Writes nothing but stdout: one line a
picture with its k best ids, scores, uris and descriptions, or with its error; then the summary. Pictures are described here
exactly as `extract` describes the gallery.
"""

import json
import sys
import time
from typing import Any

from pydantic import Field

from cluster.errors import BadInputError
from cluster.session import SessionConfig, available_cpus
from jobs.config import how
from jobs.inputs import local_copy
from jobs.pictures import load_picture
from jobs.querying import open_index, open_newest_searcher, open_searcher, query_spec, read_ids
from jobs.streaming import picture_config
from manet.errors import PictureError
from manet.pooling import DEAD


class Config(SessionConfig):
    """Flags of `manet search`."""

    index: str
    """Index artifact."""
    picture: tuple[str, ...]
    """Picture to search with: a path or a URI."""
    model: str = ""
    """Where the index's model lies now, if it was moved."""
    k: int = Field(default=7, ge=1, le=1000)
    """Answers for each picture."""
    category: tuple[str, ...] = ()
    """Only pictures of this category answer."""
    ids: str = ""
    """File of image ids, one a line: only these answer."""
    version: int = Field(default=0, ge=0)
    """Version of the index; 0: the newest."""
    nprobe: int = Field(default=0, ge=0)
    """Cells visited; 0: derived from their number."""
    refine: int = Field(default=0, ge=0)
    """Candidates re-scored with the stored vectors; 0: the default depth."""
    threads: int = how(0, ge=0)
    """Threads; 0: one per CPU."""
    gpu: bool = how(False)
    """Describe the pictures on a GPU."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    import torch

    from manet.checkpoint import load_model
    from manet.describe import Describer

    started = time.monotonic()
    threads = config.threads or available_cpus()
    torch.set_num_threads(threads)
    wanted = read_ids(config.ids, "--ids") if config.ids else None
    options = {"nprobe": config.nprobe, "refine": config.refine, "threads": threads}
    if config.version:
        index = open_index(config.index, config.version)
        searcher = open_searcher(index, **options)
    else:
        index, searcher = open_newest_searcher(config.index, **options)
    spec = query_spec(index)
    model = spec.open_model(config.model)
    allowed = searcher.allow(ids=wanted, categories=config.category or None) if config.ids or config.category else None
    describer = Describer(
        load_model(local_copy(model)),
        names=(spec.descriptor,),
        device="cuda" if config.gpu else "cpu",
        batch_size=spec.batch_size,
        precision=spec.precision,
    )
    pictures = picture_config(model, spec.size)
    failed = 0
    for uri in config.picture:
        loaded = load_picture(uri, pictures)
        described = None if isinstance(loaded, PictureError) else describer.describe(loaded[None])
        if described is None or described.dead[0]:
            failed += 1
            error = loaded if isinstance(loaded, PictureError) else DEAD
            sys.stdout.write(json.dumps({"picture": uri, "error": str(error)}) + "\n")
            continue
        hits = searcher.search(described.vectors[spec.descriptor], config.k, allowed)[0]
        results = [
            {"image_id": hit.image_id, "score": round(hit.score, 6), "uri": hit.uri, "description": hit.description}
            for hit in hits
        ]
        sys.stdout.write(json.dumps({"picture": uri, "results": results}) + "\n")
    if failed == len(config.picture):
        raise BadInputError(f"--picture: none of the {failed} could be used, the last: {uri}: {error}")
    seconds = round(time.monotonic() - started, 2)
    return {"kind": "search", "pictures": len(config.picture), "failed": failed, "seconds": seconds}
