"""The embedded default: a seeded log with drifting tastes, succession and Zipf popularity.

How an event comes about. Every item belongs to one taste (its genre) and has a rank within it. A
user holds a few favourite tastes and is in one of them at a time; both drift. The next item is,
by chance, one of

- a successor of the last item (or, less often, of the one before it): three fixed items that a
  hash of (item, current taste, branch) picks within the current taste. As a table of items x items
  these successions have next to full rank, which is what a larger model can hold and a smaller
  one cannot;
- a fresh draw from the current taste, by Zipf popularity;
- noise from the whole catalogue.

Nobody meets an item twice. Nothing of size items x items or users x items is ever built: users go
in chunks, each chunk vectorised over its users and stepped through time.
"""

import numpy as np
import polars as pl

from kdjax.data.interactions import Log

_CHUNK = 8192  # Users simulated together.
_BLOCK = 1 << 18  # Items described together.
_BRANCHES = np.array([0.6, 0.85, 1.0])  # Cumulative chances of the three successors of an item.
_BEFORE_LAST = 0.25  # How often a succession leaves from the item before the last.
_TRIES = 4  # Fresh draws against a repeated item before the event is given up.
_FAVOURITES = 3
_FASHION = 1.5  # How unevenly tastes are spread over users; 1 is evenly.
_START, _SPAN, _GAP = (
  1_600_000_000,
  63_072_000,
  43_200,
)  # Seconds: first day, two years, half a day.
_GENRES = {
  "Action": "Chase Strike Fury Pursuit",
  "Adventure": "Voyage Treasure Island Expedition",
  "Animation": "Fox Dragonling Toybox Penguin",
  "Comedy": "Wedding Roommate Mixup Vacation",
  "Crime": "Heist Witness Alibi Syndicate",
  "Documentary": "Archive Portrait Chronicle Ocean",
  "Drama": "Daughter Winter Letter Promise",
  "Fantasy": "Wizard Kingdom Spell Crown",
  "Horror": "Haunting Cellar Scream Curse",
  "Musical": "Ballad Stage Chorus Rhythm",
  "Mystery": "Riddle Manor Cipher Disappearance",
  "Romance": "Kiss Summer Heart Embrace",
  "Sci-Fi": "Galaxy Android Orbit Wormhole",
  "Thriller": "Hostage Conspiracy Deadline Shadow",
  "War": "Battalion Trench Siege Armistice",
  "Western": "Saloon Marshal Canyon Outlaw",
}
_ADJECTIVES = tuple(
  word
  for line in (
    "Silent Golden Broken Hidden Last Crimson Distant Eternal Forgotten Gentle Hollow Iron",
    "Jaded Lonely Midnight Northern Pale Quiet Restless Secret Twisted Velvet Wild Young",
  )
  for word in line.split()
)


def generate(
  *,
  num_users: int = 1500,
  num_items: int = 1000,
  mean_length: float = 40.0,
  num_tastes: int = 16,
  succession: float = 0.65,
  noise: float = 0.05,
  drift: float = 0.1,
  zipf: float = 1.0,
  seed: int = 0,
) -> Log:
  r"""A log in which there is something to learn, and more of it for a larger model.

  P(next) = succession * P(successor) + (1 - succession - noise) * P(taste) + noise * P(any)

  Args:
    num_users: U, at least 1.
    num_items: V, at least 1; ten million fit where the log fits.
    mean_length: of the histories, about; lengths follow a gamma law between 5 and 4 means.
    num_tastes: genres, at most `num_items`.
    succession: share of events that follow from an item before.
    noise: share of events that follow from nothing.
    drift: chance per event that a user turns to another favourite taste; a fifth of these turns
      also replace the favourite by a new one.
    zipf: exponent of the popularity within a taste, at least 0 (all alike).
    seed: the same arguments give the same log.

  Returns:
    Events by user in time order: `user`, `item` (int32), `timestamp` (int64, seconds), `rating`
    (float32, 1..5) and `label` (float32, 1 for ratings of 4 and more). Items: `item`, `title`,
    `genres`; the words of a title tell its genre.

  Raises:
    ValueError: if a size is below 1, or `succession` and `noise` leave [0, 1].

  Example:
    >>> log = generate(num_users=100, num_items=50, mean_length=8)
    >>> log.events.columns, log.items.columns
    (['user', 'item', 'timestamp', 'rating', 'label'], ['item', 'title', 'genres'])
    >>> log.events.equals(generate(num_users=100, num_items=50, mean_length=8).events)
    True
  """
  if min(num_users, num_items, mean_length, num_tastes) < 1:
    raise ValueError("num_users, num_items, mean_length and num_tastes must be at least 1")
  if min(succession, noise) < 0 or succession + noise > 1:
    raise ValueError(f"succession and noise must sum to at most 1, got {succession} and {noise}")
  num_tastes = min(num_tastes, num_items)
  rng = np.random.default_rng(seed)
  # Public ids say nothing of taste or popularity.
  public = rng.permutation(num_items).astype(np.int32)
  spread = rng.gamma(2.0, max(mean_length - 5, 0) / 2, num_users)
  lengths = np.minimum(5 + spread, 4 * mean_length).astype(np.int64).clip(1)
  total = int(lengths.sum())
  user, item, rating = np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, "f4")
  timestamp = np.empty(total, np.int64)
  world = _World(num_items, num_tastes, succession, noise, drift, zipf, seed)
  count = 0
  for first in range(0, num_users, _CHUNK):
    chunk = lengths[first : first + _CHUNK]
    # An own stream for each chunk: it does not matter how much the chunks before have drawn.
    columns = world.simulate(chunk, np.random.default_rng([seed, first]))
    stop = count + len(columns[0])
    user[count:stop] = columns[0] + first
    item[count:stop] = public[columns[1]]
    timestamp[count:stop], rating[count:stop] = columns[2], columns[3]
    count = stop
  events = pl.DataFrame(
    {
      "user": user[:count],
      "item": item[:count],
      "timestamp": timestamp[:count],
      "rating": rating[:count],
    }
  ).with_columns((pl.col("rating") >= 4).cast(pl.Float32).alias("label"))
  return Log(events, _describe_items(public, num_tastes, seed))


class _World:
  """The laws by which items follow one another; holds no array."""

  def __init__(self, num_items, num_tastes, succession, noise, drift, zipf, seed):
    self.num_items, self.num_tastes = num_items, num_tastes
    self.succession, self.noise, self.drift = succession, noise, drift
    self.zipf, self.seed = zipf, seed

  def simulate(self, lengths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """User (within the chunk), item, timestamp and rating of every event, by user and time."""
    order = np.argsort(-lengths, kind="stable")  # Longest first: the users still going lead.
    lengths = lengths[order]
    size, steps = len(lengths), int(lengths[0])
    seen = np.full((size, steps), -1, np.int32)
    stars = np.zeros((size, steps), np.float32)
    favourites = self._tastes((size, _FAVOURITES), rng)
    taste = favourites[:, 0].copy()
    last = self._draw(taste, rng)
    before = last.copy()
    for t in range(steps):
      going = int(np.searchsorted(-lengths, -t, side="left"))
      self._turn(favourites[:going], taste[:going], rng)
      now = taste[:going]
      item = self._next(last[:going], before[:going], now, rng)
      for attempt in range(_TRIES + 1):
        repeated = np.flatnonzero((seen[:going, :t] == item[:, None]).any(axis=1))
        if not len(repeated):
          break
        item[repeated] = -1 if attempt == _TRIES else self._draw(now[repeated], rng)
      met = item >= 0
      seen[:going, t] = item
      before[:going] = np.where(met, last[:going], before[:going])
      last[:going] = np.where(met, item, last[:going])
      stars[:going, t] = self._rate(item, favourites[:going], rng)
    start = rng.integers(_START, _START + _SPAN, size=(size, 1))
    gaps = rng.exponential(_GAP, size=(size, steps)).astype(np.int64) + 1
    moments = start + np.cumsum(gaps, axis=1)
    back = np.argsort(order)
    met = (seen >= 0)[back]
    user = np.repeat(np.arange(size), met.sum(axis=1))
    return [user, seen[back][met], moments[back][met], stars[back][met]]

  def _turn(self, favourites, taste, rng) -> None:
    """Lets some users turn to another of their favourites, or find a new one; in place."""
    size = len(taste)
    turning = np.flatnonzero(rng.random(size) < self.drift)
    slot = rng.integers(_FAVOURITES, size=len(turning))
    new = np.flatnonzero(rng.random(len(turning)) < 0.2)
    favourites[turning[new], slot[new]] = self._tastes(len(new), rng)
    taste[turning] = favourites[turning, slot]

  def _tastes(self, shape, rng) -> np.ndarray:
    """Tastes at random, some more common than others."""
    return (self.num_tastes * rng.random(shape) ** _FASHION).astype(np.int32)

  def _next(self, last, before, taste, rng) -> np.ndarray:
    size = len(taste)
    mode = rng.random(size)
    source = np.where(rng.random(size) < _BEFORE_LAST, before, last)
    branch = np.searchsorted(_BRANCHES, rng.random(size))
    chance = _hash01(self.seed, source, taste, branch)
    follow = mode < self.succession
    anywhere = rng.integers(self.num_tastes, size=size, dtype=np.int32)
    taste = np.where(mode >= 1 - self.noise, anywhere, taste)
    # Successors are spread evenly: if all of them were hits, few dimensions would tell them apart.
    even = self._item_at(taste, chance * self._count(taste))
    return np.where(follow, even, self._draw(taste, rng))

  def _draw(self, taste, rng) -> np.ndarray:
    return self._item(taste, rng.random(len(taste)))

  def _item(self, taste, chance) -> np.ndarray:
    """The item of a taste at a quantile of its popularity."""
    count = self._count(taste)
    if self.zipf == 1:
      rank = (count + 1) ** chance - 1
    else:
      power = 1 - self.zipf
      rank = (((count + 1) ** power - 1) * chance + 1) ** (1 / power) - 1
    return self._item_at(taste, rank)

  def _count(self, taste) -> np.ndarray:
    """How many items a taste has."""
    return (self.num_items - 1 - taste) // self.num_tastes + 1.0

  def _item_at(self, taste, rank) -> np.ndarray:
    """The item of a taste at a rank of popularity: rank * num_tastes + taste."""
    rank = np.minimum(rank.astype(np.int64), self._count(taste).astype(np.int64) - 1)
    return (rank * self.num_tastes + taste).astype(np.int32)

  def _rate(self, item, favourites, rng) -> np.ndarray:
    """Stars: what the item is worth, more in a favourite taste, and mood."""
    worth = 2 * _hash01(self.seed, item, -1, -1) - 1
    liked = (favourites == (item % self.num_tastes)[:, None]).any(axis=1)
    return np.clip(np.rint(2.6 + 1.2 * liked + worth + rng.normal(0, 0.6, len(item))), 1, 5)


def _hash01(seed: int, *keys) -> np.ndarray:
  """A number in [0, 1) that is a function of the keys: SplitMix64 folded over them."""
  state = np.array([seed], np.int64).view(np.uint64)
  for key in keys:
    state = state + np.asarray(key, np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
  return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _describe_items(public: np.ndarray, num_tastes: int, seed: int) -> pl.DataFrame:
  """Title and genre of every item, by public id."""
  names = list(_GENRES)[:num_tastes]
  names += [f"Genre{n}" for n in range(len(names), num_tastes)]
  nouns = pl.Series([word for name in names for word in _GENRES.get(name, f"{name} " * 4).split()])
  index = np.empty(len(public), np.int32)
  index[public] = np.arange(len(public), dtype=np.int32)
  adjectives, genres = pl.Series(_ADJECTIVES), pl.Series(names)
  frames = []
  for first in range(0, len(public), _BLOCK):  # The hashes of ten million would outweigh the log.
    part = index[first : first + _BLOCK]
    taste = part % num_tastes
    adjective = (_hash01(seed, part, -2) * len(_ADJECTIVES)).astype(np.int32)
    noun = taste * 4 + (_hash01(seed, part, -3) * 4).astype(np.int32)
    words = (adjectives.gather(adjective), nouns.gather(noun), pl.Series(part // num_tastes + 1))
    item = np.arange(first, first + len(part), dtype=np.int32)
    frame = {"item": item, "title": pl.select(pl.concat_str(*words, separator=" ")).to_series()}
    frames.append(pl.DataFrame({**frame, "genres": genres.gather(taste)}))
  return pl.concat(frames)
