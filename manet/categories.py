"""Few-shot categories from product descriptions by TF-IDF. Source: METHOD.md "Few-shot training set (Perfect-30K)".

A category is a kind of product: a noun, or a pair of words, that many brands share. Brands, product lines, sizes, colours and
marketing words are not. They are told apart by a word list and by the company that a term keeps:

- A kind has words of its own around it ("razor" comes with "blade"); a line or a marketing word comes with everything.
- A kind ends its noun phrase; a modifier is followed by its kind ("waterproof" by "mascara").
- A kind is sold under many brands; a brand and its lines stand in titles that open with one word.
- A synonym keeps the company of a kind that is there already: it becomes a keyword of it ("lip colour" of "lipstick").

Shop titles are what this is made for; of prose only the first sentence counts. It knows English plurals and needs spaces
between words.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer, TfidfVectorizer

from manet.errors import InputError
from manet.stopwords import GENERIC, NOT_KINDS

Array = np.ndarray[Any, np.dtype[Any]]
_DROPPED = (NOT_KINDS | ENGLISH_STOP_WORDS) - GENERIC
_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d[\w.,]*|[^\w\s'-]| - ")
_LEAD_END = re.compile(r"(?<=\w{4})[.!?](?=\s+\w)|(?<=\w )with(?:out)? ", re.IGNORECASE)  # not the dot of "No. 5"
_VERBS = frozenset(["is", "are", "has", "have", "can"])
_WORDLESS = "no description holds a word that can name a category; give more or fuller ones"
_MOST_TERMS = 3000  # bounds memory: a dense terms x words table of float32
_LEAST_SHARE = 0.002  # of the different descriptions that a term must stand in
_LEAST_TEXTS, _LEAST_ROWS = 3, 10  # ... and it must stand in so many descriptions, or in those of so many pictures
_FEW = 5  # a term in fewer descriptions shows too little company to be judged by it
_ENOUGH = 10  # from here on its company can make it a synonym
_PRIOR = 5.0  # descriptions' worth of everybody's company that smooths a category's
_SYNONYM = 0.3  # of what a term's company tells, when a category's company leaves less unexplained
_PAIR_WORTH = 1.35  # "eye shadow" says more than "shadow"
_SUBJECT_WORTH = 2.0  # "Asparagus is ...": the subject of the sentence
_ONE_BRAND_WORTH = 0.05  # of a term that only ever stands in titles opening with one word
_LEFT_OF_HEAD = 0.1  # a head with a smaller share of its rows left gives way to its pairs
_NAMED_BY_PAIR = 0.7  # "shadow" is called "eye shadow" when so many of its descriptions say so
_BOUND = 0.7  # a term with so many of its descriptions in one category is a keyword of it
_KEYWORDS = 12  # of one category


@dataclass(frozen=True, kw_only=True)
class Category:
    """A category: its name, and its keywords with their scores (the TF-IDF of a word that stands once), the name first."""

    name: str
    keywords: tuple[tuple[str, float], ...]


def terms_of(text: str) -> list[str]:
    """Words of a description, lower case and singular, then pairs of neighbours that are both content words."""
    words = [_content(token) for token in _TOKEN.findall(text.lower())]
    return [word for word in words if word] + [f"{a} {b}" for a, b in pairwise(words) if a and b]


def _content(token: str) -> str:
    """A token as a term, "" for what cannot be one: numbers with their units, punctuation, dropped words."""
    word = _singular(token) if token[0].isalpha() else ""
    return "" if len(word) < 3 or token in _DROPPED or word in _DROPPED else word


def _singular(word: str) -> str:
    word = word.removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if (len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes"))) or (len(word) > 5 and word.endswith("toes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _lead(text: str) -> str:
    """The first sentence up to a "with": it says what the product is; "with argan oil" does not."""
    return _LEAD_END.split(text, maxsplit=1)[0]


def _lead_terms(text: str) -> list[str]:
    return terms_of(_lead(text))


def _company(text: str) -> list[str]:
    """What a term may stand beside: colours, units and marketing tell something too; the digits of "30ml" do not."""
    tokens = [token for token in _TOKEN.findall(_lead(text).lower()) if token not in ENGLISH_STOP_WORDS]
    return [_singular(t) if t[0].isalpha() else re.sub(r"[\d.,]+", "#", t) for t in tokens if t[0].isalnum()]


def _opener(text: str) -> str:
    """The first word that is not dropped: in a shop's title mostly the brand."""
    return next((word for token in _TOKEN.findall(text.lower()) if (word := _content(token))), "")


def _subjects(text: str) -> set[str]:
    return {_singular(a) for a, b in pairwise(_TOKEN.findall(_lead(text).lower())) if b in _VERBS}


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """The candidate terms of a catalogue. Shapes: D different descriptions, T terms, W words of company."""

    texts: list[str]
    rows_D: Array  # pictures of each description
    names: list[str]
    tfidf_DT: sparse.csc_matrix
    idf_T: Array
    variants: dict[int, int]  # term -> the same term in its more frequent spelling ("sun screen" -> "sunscreen")

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def texts_T(self) -> Array:
        """Different descriptions that each term stands in."""
        return np.asarray(np.diff(self.tfidf_DT.indptr), np.float64)

    @cached_property
    def pairs(self) -> list[tuple[int, int, int]]:
        """(pair, its first word, its second word) of all pairs whose words are terms too."""
        split = [(i, name.split(" ")) for i, name in enumerate(self.names) if " " in name]
        return [(i, self.index[a], self.index[b]) for i, (a, b) in split if a in self.index and b in self.index]

    @cached_property
    def present_DT(self) -> sparse.csc_matrix:
        present = self.tfidf_DT.copy()
        present.data = np.ones_like(present.data)
        return present

    def texts_with(self, term: int) -> Array:
        """Descriptions that a term stands in."""
        return np.asarray(self.tfidf_DT.indices[self.tfidf_DT.indptr[term] : self.tfidf_DT.indptr[term + 1]])


def _count(descriptions: Sequence[str]) -> _Terms:
    counted = Counter(text for text in descriptions if text)  # one product's pictures share their description
    texts, rows = list(counted), np.array(list(counted.values()), np.float64)
    least = max(1, int(_LEAST_SHARE * len(texts)))
    vectorizer = TfidfVectorizer(
        analyzer=_lead_terms, min_df=least, max_features=_MOST_TERMS, sublinear_tf=True, norm=None
    )
    try:
        tfidf = sparse.csc_matrix(vectorizer.fit_transform(texts))
    except ValueError:  # sklearn's word for an empty vocabulary
        raise InputError(_WORDLESS) from None
    least_rows = min(_LEAST_ROWS, max(1, int(rows.sum()) // 50))
    often = (np.diff(tfidf.indptr) >= _LEAST_TEXTS) | (np.asarray((tfidf > 0).T @ rows).ravel() >= least_rows)
    names = [str(name) for name in vectorizer.get_feature_names_out()[often]]
    if not names:
        raise InputError(_WORDLESS)
    tfidf = tfidf[:, np.flatnonzero(often)]
    variants = _spellings(names, np.diff(tfidf.indptr))
    if variants:  # a description in either spelling counts for the more frequent one
        merge = sparse.identity(len(names), format="lil")
        for rare, usual in variants.items():
            merge[rare, usual] = 1
        tfidf = sparse.csc_matrix(tfidf @ sparse.csc_matrix(merge))
        tfidf.sort_indices()
    return _Terms(
        texts=texts, rows_D=rows, names=names, tfidf_DT=tfidf, idf_T=vectorizer.idf_[often], variants=variants
    )


def _spellings(names: list[str], texts_T: Array) -> dict[int, int]:
    index = {name: i for i, name in enumerate(names)}
    both = [
        (i, index[joined])
        for i, name in enumerate(names)
        if (joined := name.replace(" ", "")) != name and joined in index
    ]
    return dict((i, j) if texts_T[i] < texts_T[j] else (j, i) for i, j in both)


class _Company:
    """How much the words around a term tell, against everybody's company or a category's.

    For term t with company p_t(w) = share of t's descriptions that hold w, and a reference q(w):
    sum over w of p_t(w) log(p_t(w) / q(w)). The p_t in front is taken from counts less one: of a word seen beside t once,
    nothing is known. Words of t itself, and of the reference, are no company.
    """

    def __init__(self, terms: _Terms) -> None:
        least = 2 if len(terms.texts) >= 100 else 1
        vectorizer = CountVectorizer(
            analyzer=_company, min_df=least, max_features=_MOST_TERMS, binary=True, dtype=np.float32
        )
        try:
            words = sparse.csc_matrix(vectorizer.fit_transform(terms.texts))
        except ValueError:  # sklearn's word for an empty vocabulary
            raise InputError(_WORDLESS) from None
        place = vectorizer.vocabulary_
        self._own = [[place[word] for word in name.split() if word in place] for name in terms.names]
        for rare, usual in terms.variants.items():
            self._own[usual] = self._own[usual] + self._own[rare]
        self._share_W = np.asarray(words.mean(0), np.float32).ravel()
        self._together_TW = (terms.present_DT.astype(np.float32).T @ words).toarray()
        for term, own in enumerate(self._own):
            self._together_TW[term, own] = 0
        self._texts_T = terms.texts_T.astype(np.float32)
        self._known_TW = np.maximum(self._together_TW - 1, 0) / self._texts_T[:, None]
        share_TW = self._together_TW / self._texts_T[:, None]
        self._plogp_TW = self._known_TW * np.log(np.where(share_TW > 0, share_TW, 1))

    def against_everybody(self) -> Array:
        """What each term's company tells, [T]: near 0 for lines and marketing words, several for kinds."""
        return self._against(self._share_W, [])

    def against(self, category: int) -> Array:
        """What is left to tell of each term's company, [T], when it is known to be that of `category`."""
        together = self._together_TW[category] + _PRIOR * self._share_W
        return self._against(together / (self._texts_T[category] + _PRIOR), self._own[category])

    def _against(self, reference_W: Array, left_out: list[int]) -> Array:
        counted = np.ones(len(reference_W), np.float32)
        counted[left_out] = 0
        log = np.log(np.where(reference_W > 0, reference_W, 1))
        return np.maximum(np.asarray(self._plogp_TW @ counted - self._known_TW @ (log * counted), np.float64), 0)


def _kind_like(terms: _Terms) -> Array:
    """How much a term looks like the name of a kind, from its place in the descriptions alone, [T], 0 for never."""
    texts_T = terms.texts_T
    follows: Counter[int] = Counter()
    for pair, _, second in terms.pairs:
        follows[second] += int(texts_T[pair])
    modifies_T = np.zeros(len(texts_T))
    for pair, first, second in terms.pairs:  # "waterproof" draws "mascara"; after "mascara" comes any line
        if texts_T[pair] / texts_T[first] > 3 * follows[second] / max(1, follows.total()):
            modifies_T[first] += (texts_T[pair] - 1) / texts_T[first]
    head_T = np.clip(1 - modifies_T, 0, 1) * [name not in GENERIC for name in terms.names]
    second_of = {pair: second for pair, _, second in terms.pairs}
    is_pair_T = np.array([" " in name for name in terms.names])
    ends_T = np.array(
        [head_T[second_of.get(i, i)] if i in second_of or not is_pair_T[i] else 0 for i in range(len(head_T))]
    )
    generic_end = [name.split()[-1] in GENERIC for name in terms.names]  # "hair color": its end is no head, the pair is
    ends_T[is_pair_T & generic_end] = 1
    subjects = Counter(subject for text in terms.texts for subject in _subjects(text))
    subject_T = np.array([subjects[name] for name in terms.names]) / texts_T
    worth_T = ends_T * _many_brands(terms) * (1 + _SUBJECT_WORTH * subject_T) * np.where(is_pair_T, _PAIR_WORTH, 1)
    worth_T[is_pair_T & (texts_T < _LEAST_TEXTS)] = 0
    return np.asarray(worth_T)


def _many_brands(terms: _Terms) -> Array:
    """Chance that two descriptions with a term open with different words, [T]."""
    place: dict[str, int] = {}
    columns = [place.setdefault(_opener(text), len(place)) for text in terms.texts]
    ones = np.ones(len(columns))
    opens = sparse.csr_matrix((ones, (np.arange(len(columns)), columns)), shape=(len(columns), len(place)))
    together = sparse.csr_matrix(terms.present_DT.T @ opens)
    squares_T = np.asarray(together.multiply(together).sum(1)).ravel()
    same_T = (squares_T - terms.texts_T) / np.maximum(terms.texts_T * (terms.texts_T - 1), 1)
    return np.asarray(np.maximum(1 - same_T, _ONE_BRAND_WORTH))


@dataclass(kw_only=True)
class _Cover:
    """Greedy weighted cover of the descriptions by terms: each next one adds the most to what is there."""

    terms: _Terms
    kind_like_T: Array
    company: _Company
    owner_D: Array = field(init=False)  # the chosen term that has a description, -1 for none
    chosen: list[int] = field(default_factory=list)
    left_to_tell: dict[int, Array] = field(default_factory=dict)  # of every term, by each chosen one

    def __post_init__(self) -> None:
        self.owner_D = np.full(len(self.terms.texts), -1)
        self.told_T = self.company.against_everybody()
        usual = self.terms.texts_T >= _FEW
        known = self.told_T[usual & (self.told_T > 0)]
        self.least_told_T = np.where(usual, 0.0, np.median(known) / 2 if len(known) else 1.0)
        self.new_T = self.told_T.copy()  # what a term tells that no chosen one has told
        self.out_T = np.zeros(len(self.told_T), bool)
        self.out_T[list(self.terms.variants)] = True

    def grow(self, n: int) -> None:
        """Choose terms until there are `n`, or none is left that adds anything."""
        while len(self.chosen) < n:
            value = self._gain() * self.kind_like_T * np.maximum(self.new_T, self.least_told_T)
            value[self.out_T] = 0
            value[self.chosen] = 0
            best = int(np.argmax(value))
            if value[best] <= 0:
                return
            self._choose(best)

    def choose_the_largest(self) -> None:
        """The one term that most pictures share: what a catalogue of one kind has."""
        self._choose(int(np.argmax(self._gain() * np.maximum(self.kind_like_T, 1e-9) * ~self.out_T)))

    def _gain(self) -> Array:
        """TF-IDF of each term over the pictures that nobody has yet; a pair may take those of its second word."""
        terms, tfidf = self.terms, self.terms.tfidf_DT
        gain_T = np.asarray(tfidf.T @ (terms.rows_D * (self.owner_D < 0))).ravel()
        for pair, _, second in terms.pairs:
            if second in self.left_to_tell:
                texts = terms.texts_with(pair)
                scores = tfidf.data[tfidf.indptr[pair] : tfidf.indptr[pair + 1]]
                gain_T[pair] += scores @ (terms.rows_D[texts] * (self.owner_D[texts] == second))
        return gain_T

    def _choose(self, term: int) -> None:
        """Take a term, or rule it out: too few descriptions are new, or it is a synonym."""
        heads = [second for pair, _, second in self.terms.pairs if pair == term]
        texts = self.terms.texts_with(term)
        new = texts[(self.owner_D[texts] < 0) | np.isin(self.owner_D[texts], heads)]
        synonym = self.terms.texts_T[term] >= _ENOUGH and self.new_T[term] < _SYNONYM * self.told_T[term]
        if len(new) < 0.3 * len(texts) or (synonym and self.chosen):
            self.out_T[term] = True
            return
        self.chosen.append(term)
        self.owner_D[new] = term
        self.left_to_tell[term] = self.company.against(term)
        self.new_T = np.minimum(self.new_T, self.left_to_tell[term])
        for head in set(heads) & set(self.chosen):
            rows = self.terms.rows_D
            if rows[self.owner_D == head].sum() < _LEFT_OF_HEAD * rows[self.terms.texts_with(head)].sum():
                self.chosen.remove(head)
                self.out_T[head] = True


def find_categories(descriptions: Sequence[str], n: int = 44) -> list[Category]:
    """The `n` rough categories of a catalogue, or as many as it has, the one with most pictures first.

    Deterministic; the order of the descriptions does not matter, nor do empty ones. Rows with the same description (a
    product's pictures) count as pictures, not as further evidence for its words.

    Raises:
        InputError: no description holds a word that can name a category.
    """
    terms = _count(descriptions)
    cover = _Cover(terms=terms, kind_like_T=_kind_like(terms), company=_Company(terms))
    cover.grow(n)
    if not cover.chosen:
        cover.choose_the_largest()
    categories = _with_keywords(cover)
    labels = assign(terms.texts, categories)
    rows = np.bincount(labels[labels >= 0], terms.rows_D[labels >= 0], minlength=len(categories))
    order = sorted(np.flatnonzero(rows), key=lambda i: (-rows[i], categories[i].name))
    return [categories[i] for i in order]


def _with_keywords(cover: _Cover) -> list[Category]:
    """The chosen terms, each with its other spellings and names, the terms bound to it, and its synonyms."""
    terms, chosen = cover.terms, cover.chosen
    keywords = {term: [term] for term in chosen}
    for rare, usual in terms.variants.items():
        if usual in keywords:
            keywords[usual].append(rare)
    taken = {*chosen, *terms.variants}
    for pair, _, second in terms.pairs:
        least = max(_LEAST_TEXTS, _NAMED_BY_PAIR * terms.texts_T[second])
        if second in keywords and pair not in taken and terms.texts_T[pair] >= least:
            keywords[second].insert(0, pair)
            taken.add(pair)
    owned_TC = terms.present_DT.T @ np.equal.outer(cover.owner_D, chosen).astype(np.float64)
    share_TC = owned_TC / terms.texts_T[:, None]
    left_TC = np.stack([cover.left_to_tell[term] for term in chosen], 1)
    many_brands_T = _many_brands(terms)
    telling = float(np.quantile(cover.told_T[chosen], 0.25))
    for term in np.argsort(-terms.texts_T, kind="stable").tolist():
        if term in taken or terms.names[term] in GENERIC or many_brands_T[term] < 0.3:
            continue
        bound, alike = int(np.argmax(share_TC[term])), int(np.argmin(left_TC[term]))
        if share_TC[term, bound] >= _BOUND:
            keywords[chosen[bound]].append(term)
        elif (
            min(terms.texts_T[term], terms.texts_T[chosen[alike]]) >= _ENOUGH
            and cover.told_T[term] >= telling
            and left_TC[term, alike] < _SYNONYM * cover.told_T[term]
            and cover.kind_like_T[term] > 0.5
            and share_TC[term].max() < 0.3
        ):
            keywords[chosen[alike]].append(term)
    return [
        Category(
            name=terms.names[words[0]],
            keywords=tuple((terms.names[i], round(float(terms.idf_T[i]), 4)) for i in words[:_KEYWORDS]),
        )
        for words in keywords.values()
    ]


def assign(descriptions: Sequence[str], categories: Sequence[Category]) -> Array:
    """Label of every description, int32: the category whose keywords have the highest summed TF-IDF in it; -1 for none.

    TF-IDF = (1 + ln(times that the keyword stands in the description)) * its score. On a tie the earlier category.
    """
    owner = {word: (index, score) for index, category in enumerate(categories) for word, score in category.keywords}
    known: dict[str, int] = {}
    labels = np.full(len(descriptions), -1, np.int32)
    for row, text in enumerate(descriptions):
        if text not in known:
            totals = [0.0] * len(categories)
            for term, times in Counter(terms_of(text or "")).items():
                if term in owner:
                    index, score = owner[term]
                    totals[index] += (1 + math.log(times)) * score
            best = max(totals, default=0.0)
            known[text] = totals.index(best) if best > 0 else -1
        labels[row] = known[text]
    return labels


def select(labels: Array, per_category: int = 800, seed: int = 0) -> Array:
    """Rows of at most `per_category` pictures of each category, seeded, in order of row; a category that is short keeps all."""
    rng = np.random.default_rng(seed)
    picked = [
        rng.permutation(np.flatnonzero(labels == label))[:per_category]
        for label in range(int(labels.max(initial=-1)) + 1)
    ]
    return np.sort(np.concatenate(picked)) if picked else np.empty(0, np.int64)


def split(labels: Array, groups: Sequence[str], seed: int, validation: float = 0.2) -> Array:
    """True for the rows of the validation split, stratified by label; deterministic under the seed.

    Rows of one group (pictures of one product, or with one description) never straddle the splits, also where they have several
    labels, but for labels of fewer than five groups, whose rows are split one by one. Groups are taken in random order while
    they fit, so a label's share is below `validation` by at most its smallest group left out. A label with two rows or more
    has rows in both splits, unless other labels have decided over all of its groups.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    decided: dict[str, bool] = {}
    names = np.asarray(groups, object)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        wanted = min(max(round(validation * len(rows)), 1), len(rows) - 1)
        units, unit_of_row, sizes = np.unique(names[rows], return_inverse=True, return_counts=True)
        if len(units) < 5:
            held[rng.permutation(rows)[:wanted]] = True
            continue
        taken = np.array([decided.get(unit, False) for unit in units])
        free = np.array([unit not in decided for unit in units])
        for unit in rng.permutation(len(units)):
            if free[unit] and sizes[taken].sum() + sizes[unit] <= wanted:
                taken[unit] = True
        if free.any() and not taken.any():
            taken[np.argmin(np.where(free, sizes, len(labels)))] = True
        decided.update(zip(units, taken.tolist(), strict=True))
        held[rows[taken[unit_of_row]]] = True
    return held
