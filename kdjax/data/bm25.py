"""BM25, the ranking by words that every search model must beat."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def make_bm25(
  documents: Sequence[str], *, k1: float = 1.5, b: float = 0.75
) -> Callable[[Sequence[str]], np.ndarray]:
  r"""Scores of documents by the words that they share with a query.

  $$s(q, d) = \sum_{w \in q} \log\Big(1 + \frac{N - n_w + 0.5}{n_w + 0.5}\Big)
  \frac{f_{w,d}}{f_{w,d} + k_1 (1 - b + b |d| / \overline{|d|})}$$

  with $n_w$ of the N documents holding w, $f_{w,d}$ times in d. Words are lower-case and stemmed
  (Snowball), without English stop words: without stems the baseline would be a weak one.

  Args:
    documents: N texts, at least one with a word.
    k1: how soon more of a word is of no more use.
    b: from 0 to 1, how much long documents are held back.

  Returns:
    `(queries) -> float32 [Q, N]`, 0 where no word is shared.

  Raises:
    ImportError: if bm25s or PyStemmer is not installed.
    ValueError: if k1 is negative or b outside of [0, 1].

  Example:
    >>> score = make_bm25(["a red car", "blue cars and bikes", "a green tree"])
    >>> (score(["the car"])[0] > 0).tolist()
    [True, True, False]

  Reference:
    S. Robertson, H. Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, with
    Lucene's idf and term frequency; computed by bm25s (X. H. Lù, 2024, arXiv:2407.03618).
  """
  if k1 < 0 or not 0 <= b <= 1:
    raise ValueError(f"k1={k1} is at least 0, b={b} lies in [0, 1]")
  library, stemmer = _libraries()
  options = {"stopwords": "en", "stemmer": stemmer, "show_progress": False}
  index = library.BM25(k1=k1, b=b, method="lucene")
  index.index(library.tokenize(list(documents), **options), show_progress=False)

  def score(queries: Sequence[str]) -> np.ndarray:
    words = library.tokenize(list(queries), return_ids=False, **options)
    known = ([w for w in own if w in index.vocab_dict] for own in words)
    nothing = np.zeros(len(documents), np.float32)
    return np.stack([index.get_scores(own) if own else nothing for own in known])

  return score


def _libraries() -> tuple[Any, Any]:
  try:
    import bm25s
    import Stemmer
  except ImportError as error:
    raise ImportError(
      "BM25 needs the libraries bm25s and PyStemmer: pip install 'kdjax[text]'"
    ) from error
  logging.getLogger("bm25s").setLevel(logging.WARNING)
  return bm25s, Stemmer.Stemmer("english")
