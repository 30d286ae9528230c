"""Few-shot categories from product descriptions by TF-IDF. Source: METHOD.md "Few-shot training set (Perfect-30K)".

A category is a kind of product: a noun, or a pair of words, that many brands share. Brands, sizes, units, colours and
marketing words are not: they are dropped by a word list, by digits, and by the company that they keep (a brand's word
always stands with the same neighbours, a kind's word with all sorts).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from manet.errors import InputError
from manet.stopwords import BODY, NOT_KINDS

Array = np.ndarray[Any, np.dtype[Any]]
_DROPPED = NOT_KINDS | ENGLISH_STOP_WORDS
_WORD = re.compile(r"[^\W\d_][^\W\d_'-]+")
_KEYWORDS = 5  # of one category
_LEAST_SHARE = 0.002  # of the descriptions that a term must stand in
_LEAST_ROWS = 3
_MOST_SHARE = 0.5  # a term in more than half of all descriptions tells nothing
_SAME_ROWS = 0.5  # a term that shares so many of its rows with a category is a keyword of it, not one of its own


@dataclass(frozen=True, kw_only=True)
class Category:
    """A category: its name, and its keywords with their mean TF-IDF score, the name first."""

    name: str
    keywords: tuple[tuple[str, float], ...]


def terms_of(text: str) -> list[str]:
    """Words of a description, lower case and singular, then pairs of neighbours that are both content words."""
    words = [_singular(word) for word in _WORD.findall(text.lower())]
    content = [word if word not in _DROPPED and len(word) > 2 else "" for word in words]
    pairs = [f"{a} {b}" for a, b in pairwise(content) if a and b]
    return [word for word in content if word] + pairs


def _singular(word: str) -> str:
    word = word.strip("'-").removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def find_categories(descriptions: Sequence[str], n: int = 44) -> list[Category]:
    """The `n` rough categories of a catalogue, or as many as it has, the largest first.

    Greedy cover: each next category is the term that adds most to what is covered so far, weighted by its TF-IDF and by
    how varied its neighbours are; terms that mostly stand where it stands become its keywords. Deterministic.

    Raises:
        InputError: no description holds a word.
    """
    texts, counts = _distinct(descriptions)
    least = max(_LEAST_ROWS if len(texts) >= 100 else 1, int(_LEAST_SHARE * len(texts)))
    vectorizer = TfidfVectorizer(analyzer=terms_of, min_df=least, sublinear_tf=True, norm=None)
    try:
        tfidf = sparse.csc_matrix(vectorizer.fit_transform(texts))
    except ValueError:
        raise InputError(
            f"no description holds a word that stands in {least} others; nothing to make categories of"
        ) from None
    terms = vectorizer.get_feature_names_out()
    present = (tfidf > 0).astype(np.float64)
    rows_of_term = np.asarray(present.T @ np.asarray(counts, np.float64)).ravel()
    score = np.asarray(tfidf.sum(0)).ravel() / np.maximum(np.asarray(present.sum(0)).ravel(), 1)
    worth = score * _telling(present, terms) * _is_kind_like(terms)
    worth[np.asarray(present.sum(0)).ravel() > max(_MOST_SHARE * len(texts), 1)] = 0
    chosen = _cover(present, np.asarray(counts, np.float64), worth, n)
    return _with_keywords(chosen, present, terms, score, rows_of_term)


def _distinct(descriptions: Sequence[str]) -> tuple[list[str], list[int]]:
    """Different descriptions and how many rows have each: one product's pictures share theirs."""
    counted = Counter(text for text in descriptions if text)
    return list(counted), list(counted.values())


def _telling(present: sparse.csc_matrix, terms: Array) -> Array:
    """How much a term tells of the other words of its descriptions: the KL divergence of its company from everybody's.

    A kind has a company of its own ("razor" comes with "blade" and "sensitive"); a product line, a marketing word or a
    house's name comes with everything. The bias of counting few words is taken off; never below 0.
    """
    share = np.asarray(present.mean(0)).ravel()
    seen = np.maximum(np.asarray(present.sum(0)).ravel(), 1)
    together = (present.T @ present).toarray() / seen[:, None]
    for index, term in enumerate(terms):  # a pair's own words, and pairs with this word, are no company
        own = set(term.split())
        together[index, [j for j, other in enumerate(terms) if own & set(other.split())]] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(together > 0, together * np.log(together / share[None]), 0).sum(1)
    bias = (together > 0).sum(1) / (2 * seen)
    return np.asarray(np.maximum(divergence - bias, 0))


def _is_kind_like(terms: Array) -> Array:
    """Pairs are worth more than either word: "eye shadow" is a kind, "eye" is not."""
    return np.array([1.35 if " " in term else 0.0 if term in BODY else 1.0 for term in terms])


def _cover(present: sparse.csc_matrix, counts: Array, worth: Array, n: int) -> list[int]:
    """Greedy weighted cover: term indices in the order they were chosen."""
    open_rows = counts.copy()
    chosen: list[int] = []
    gain = np.asarray(present.T @ open_rows).ravel()
    for _ in range(n):
        value = gain * worth
        value[chosen] = 0
        best = int(np.argmax(value))
        if value[best] <= 0 or gain[best] < min(_LEAST_ROWS, counts.sum()):
            break
        chosen.append(best)
        rows = present.indices[present.indptr[best] : present.indptr[best + 1]]
        newly = np.zeros_like(open_rows)
        newly[rows] = open_rows[rows]
        open_rows[rows] = 0
        gain = gain - np.asarray(present.T @ newly).ravel()
    return chosen


def _with_keywords(
    chosen: list[int], present: sparse.csc_matrix, terms: Array, score: Array, rows_of_term: Array
) -> list[Category]:
    """Each chosen term with the terms that mostly stand beside it; a term serves one category only."""
    taken = set(chosen)
    together = (present.T @ present[:, chosen]).toarray()
    alone = np.maximum(np.asarray(present.sum(0)).ravel(), 1)
    categories = []
    for column, term in enumerate(chosen):
        share = together[:, column] / alone
        near = [
            i
            for i in np.argsort(-share * together[:, column], kind="stable")
            if share[i] > _SAME_ROWS and i not in taken
        ]
        near = [i for i in near if share[i] == together[i].max() / alone[i]][: _KEYWORDS - 1]
        taken.update(near)
        keywords = tuple((str(terms[i]), round(float(score[i]), 4)) for i in (term, *near))
        categories.append(Category(name=str(terms[term]), keywords=keywords))
    order = sorted(range(len(chosen)), key=lambda i: (-rows_of_term[chosen[i]], categories[i].name))
    return [categories[i] for i in order]


def assign(descriptions: Sequence[str], categories: Sequence[Category]) -> Array:
    """Label of every description, int32: the category whose keywords in it have the highest summed score; -1 for none."""
    owner = {word: (index, score) for index, category in enumerate(categories) for word, score in category.keywords}
    known: dict[str, int] = {}
    labels = np.full(len(descriptions), -1, np.int32)
    for row, text in enumerate(descriptions):
        if text not in known:
            totals: dict[int, float] = defaultdict(float)
            for term in set(terms_of(text or "")):
                if term in owner:
                    totals[owner[term][0]] += owner[term][1]
            known[text] = max(totals, key=lambda index: (totals[index], -index)) if totals else -1
        labels[row] = known[text]
    return labels


def select(labels: Array, per_category: int, seed: int) -> Array:
    """Rows of at most `per_category` pictures of each category, seeded, in order of row."""
    rng = np.random.default_rng(seed)
    picked = [
        rng.permutation(np.flatnonzero(labels == label))[:per_category]
        for label in range(int(labels.max(initial=-1)) + 1)
    ]
    return np.sort(np.concatenate(picked)) if picked else np.empty(0, np.int64)


def split(labels: Array, groups: Sequence[str], seed: int, validation: float = 0.2) -> Array:
    """True for the rows of the validation split, stratified by label.

    Rows of one group (pictures of one product, or with one description) never straddle the splits where a label has
    groups enough (five); where it has fewer, its rows are split one by one.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    names = np.asarray(groups, object)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        units = sorted(set(names[rows]))
        if len(units) < 5:
            held[rng.permutation(rows)[: round(validation * len(rows))]] = True
            continue
        chosen: set[str] = set()
        for unit in rng.permutation(np.asarray(units, object)):
            if sum(np.isin(names[rows], list(chosen))) >= round(validation * len(rows)):
                break
            chosen.add(unit)
        held[rows[np.isin(names[rows], list(chosen))]] = True
    return held
