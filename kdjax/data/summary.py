"""What a dataset is like, in numbers and in words."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from kdjax.data.interactions import Dataset

_HEAD_SHARES = (1, 10, 20)  # Per cent of the items, most popular first.
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def describe(dataset: "Dataset") -> dict[str, Any]:
  """Counts that tell what a dataset is like.

  Density is `interactions / (users * items)`; `head_share` is the share of all interactions that
  falls on the most popular 1, 10 and 20 per cent of the items.

  Args:
    dataset: from `prepare`.

  Returns:
    A JSON-ready dict: `users`, `items`, `interactions`, `train`, `valid`, `test`, `density`,
    `length` (mean, min, max and quantiles by name), `head_share` (by name), `repairs` (by name).

  Example:
    >>> import polars as pl
    >>> from kdjax.data.interactions import Log, prepare
    >>> log = Log(pl.DataFrame({"user": [1, 1, 1, 1], "item": [5, 6, 7, 5]}))
    >>> summary = describe(prepare(log))
    >>> summary["users"], summary["items"], summary["test"], summary["density"]
    (1, 3, 1, 1.3333333333333333)
  """
  item = dataset.events["item"].to_numpy()
  users, count = dataset.num_users, len(item)
  popularity = np.sort(np.bincount(item, minlength=dataset.num_items))[::-1]
  lengths = np.sum([part.lengths for part in dataset.split], axis=0)
  heads = {p: max(1, round(dataset.num_items * p / 100)) for p in _HEAD_SHARES}
  return {
    "users": users,
    "items": dataset.num_items,
    "interactions": count,
    **{name: len(part.items) for name, part in dataset.split._asdict().items()},
    "density": count / (users * dataset.num_items),
    "length": {
      "mean": count / users,
      "min": int(lengths.min()),
      **{f"p{round(q * 100)}": float(np.quantile(lengths, q)) for q in _QUANTILES},
      "max": int(lengths.max()),
    },
    "head_share": {f"top {p}%": float(popularity[:n].sum() / count) for p, n in heads.items()},
    "repairs": dict(dataset.summary.get("repairs", {})),
  }


def format_summary(summary: Mapping[str, Any]) -> str:
  """The summary of `describe` as lines for people.

  Example:
    >>> import polars as pl
    >>> from kdjax.data.interactions import Log, prepare
    >>> log = Log(pl.DataFrame({"user": [1, 1, 1, 1], "item": [5, 6, 7, 5]}))
    >>> print(format_summary(prepare(log).summary).splitlines()[0])
    users 1 | items 3 | interactions 4 (train 2, valid 1, test 1) | density 133.3333%
  """
  parts = ", ".join(f"{name} {summary[name]:,}" for name in ("train", "valid", "test"))
  length = " ".join(f"{name} {value:,.4g}" for name, value in summary["length"].items())
  head = ", ".join(f"{name} {share:.1%}" for name, share in summary["head_share"].items())
  repairs = "; ".join(f"{name}: {count:,}" for name, count in summary["repairs"].items())
  return "\n".join(
    [
      f"users {summary['users']:,} | items {summary['items']:,} | interactions"
      f" {summary['interactions']:,} ({parts}) | density {summary['density']:.4%}",
      f"history length: {length}",
      f"share of the head of the catalogue: {head}",
      f"repairs: {repairs or 'none'}",
    ]
  )
