"""Search over the shards of an index: candidates from faiss, re-scored with the stored float16 vectors, merged.

The candidates of a query are the rows whose quantized inner product is among the best of *all* shards, every row that
ties with the last of them included: a set that does not depend on how the rows were cut into shards or in which order they
were added. Each is scored by a dot product of its own, so that answers are the same bits for any cut.

Shape letters: Q queries, D dimensions, S shards, C candidates.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import faiss
import numpy as np
import pyarrow as pa

from manet.errors import InputError
from manet.index import transforms
from manet.shards import Matrix, Shard, ShardFiles, give_back
from manet.tuning import Scale
from manet.whitening import whiten

DEFAULT_REFINE = 100  # candidates that are re-scored
USUAL_ANSWERS = 7  # what a shop shows, and what `refine` is stated for
_PROBED_SHARE = 32  # one cell of this many is visited by default, at least _LEAST_PROBES
_LEAST_PROBES = 16
_SPARE = 16  # candidates asked of a shard beyond the wanted: to see whether ties were cut off
_SLICE = 256  # queries searched by one thread at once
_POWER = 3  # of a score, as the weight of an answer that a query is expanded with
EXACT_BELOW = 8192  # a filter that leaves fewer rows is answered by comparing with each of them
_WIDER = 4  # times as many candidates where those of a query are of too few groups of near-duplicates
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One answer: a gallery id, its inner product with the query (cosine, as all vectors have unit length), its row."""

    image_id: str
    score: float
    uri: str | None = None
    description: str | None = None
    category: str | None = None


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """Rows that may answer, bool [rows] for each shard, and how many they are."""

    masks: tuple[Matrix, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class _How:
    """What one call of `search` asks for."""

    k: int
    folded: bool
    rerank: bool
    spare: int = 0  # more rows to keep, and candidates to re-score, than k needs


_Ranked = tuple[Matrix, Matrix, Matrix]  # scores, shards and rows of a query's best
_Piece = tuple[int, Matrix, Matrix | None]  # a shard, rows of it, their quantized inner products where they are known


class Searcher:
    """Answers queries from shards that were built with the same quantizer.

    Args:
        shards: their files.
        nprobe: cells visited; 0: a thirty-second of them, 16 at least.
        refine: candidates of all shards together that are re-scored for up to 7 answers, in proportion more for more; 0: 100.
        threads: how many search side by side.
        folded: of a group of near-duplicates only the best answers.
        exact_below: where fewer rows may answer (some are deleted or filtered out), each of them is compared.
        whitening: what the shards' vectors went through (`manet.whitening`), and queries go through; None: nothing.
        expand: best answers that a query is expanded with before it is searched again; 0: none.

    Raises:
        InputError: no shard, files of one shard that do not belong together, or shards of several quantizers.
    """

    def __init__(
        self,
        shards: Sequence[ShardFiles],
        *,
        nprobe: int = 0,
        refine: int = 0,
        threads: int = 1,
        folded: bool = True,
        exact_below: int = EXACT_BELOW,
        whitening: Matrix | None = None,
        expand: int = 0,
    ) -> None:
        if not shards:
            raise InputError("an index without shards")
        self._whitening, self._expand = whitening, expand
        self.refine = refine or DEFAULT_REFINE
        self._exact_below = exact_below
        self._shards = [Shard(files) for files in shards]
        first = self._shards[0]
        for shard in self._shards[1:]:
            shard.share_quantizer(first)
        self.nprobe = 0
        if first.ivf is not None:
            self.nprobe = min(first.ivf.nlist, nprobe or max(_LEAST_PROBES, first.ivf.nlist // _PROBED_SHARE))
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,))
        self._grouped = folded and any("group" in shard.rows.column_names for shard in self._shards)
        self._live = None
        if not all(shard.all_live for shard in self._shards):
            masks = tuple(shard.live for shard in self._shards)
            self._live = Allowed(masks=masks, rows=sum(int(mask.sum()) for mask in masks))
        give_back()

    def __len__(self) -> int:
        """Rows that are not deleted."""
        return self._live.rows if self._live else sum(map(len, self._shards))

    @property
    def scale(self) -> Scale:
        """What decides the cost of a search; an index without an inverted file is one cell."""
        first = self._shards[0]
        vector_bytes = first.vectors.shape[1] * first.vectors.dtype.itemsize
        return Scale(
            rows=sum(map(len, self._shards)),
            cells=first.ivf.nlist if first.ivf is not None else 1,
            code_bytes=getattr(first.ivf or first.index, "code_size", vector_bytes),
            vector_bytes=vector_bytes,
        )

    def allow(
        self,
        *,
        ids: Iterable[str] | None = None,
        categories: Iterable[str] | None = None,
        without: Iterable[str] | None = None,
    ) -> Allowed:
        """A filter: rows with one of these ids and one of these categories (None: any), and none of the ids `without`.

        A shard that was added without details has rows of no category.

        Raises:
            InputError: the index holds no categories.
        """
        masks = [shard.live.copy() for shard in self._shards]
        for column, values in (("image_id", ids), ("category", categories)):
            if values is not None:
                wanted = pa.array(sorted(set(values)), pa.string())
                known = [column in shard.rows.column_names for shard in self._shards]
                known[0] |= not any(known)  # no shard has it: the first says so
                masks = [
                    mask & (shard.matching(column, wanted) if has else np.zeros(len(shard), bool))
                    for mask, shard, has in zip(masks, self._shards, known, strict=True)
                ]
        if without is not None:
            unwanted = pa.array(sorted(set(without)), pa.string())
            masks = [
                mask & ~shard.matching("image_id", unwanted) for mask, shard in zip(masks, self._shards, strict=True)
            ]
        return Allowed(masks=tuple(masks), rows=sum(int(mask.sum()) for mask in masks))

    def item(self, image_id: str) -> tuple[Hit, Matrix] | None:
        """A picture of the gallery and its stored descriptor, float16 [D]; the score is 1. None: there is none of that id."""
        for shard in self._shards:
            for row in np.flatnonzero(shard.live & shard.matching("image_id", pa.array([image_id]))).tolist():
                return _itself(shard, row), shard.vectors[row]
        return None

    def sample(self, count: int, seed: int = 0) -> list[Hit]:
        """Up to `count` pictures of the gallery, drawn evenly; each scores 1."""
        ends = np.cumsum([len(shard) for shard in self._shards])
        draw, wanted = np.random.default_rng(seed), min(count, len(self))
        asked = wanted
        while True:
            drawn = draw.choice(ends[-1], asked, replace=False)
            shards = np.searchsorted(ends, drawn, side="right")
            rows = drawn - np.concatenate([[0], ends])[shards]
            live = np.zeros(asked, bool)
            for number in np.unique(shards).tolist():
                here = shards == number
                live[here] = self._shards[number].live[rows[here]]
            if live.sum() >= wanted:
                places = zip(shards[live][:wanted].tolist(), rows[live][:wanted].tolist(), strict=True)
                return [_itself(self._shards[shard], row) for shard, row in places]
            asked = min(2 * asked, int(ends[-1]))  # some of those drawn are deleted

    def categories(self) -> dict[str, int]:
        """Category -> live pictures of it, most first; empty where the index holds no categories."""
        found: Counter[str] = Counter()
        for shard in self._shards:
            if "category" in shard.rows.column_names:
                live = shard.rows["category"].filter(pa.array(shard.live))
                found.update({each["values"]: each["counts"] for each in live.value_counts().to_pylist()})
        return dict(sorted(((name, count) for name, count in found.items() if name), key=lambda one: (-one[1], one[0])))

    @property
    def grouped(self) -> bool:
        """Whether near-duplicates are known, so that they can be folded."""
        return self._grouped

    def search(
        self,
        queries_QD: Matrix,
        k: int,
        allowed: Allowed | None = None,
        *,
        folded: bool = True,
        rerank: bool = True,
        stored: bool = False,
        own: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """The k best gallery pictures for every query, best first; equal scores in order of id.

        Args:
            queries_QD: descriptors of unit length.
            k: answers for each.
            allowed: rows that may answer; None: all.
            folded: of a group of near-duplicates only the best answers (where the searcher folds at all); where the candidates
                are of too few groups, more are re-scored until k groups answer, or all rows have been.
            rerank: score candidates with the stored vectors; else they keep the quantized inner products, unless so few rows
                may answer that each is compared.
            stored: the queries are vectors of this index, whitened already where it whitens.
            own: of each query the id that does not answer it, its own picture: left out before near-duplicates are folded,
                and one candidate more is re-scored in its place.

        Raises:
            InputError: queries of another number of dimensions.
        """
        if len(queries_QD) == 0:
            return []
        queries = queries_QD if self._whitening is None or stored else whiten(self._whitening, queries_QD)
        if self._expand:
            queries = self.expanded(queries, self._expand, allowed=allowed, own=own)
        how = _How(k=k, folded=folded and self._grouped, rerank=rerank, spare=int(own is not None))
        answers = self._named(self._ranked(queries, how, allowed), how, own)
        if how.folded and not self._compares_all(allowed, k):
            for query, hits in enumerate(answers):
                if len(hits) < k:
                    one = slice(query, query + 1)  # alone: its candidates may be very many
                    answers[query] = self._of_more_groups(queries[one], hits, how, allowed, own[one] if own else None)
        return answers

    def _of_more_groups(
        self, query_1D: Matrix, hits: list[Hit], how: _How, allowed: Allowed | None, own: Sequence[str] | None
    ) -> list[Hit]:
        """A query's answers where those found are of too few groups: with ever more candidates, at last all rows."""
        rows = allowed.rows if allowed else len(self)
        while len(hits) < how.k and how.k + how.spare < rows:
            how = replace(how, spare=_WIDER * self._candidate_count(how))
            (hits,) = self._named(self._ranked(query_1D, how, allowed), how, own)
        return hits

    def expanded(
        self,
        vectors_QD: Matrix,
        count: int,
        *,
        allowed: Allowed | None = None,
        inside: bool = False,
        own: Sequence[str] | None = None,
    ) -> Matrix:
        """Vectors with their `count` best answers added, each weighted by the third power of its score; unit length, float32.

        Of queries this is query expansion, of the gallery's rows database augmentation. Source: Radenovic, Tolias, Chum,
        *Fine-tuning CNN image retrieval with no human annotation*, TPAMI 2019 (alpha-QE); Arandjelovic, Zisserman, *Three
        things everyone should know to improve object retrieval*, CVPR 2012.

        Args:
            vectors_QD: vectors of this index's space (whitened where it whitens).
            count: answers, those that tie with the last of them included.
            allowed: rows that may be added.
            inside: the vectors are rows of this index: of each its own row is not added to it.
            own: of each vector the id of which no row is added to it, its own picture.
        """
        queries = np.ascontiguousarray(vectors_QD, np.float32)
        kept = self._ranked(queries, _How(k=count + (inside or own is not None), folded=False, rerank=True), allowed)
        sums = queries.astype(np.float64)
        for place, (scores, shards, rows) in enumerate(kept):
            itself = inside
            best = sorted(zip(scores.tolist(), shards.tolist(), rows.tolist(), strict=True), reverse=True)
            if own is not None:
                others = [one for one in best if self._shards[one[1]].id_of(one[2]) != own[place]]
                best = [one for one in others if one[0] >= others[min(count, len(others)) - 1][0]]
            for score, shard, row in best:
                vector = self._shards[shard].vectors[row]
                if itself and np.array_equal(vector.astype(np.float32), queries[place]):
                    itself = False
                    continue
                sums[place] += max(score, 0.0) ** _POWER * vector.astype(np.float64)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found: Matrix = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), queries).astype(np.float32)
        return found

    def _ranked(self, queries_QD: Matrix, how: _How, allowed: Allowed | None) -> list[_Ranked]:
        """The best rows of every query, in slices that the threads share."""
        queries = np.ascontiguousarray(queries_QD, np.float32)
        if queries.shape[1] != self._shards[0].index.d:
            raise InputError(f"queries of {queries.shape[1]} dimensions for an index of {self._shards[0].index.d}")
        allowed = allowed or self._live
        parts = -(-len(queries) // _SLICE) if len(queries) > _SLICE * self._threads else self._threads
        slices = [part for part in np.array_split(queries, min(parts, len(queries))) if len(part)]
        found = self._each(lambda part: self._search_slice(part, how, allowed, alone=len(slices) == 1), slices)
        return [ranked for part in found for ranked in part]

    def _each(self, work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """`work` on all items by the threads of the pool."""
        if len(items) == 1 or self._threads == 1:
            faiss.omp_set_num_threads(1)
            return [work(item) for item in items]
        return list(self._pool.map(work, items))

    def _search_slice(self, queries: Matrix, how: _How, allowed: Allowed | None, *, alone: bool) -> list[_Ranked]:
        if allowed is not None and self._compares_all(allowed, how.k):
            chosen = [(shard, np.flatnonzero(mask), None) for shard, mask in enumerate(allowed.masks)]
            every: list[list[_Piece]] = [[piece for piece in chosen if len(piece[1])]] * len(queries)
            return self._rescored(queries, every, how)
        return self._rescored(queries, self._candidates(queries, how, allowed, alone=alone), how)

    def _compares_all(self, allowed: Allowed | None, k: int) -> bool:
        """Whether so few rows may answer that each is compared."""
        allowed = allowed or self._live
        return allowed is not None and allowed.rows <= max(self._exact_below, k)

    def _candidate_count(self, how: _How) -> int:
        """Candidates of one query, over all shards."""
        return max(self.refine, -(-how.k * self.refine // USUAL_ANSWERS), how.k) + how.spare

    def _candidates(self, queries: Matrix, how: _How, allowed: Allowed | None, *, alone: bool) -> list[list[_Piece]]:
        """For each query its candidate rows, shard by shard.

        Rows that pass a filter may lie in cells far from a query: where fewer answers are found than there are, twice as many
        cells are visited, until all are.
        """
        turned, nprobe = self._turned(queries), self._probes(allowed)
        cells = 0 if self._shards[0].ivf is None else self.scale.cells
        needed = min(how.k + how.spare, allowed.rows if allowed is not None else len(self))
        chosen: list[list[_Piece]] = [[] for _ in queries]
        open_ones = np.arange(len(queries))
        while len(open_ones):
            found = self._in_cells(turned[open_ones], nprobe, how, allowed, alone=alone)
            for place, pieces in zip(open_ones, found, strict=True):
                chosen[place] = pieces
            if nprobe >= cells:
                break
            few = np.array([sum(len(rows) for _, rows, _ in pieces) < needed for pieces in found])
            open_ones, nprobe = open_ones[few], min(2 * nprobe, cells)
        return chosen

    def _in_cells(
        self, turned: Matrix, nprobe: int, how: _How, allowed: Allowed | None, *, alone: bool
    ) -> list[list[_Piece]]:
        """For each query its candidate rows in the `nprobe` cells nearest to it, which are found once for all shards."""
        wanted = self._candidate_count(how)
        ivf = self._shards[0].ivf
        closeness, cells = (None, None) if ivf is None else ivf.quantizer.search(turned, nprobe)
        masks: Sequence[Matrix | None] = allowed.masks if allowed else [None] * len(self._shards)
        each = self._each if alone else lambda work, items: [work(item) for item in items]
        chosen: list[list[_Piece]] = [[] for _ in turned]
        open_ones, asked = np.arange(len(turned)), wanted + _SPARE
        while len(open_ones):
            picked: tuple[Matrix, Matrix | None, Matrix | None] = (turned[open_ones], None, None)
            if cells is not None and closeness is not None:
                picked = (turned[open_ones], cells[open_ones], closeness[open_ones])
            found = each(
                lambda pair: pair[0].candidates(*picked, min(asked, len(pair[0])), pair[1]),  # noqa: B023 - used at once
                list(zip(self._shards, masks, strict=True)),
            )
            cut, complete = _cut(found, wanted, [len(shard) for shard in self._shards])
            for shard, (products, rows) in enumerate(found):
                kept = (products >= cut[:, None]) & (rows >= 0)
                for place in np.flatnonzero(complete & kept.any(1)):
                    piece = (shard, rows[place, kept[place]], products[place, kept[place]])
                    chosen[open_ones[place]].append(piece)
            open_ones, asked = open_ones[~complete], asked * 4
        return chosen

    def _turned(self, queries: Matrix) -> Matrix:
        """Queries after the rotation."""
        first = self._shards[0]
        for transform in transforms(first.index) if first.ivf is not None else []:
            queries = transform.apply(queries)
        return queries

    def _probes(self, allowed: Allowed | None) -> int:
        """Cells to visit: the fewer rows may answer, the wider they lie."""
        if allowed is None:
            return self.nprobe
        scale = self.scale
        return min(scale.cells, -(-self.nprobe * scale.rows // max(1, allowed.rows)))

    def _rescored(self, queries: Matrix, chosen: list[list[_Piece]], how: _How) -> list[_Ranked]:
        """Score candidates with the stored vectors; the k best, ties with the last of them included until ids decide."""
        kept: list[_Ranked] = []
        k = how.k + how.spare
        for query, pieces in zip(queries, chosen, strict=True):
            found = [
                products
                if products is not None and not how.rerank
                else scored(self._shards[shard].vectors, rows, query)
                for shard, rows, products in pieces
            ]
            scores = np.concatenate([np.empty(0, np.float32), *found])
            names, counts = [piece[0] for piece in pieces], [len(piece[1]) for piece in pieces]
            shards = np.repeat(np.array(names, np.int64), np.array(counts, np.int64))  # of none too
            rows = np.concatenate([np.empty(0, np.int64), *(piece[1] for piece in pieces)])
            if len(scores) > k and not how.folded:
                best = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
                scores, shards, rows = scores[best], shards[best], rows[best]
            kept.append((scores, shards, rows))
        return kept

    def _named(self, kept: list[_Ranked], how: _How, own: Sequence[str] | None = None) -> list[list[Hit]]:
        """Rows as hits, with one look-up a shard for all queries together."""
        scores, shards, rows = (np.concatenate(column) for column in zip(*kept, strict=True))
        details: dict[str, list[Any]] = {
            name: [None] * len(scores) for name in ("image_id", "uri", "description", "category", "group")
        }
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            for name, values in self._shards[shard].details(rows[places]).items():
                column = details.setdefault(name, [None] * len(scores))
                for place, value in zip(places.tolist(), values, strict=True):
                    column[place] = value
        listed, ids, groups = scores.tolist(), details["image_id"], details["group"]
        answers, start = [], 0
        for query, one in enumerate(kept):
            order = sorted(range(start, start + len(one[0])), key=lambda place: (-listed[place], ids[place]))
            start += len(one[0])
            if own is not None:
                order = [place for place in order if ids[place] != own[query]]
            if how.folded:
                order = _first_of_each(order, groups)
            answers.append(
                [
                    Hit(
                        image_id=ids[place],
                        score=listed[place],
                        uri=details["uri"][place],
                        description=details["description"][place],
                        category=details["category"][place],
                    )
                    for place in order[: how.k]
                ]
            )
        return answers


def _itself(shard: Shard, row: int) -> Hit:
    """A row of the gallery as its own answer."""
    about = {name: values[0] for name, values in shard.details(np.array([row])).items() if name != "group"}
    return Hit(score=1.0, **about)


def _cut(found: Sequence[tuple[Matrix, Matrix]], wanted: int, sizes: Sequence[int]) -> tuple[Matrix, Matrix]:
    """The product of each query's last candidate over all shards [Q], and whether no tie with it can be missing [Q]."""
    products = np.concatenate([np.where(rows >= 0, values, -np.inf) for values, rows in found], 1)
    cut = np.full(len(products), -np.inf, np.float32)
    if products.shape[1] > wanted:
        cut = np.partition(products, products.shape[1] - wanted, axis=1)[:, products.shape[1] - wanted]
    complete = np.ones(len(products), bool)
    for (values, rows), size in zip(found, sizes, strict=True):
        if values.shape[1] < size:
            complete &= (rows[:, -1] < 0) | (values[:, -1] < cut)
    return cut, complete


def _first_of_each(order: list[int], groups: list[str | None]) -> list[int]:
    """Places without those whose group has been seen."""
    seen: set[str] = set()
    kept = []
    for place in order:
        group = groups[place]
        if group is None or group not in seen:
            kept.append(place)
        if group is not None:
            seen.add(group)
    return kept


def scored(vectors: Matrix, rows: Matrix, query: Matrix, block: int = 1024) -> Matrix:
    """Inner products float32 of some rows of a float16 matrix with one query; a row's bits do not depend on the others."""
    return np.concatenate(
        [np.vecdot(widened(vectors.take(rows[at : at + block], 0)), query) for at in range(0, len(rows), block)]
        or [np.empty(0, np.float32)]
    )


def widened(half: Matrix) -> Matrix:
    """float16 -> float32, exact for finite numbers; six times as fast as numpy's own cast, which goes one by one."""
    bits = half.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # sign, exponent and mantissa, without the copies of the sign
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)  # the difference of the two exponents' biases
    return wide
