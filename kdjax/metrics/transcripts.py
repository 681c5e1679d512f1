"""How far a transcript is from what was said, and how one is read off a network's frames."""

import numpy as np


def ctc_decode(logits: np.ndarray, frame_where: np.ndarray, *, blank: int = 0) -> list[list[int]]:
  """The likeliest class of every frame, repeats merged, then blanks dropped.

  Args:
    logits: float `[N, T, C]`.
    frame_where: bool `[N, T]`, the frames that count.
    blank: the class that stands for no label.

  Returns:
    The classes of each of the N.

  Example:
    >>> frames = np.eye(3)[None, [1, 1, 0, 1, 2, 2]]
    >>> ctc_decode(frames, np.ones([1, 6], bool))
    [[1, 1, 2]]

  Reference:
    A. Graves et al., Connectionist Temporal Classification, ICML 2006 (best path decoding).
  """
  found = []
  for best, counts in zip(np.argmax(logits, axis=-1), frame_where, strict=True):
    path = best[counts]
    begins = np.diff(path, prepend=-1) != 0
    found.append(path[begins & (path != blank)].tolist())
  return found


def edit_distance(found: list[int], truth: list[int]) -> int:
  """The fewest insertions, deletions and substitutions that make one of the other.

  Example:
    >>> edit_distance([*"sitting"], [*"kitten"])
    3

  Reference:
    V. Levenshtein, 1966; the table by rows.
  """
  row = list(range(len(truth) + 1))
  for i, a in enumerate(found, 1):
    before, row = row, [i]
    for j, b in enumerate(truth, 1):
      row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
  return row[-1]
