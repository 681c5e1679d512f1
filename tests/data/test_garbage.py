"""Whatever the bytes, a reader gives a log or a DataError, nothing else."""

import contextlib
import gzip
import io
import pathlib
import tempfile
import typing

import hypothesis
import polars as pl
import pytest
from hypothesis import strategies as st

from kdjax.data import interactions, sources
from kdjax.data.errors import DataError


def _parquet():
  buffer = io.BytesIO()
  pl.DataFrame({"user": ["a", "b"] * 20, "item": range(40), "rating": [1.5] * 40}).write_parquet(
    buffer
  )
  return buffer.getvalue()


# A good file of each format, and the names that lead to each reader.
GOOD = {
  "movielens": ("u.data", b"1\t31\t4\t978300760\n1\t1029\t3.5\t978300761\n"),
  "sasrec": ("a.txt", b"1 5\n1 6\n2 5\n"),
  "sequences": ("a.txt", b"1 5 6 7\n2 5\n"),
  "csv": ("a.csv", b'userId,movieId,rating,timestamp\n1,31,4.0,978300760\n"1",32,5,978300761\n'),
  "recbole": ("a.inter", b"user_id:token\titem_id:token\ttimestamp:float\n1\ta\t978300760\n"),
  "json_lines": ("a.json", b'{"reviewerID": "A", "asin": "x", "overall": 5.0}\n' * 3),
  "parquet": ("a.parquet", _parquet()),
}
FORMATS = typing.get_args(sources.Format)
SETTINGS = hypothesis.settings(
  max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
# Bytes that mean something to some reader come up far more often than by chance.
PIECES = st.lists(
  st.one_of(
    st.sampled_from([
      b"\n", b"\r\n", b"\r", b" ", b",", b"\t", b"::", b"|", b'"', b"{", b"}", b"[1]", b"null",
      b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PAR1", b"user", b"item", b"nan",
      b"1 2\n", b"-1", b"1e999", b"9" * 30, b"user_id:token\titem_id:token\n", b"user,item\n",
      b'{"user": 1, "item": ',
    ]),
    st.binary(max_size=8),
    st.integers().map(lambda n: str(n).encode()),
  ),
  max_size=30,
).map(b"".join)  # fmt: skip


def attempt(name, raw, **options):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / name
    path.write_bytes(raw)
    try:
      log = sources.load(path, **options)
      interactions.prepare(log)
    except DataError:
      return None
  assert log.events.height
  assert not log.events["user"].null_count()
  assert not log.events["item"].null_count()
  return log


@pytest.mark.parametrize("format", GOOD)
def test_the_good_files_are_good(format):
  name, raw = GOOD[format]
  assert attempt(name, raw, format=format) is not None
  assert attempt(name, raw) is not None


@pytest.mark.parametrize("format", FORMATS)
@SETTINGS
@hypothesis.given(raw=PIECES, zipped=st.booleans())
@hypothesis.example(raw=b"user,item \r\x01", zipped=False)
def test_garbage(format, raw, zipped):
  name = GOOD.get(format, ("a.txt",))[0]
  attempt(name, gzip.compress(raw) if zipped else raw, format=format)


@pytest.mark.parametrize("format", GOOD)
@SETTINGS
@hypothesis.given(data=st.data())
def test_damaged_files(format, data):
  """A good file cut short, with bytes overwritten or put in."""
  name, raw = GOOD[format]
  place = data.draw(st.integers(0, len(raw)))
  piece = data.draw(PIECES)
  how = data.draw(st.sampled_from(["cut", "insert", "overwrite"]))
  rest = {"cut": b"", "insert": raw[place:], "overwrite": raw[place + len(piece) :]}[how]
  raw = raw[:place] + piece + rest
  zipped = data.draw(st.sampled_from([None, 0, 5]))
  if zipped is not None:
    raw = gzip.compress(raw)[: len(raw) + 20 - zipped]
  attempt(name, raw, format=data.draw(st.sampled_from([format, "auto"])))


@SETTINGS
@hypothesis.given(raw=PIECES, name=st.sampled_from(
  ["movies.csv", "movies.dat", "u.item", "items.tsv", "a.item", "items.parquet",
   "item_attributes.json", "meta.jsonl"]))  # fmt: skip
def test_garbage_beside_the_events(raw, name):
  with tempfile.TemporaryDirectory() as folder:
    events, beside = pathlib.Path(folder) / "a.csv", pathlib.Path(folder) / name
    events.write_bytes(GOOD["csv"][1])
    beside.write_bytes(raw)
    items = pathlib.Path(folder) / "titles.tsv" if name == "item_attributes.json" else beside
    if items != beside:
      items.write_text("item\ttitle\n31\tUp\n")
    with contextlib.suppress(DataError):
      log = sources.load(events, items_path=items)
      assert interactions.prepare(log).items.height == 2
