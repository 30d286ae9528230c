"""The index behind a service: its newest version, opened beside the old one and then put in its place.

A request keeps the edition that it began with, so none is dropped when a version changes; the old one's files are let go with
its last request.
"""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cluster.artifact import Artifact, open_artifact
from cluster.errors import BadInputError, ClusterError, ObjectMissingError, StoreError
from cluster.telemetry import say
from jobs.parquet import read_parquet
from jobs.postprocessing import OPTIONS
from jobs.querying import QuerySpec, open_index, open_newest_searcher, query_spec
from jobs.serving.refusals import Refusal
from manet.errors import InputError, ManetError
from manet.search import Allowed, Searcher

_FILTERS = 64  # kept of one edition
_REJECTS_SHOWN = 100
_LOOKING = ThreadPoolExecutor(1, thread_name_prefix="rejects")  # a store that hangs holds one thread, however many ask
_LOOK_S = 3.0  # that a request waits for it


@dataclass(frozen=True, kw_only=True)
class Edition:
    """One opened version of an index."""

    index: Artifact
    searcher: Searcher
    spec: QuerySpec
    categories: dict[str, int]
    _filters: dict[tuple[str, ...], Allowed] = field(default_factory=dict)
    _looks: "list[Future[dict[str, Any] | None]]" = field(default_factory=list)  # for the rejects: the last one

    @property
    def number(self) -> int:
        """Its version."""
        return self.index.manifest.number

    @property
    def processed(self) -> str:
        """What its scores went through beside the descriptors' cosine, in words; empty: nothing."""
        summary = self.index.manifest.summary
        options = [f"{name} {summary[name]}" for name in OPTIONS if summary.get(name)]
        if summary.get("whiten"):
            options.append(f"whiten_power {summary.get('whiten_power', 1.0):g}")  # 1: an index of before that flag
        return ", ".join(options)

    def allow(self, categories: tuple[str, ...], ids: tuple[str, ...]) -> Allowed | None:
        """The rows that may answer; None: all.

        Raises:
            Refusal: the index holds no such category, or nothing passes.
        """
        if not categories and not ids:
            return None
        if unknown := [name for name in categories if name not in self.categories]:
            raise Refusal(422, "unknown_category", f"The index has no category {unknown[0]!r}.")
        if ids:
            found = self.searcher.allow(ids=ids, categories=categories or None)
        else:
            key = tuple(sorted(set(categories)))
            found = self._filters.get(key) or self.searcher.allow(categories=key)
            if len(self._filters) < _FILTERS:
                self._filters[key] = found
        if not found.rows:
            raise Refusal(422, "nothing_passes", "No picture of the index passes the filter.")
        return found

    @property
    def about(self) -> dict[str, Any]:
        """What the index says of itself: size, settings, recall report, categories, rejects."""
        return {**self._described, "rejects": self._rejects_soon()}

    def _rejects_soon(self) -> dict[str, Any] | None:
        """The rejects, or None where their store does not say in time; then it is asked again by who comes next."""
        if not self._looks or (self._looks[-1].done() and self._looks[-1].exception()):
            self._looks[:] = [_LOOKING.submit(self._rejects)]
        try:
            return self._looks[-1].result(_LOOK_S)
        except (TimeoutError, ClusterError):
            return None

    @cached_property
    def _described(self) -> dict[str, Any]:
        summary = self.index.manifest.summary
        reports = self.index.parts("report", ".json")
        return {
            "version": self.number,
            "created": self.index.manifest.created,
            "sha256": self.index.sha256,
            "rows": len(self.searcher),
            "dim": summary.get("dim"),
            "shards": len(self.index.parts("shard-", ".faiss")),
            "factory": summary.get("factory"),
            "nprobe": self.searcher.nprobe,
            "refine": self.searcher.refine,
            "folds_duplicates": self.searcher.grouped,
            "model_sha256": self.spec.model.sha256,
            "descriptor": self.spec.descriptor,
            "report": json.loads(self.index.read(reports[-1])) if reports else {},
            "recall_plot": bool(self.index.parts("recall")),
            "categories": [{"name": name, "pictures": count} for name, count in self.categories.items()],
        }

    def recall_plot(self) -> bytes:
        """The frontier that was walked when the index was tuned, PNG.

        Raises:
            Refusal: it is exact and was not tuned.
        """
        parts = self.index.parts("recall")
        if not parts:
            raise Refusal(404, "no_plot", "This index is exact: nothing was tuned.")
        return self.index.read(parts[-1])

    def _rejects(self) -> dict[str, Any] | None:
        """Pictures of the gallery that could not be described; None where the descriptors are not at hand any more.

        Raises:
            ClusterError: their store does not say.
        """
        source = self.index.manifest.inputs.get("descriptors")
        try:
            if source is None or (descriptors := open_artifact(source.uri, "descriptors")).sha256 != source.sha256:
                return None
            shown: list[dict[str, str]] = []
            for part in descriptors.parts("rejects-"):
                if len(shown) < _REJECTS_SHOWN:
                    rows = read_parquet(descriptors.read(part)).to_pylist()
                    shown += [{name: row[name] for name in ("image_id", "stage", "reason")} for row in rows]
        except (BadInputError, ObjectMissingError):
            return None
        summary = descriptors.manifest.summary
        return {"count": summary["rejects"], "reasons": summary["reasons"], "first": shown[:_REJECTS_SHOWN]}


class Gallery:
    """The newest edition of an index.

    Args:
        uri: the index.
        nprobe, refine: as `Searcher`.
        threads: of one search.

    Raises:
        BadInputError: no index there, or one of vectors of no model.
    """

    def __init__(self, uri: str, *, nprobe: int = 0, refine: int = 0, threads: int = 1) -> None:
        self._uri, self._how = uri, {"nprobe": nprobe, "refine": refine, "threads": threads}
        self._failed = ""  # sha256 of a version that cannot be used
        self.current = self._open()

    def refresh(self) -> bool:
        """Take up the newest version, if it is another one and can be used; whether it was.

        Numbers do not tell versions apart: an index that was made anew in its place begins at 1 again.
        """
        newest = ""
        try:
            newest = open_index(self._uri).sha256
            if newest in {self.current.index.sha256, self._failed}:
                return False
            edition = self._open()
            if _describing(edition) != _describing(self.current):
                raise BadInputError("it wants other descriptors: start the service again")
        except (ClusterError, ManetError, OSError) as error:
            if isinstance(error, (BadInputError, InputError)) and not isinstance(error, StoreError):
                self._failed = newest  # it will not do next time either; a full disk may
            say(f"serve: a new version of {self._uri} is not taken up: {error}")
            return False
        self.current = edition
        say(f"serve: version {edition.number} of the index, {len(edition.searcher)} pictures")
        return True

    def _open(self) -> Edition:
        index, searcher = open_newest_searcher(self._uri, **self._how)
        return Edition(index=index, searcher=searcher, spec=query_spec(index), categories=searcher.categories())


def _describing(edition: Edition) -> dict[str, Any]:
    """All that decides a query's descriptor; where its model lies does not."""
    return edition.spec.model_dump(exclude={"model": {"uri"}})
