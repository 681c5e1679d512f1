"""Every reader on files as they are published, and every kind of bad file as one clear error."""

import gzip
import json
import re

import polars as pl
import pytest

from kdjax.data import sources
from kdjax.data.errors import DataError
from kdjax.data.interactions import prepare

EVENTS = [(1, 31, 978300760, 4.0), (1, 1029, 978300761, 3.5), (2, 31, 978300762, 5.0)]


def write(folder, name, text):
  path = folder / name
  raw = text if isinstance(text, bytes) else text.encode()
  path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
  return path


def rows(log):
  wanted = [c for c in ("user", "item", "timestamp", "rating") if c in log.events.columns]
  return log.events.select(wanted).rows()


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("u.data", "1\t31\t4\t978300760\n1\t1029\t3.5\t978300761\n2\t31\t5\t978300762\n"),
    ("ratings.dat", "1::31::4::978300760\n1::1029::3.5::978300761\n2::31::5::978300762\n"),
    ("x.txt", "1::31::4::978300760\n1::1029::3.5::978300761\n2::31::5::978300762\n"),
    (
      "ratings.csv",
      "userId,movieId,rating,timestamp\n1,31,4,978300760\n1,1029,3.5,978300761\n2,31,5,978300762",
    ),
    (
      "x.inter",
      "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
      "1\t31\t4\t978300760\n1\t1029\t3.5\t978300761\n2\t31\t5\t978300762\n",
    ),
    (
      "x.tsv",
      "item\tuser\tts\tscore\n31\t1\t978300760\t4\n1029\t1\t978300761\t3.5\n31\t2\t978300762\t5",
    ),
    (
      "float.csv",
      "user,item,time,stars\n1,31,978300760.0,4\n1,1029,978300761.9,3.5\n2,31,978300762.0,5",
    ),
    (
      "blank.csv",
      "user,item,time,stars\n1,31,978300760,4\n\n1,1029,978300761,3.5\n2,31,978300762,5\n\n",
    ),
    (
      "quoted.csv",
      'user,note,item,time,stars\n"1","a,""b""",31,978300760,4\n1,,1029,978300761,3.5\n2,"x\ny",31,978300762,5',
    ),
  ],
)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("crlf", [False, True])
def test_delimited_formats(tmp_path, name, text, zipped, crlf):
  text = text.replace("\n", "\r\n") if crlf else text
  log = sources.load(write(tmp_path, name + ".gz" * zipped, text))
  assert rows(log) == EVENTS
  assert log.events["timestamp"].dtype == pl.Int64
  assert log.events["user"].dtype == pl.Int64
  assert ("CRLF line ends read as LF" in log.repairs) == crlf


def test_user_item_lines_and_sequences(tmp_path):
  pairs = [(1, 5), (1, 6), (2, 5)]
  for name, text in [
    ("a.txt", "1 5\n1 6\n2 5\n"),
    ("b.txt", "1\t5\n1\t6\n2\t5\n"),
    ("c.txt", "1  5 \n1 6\n2 5\n"),
    ("d.txt", "1 5 6\n2 5\n"),
    ("e.txt", "\ufeff1 5 6\r\n\r\n2\t5"),
  ]:
    assert rows(sources.load(write(tmp_path, name, text))) == pairs, name
  log = sources.load(write(tmp_path, "f.txt", "1 5 6\n3\n2 5\n"))
  assert rows(log) == pairs
  assert log.repairs == {"users without items skipped": 1}
  text = sources.load(write(tmp_path, "g.txt", "ann x y\nbob x\n"), format="sequences")
  assert rows(text) == [("ann", "x"), ("ann", "y"), ("bob", "x")]


@pytest.mark.parametrize("zipped", [False, True])
def test_amazon_json_lines(tmp_path, zipped):
  old = {"reviewerID": "A1", "asin": "0001", "helpful": [0, 1], "overall": 5.0, "unixReviewTime": 9}
  new = {
    "user_id": "A1",
    "asin": "x",
    "parent_asin": "0001",
    "rating": 5,
    "timestamp": 1588687728923,
  }
  for record, time, repaired in ((old, 9, 0), (new, 1588687728, 1)):
    path = write(tmp_path, "r.jsonl" + ".gz" * zipped, json.dumps(record) + "\n")
    log = sources.load(path)
    assert rows(log) == [("A1", "0001", time, 5.0)]
    assert sum(log.repairs.values()) == repaired


def test_parquet_with_named_columns_and_dates(tmp_path):
  frame = pl.DataFrame({"who": ["a", "b"], "what": [3, 4], "when": ["2001-01-01", "2001-01-02"]})
  frame = frame.with_columns(pl.col("when").str.to_datetime())
  frame.write_parquet(tmp_path / "log.parquet")
  log = sources.load(tmp_path, user_column="who", item_column="what", timestamp_column="when")
  assert rows(log) == [("a", 3, 978307200), ("b", 4, 978393600)]


def test_columns_by_flag_with_and_without_header(tmp_path):
  path = write(tmp_path, "x.csv", "a;b;c\n1;2;0\n3;4;1\n")
  log = sources.load(path, user_column="b", item_column="a", label_column="c")
  assert log.events.rows() == [(2, 1, 0.0), (4, 3, 1.0)]
  path = write(tmp_path, "y.csv", "A,0001,5.0,7\nB,0002,4.0,8\n")
  log = sources.load(
    path, user_column="column_1", item_column="column_2", timestamp_column="column_4"
  )
  assert log.events.rows() == [("A", 1, 7), ("B", 2, 8)]


def test_item_attributes_beside_the_events(tmp_path):
  write(tmp_path, "ratings.dat", "1::31::4::978300760\n")
  write(tmp_path, "movies.dat", "31::Léon: The Professional::Crime|Drama\n".encode("latin-1"))
  assert sources.load(tmp_path).items.rows() == [(31, "Léon: The Professional", "Crime|Drama")]
  folder = tmp_path / "recbole"
  folder.mkdir()
  write(folder, "x.inter", "user_id:token\titem_id:token\n1\ta\n")
  write(folder, "x.item", 'item_id:token\tname:token_seq\na\tSome "name\n')
  assert sources.load(folder).items.rows() == [("a", 'Some "name')]
  folder = tmp_path / "100k"
  folder.mkdir()
  write(folder, "u.data", "1\t2\t3\t4\n")
  write(folder, "u.item", "2|Up|1-1-95||url|0|0|1|1" + "|0" * 15 + "\n")
  assert sources.load(folder).items.rows() == [(2, "Up", "Adventure|Animation")]
  path = write(tmp_path, "meta.jsonl", '{"title": "T", "parent_asin": "a"}\n')
  items = sources.load(folder / "u.data", items_path=path).items
  assert items.columns == ["item", "title"]


@pytest.mark.parametrize(
  ("name", "text", "options", "message"),
  [
    ("a.csv", "", {}, r"a.csv(.gz)?: the file is empty"),
    ("a.csv", "user,item\n", {}, r"a.csv(.gz)?: no events after the header"),
    ("a.csv", "x,item\n1,2\n", {}, r"line 1: no user column known by name; .* set user_column"),
    ("a.csv", "user,item\n1,2\n", {"item_column": "it"}, r"line 1: no column 'it'.*item_column"),
    ("a.csv", "user,item\n1,2\n", {"separator": "\t"}, r"line 1: .*set separator=','"),
    ("a.csv", "user,item\n1,2\n", {"separator": "ab"}, r"separator 'ab'"),
    ("a.csv", "user,x,item\n1,2,3\n4,5\n", {}, r"line 3: 2 field\(s\) where 3 were expected"),
    ("a.csv", "user,item\n1,2\n4,5,6\n", {}, r"line 3: 3 field\(s\) where 2 were expected"),
    ("a.csv", "user,item\n1,2\n,5\n", {}, r"line 3: empty user \(column 'user'\); fill it in"),
    ("a.csv", "user,item\n1,\n1,\n", {}, r"line 2: empty item"),
    ("a.csv", "user,item,rating\n1,2,3\n1,2,bad\n", {}, r"line 3: rating 'bad' is not a number"),
    ("a.csv", "user,item,rating\n1,2,nan\n", {}, r"line 2: rating 'nan' is not a number"),
    ("a.csv", "user,item,ts\n1,2,2020-01-01\n", {}, r"line 2: timestamp '2020-01-01' is not"),
    ("a.csv", "user,item,label\n1,2,1\n1,3,2\n", {}, r"line 3: 2: a label is neither 0 nor 1"),
    ("a.csv", b"user,item\n1,2\n1,\xff\n", {}, r"line 3: not UTF-8 text; save"),
    ("a.csv", b"user,item\n1,2\n1,\xff\n\n", {"format": "csv"}, r"line 3: not UTF-8 text; save"),
    ("a.csv", "user,item\n1,2\n".encode("utf-16"), {}, r"line 1: UTF-16 text; save the file"),
    ("a.txt", "1 2\n3 x\n", {"format": "sasrec"}, r"line 2: item 'x' is not a whole number"),
    ("a.txt", "1 2\n3\n", {"format": "sasrec"}, r"line 2: 1 field"),
    ("a.txt", "1 2 3\n" * 20000 + "4 x5 6\n", {}, r"line 20001: 'x5' is not a whole number"),
    ("a.txt", b"1 2 3\n4 \xff 6\n", {"format": "sequences"}, r"line 2: not UTF-8"),
    ("a.txt", "dear reader\n", {}, r"line 1: no known format begins with 'dear reader'"),
    ("a.txt", b"\x00\x01\x02", {}, r"line 1: binary data"),
    ("u.data", "1,2,3,4\n", {"separator": "\t"}, r"line 1: 1 field\(s\) where 4"),
    ("ratings.dat", "1::2::3::4\n1::2:3::4\n", {}, r"line 2: 3 field\(s\) where 4"),
    ("a.inter", "user\titem\n1\t2\n", {}, r"line 1: not a RecBole header"),
    ("a.json", '{"user": 1, "item": 2}\n{"user": 1, "it', {}, r"line 2: not JSON"),
    ("a.json", '{"user": 1, "item": 2}\n[1]\n', {}, r"line 2: not a JSON object"),
    ("a.json", '{"user": 1, "item": 2}\n{"user": 1}\n', {}, r"line 2: no item \(field 'item'\)"),
    ("a.json", '{"user": 1, "item": 2, "rating": 1}\n{"user": 1, "item": 2, "rating": "x"}\n', {},
     r"line 2: rating 'x' is not a number"),
    ("a.json", '{"user": 1, "item": 2, "label": 1}\n{"user": 1, "item": 2, "label": 3}\n', {},
     r"line 2: 3: a label is neither 0 nor 1"),
    ("a.json", "[1, 2]\n", {}, r"line 1: not a JSON object"),
    ("a.parquet", "PAR1 no PAR1", {}, r"not a Parquet file"),
  ],
)  # fmt: skip
def test_bad_files_name_the_place_and_the_mend(tmp_path, name, text, options, message):
  path = write(tmp_path, name, text)
  with pytest.raises(DataError, match=message) as caught:
    sources.load(path, **options)
  assert name in str(caught.value) or "separator" in options
  # The same line is found inside gzip.
  if not name.endswith(".parquet"):
    path = write(tmp_path, name + ".gz", text)
    with pytest.raises(DataError, match=message):
      sources.load(path, **options)


def test_parquet_names_the_row_of_an_odd_label(tmp_path):
  path = tmp_path / "a.parquet"
  pl.DataFrame({"user": [1, 1], "item": [2, 3], "label": [1.0, 0.5]}).write_parquet(path)
  with pytest.raises(DataError, match=r"a.parquet, row 2: a label is neither 0 nor 1"):
    sources.load(path)


def test_what_a_filter_empties_is_called_by_its_path(tmp_path):
  log = sources.load(write(tmp_path, "a.csv", "user,item\n1,2\n1,3\n"))
  with pytest.raises(DataError, match=r"a\.csv: k_core=5 removed all 2 events"):
    prepare(log, k_core=5)


def test_missing_places(tmp_path):
  with pytest.raises(DataError, match=r"no such file or folder; give a path, 'synthetic'"):
    sources.load(tmp_path / "absent.csv")
  with pytest.raises(DataError, match=r"no event file among nothing"):
    sources.load(tmp_path)
  write(tmp_path, "README.txt", "1 2 3")
  with pytest.raises(DataError, match=r"no event file among README.txt"):
    sources.load(tmp_path)
  with pytest.raises(DataError, match=r"no such file|cannot be opened"):
    sources.load("a\0b")
  path = write(tmp_path, "x.csv", "user,item\n1,2\n")
  with pytest.raises(DataError, match=r"absent.tsv: cannot be read"):
    sources.load(path, items_path=tmp_path / "absent.tsv")


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_truncated_gzip(tmp_path, share):
  raw = gzip.compress("".join(f"{n} {n * 7919 % 10007}\n" for n in range(50_000)).encode())
  path = tmp_path / "x.txt.gz"
  path.write_bytes(raw[: int(len(raw) * share)])
  with pytest.raises(
    DataError, match=r"x.txt.gz, line \d+ or later: .*truncated or damaged.*fetch"
  ):
    sources.load(path)
  damaged = bytearray(raw)
  damaged[len(raw) // 2] ^= 0xFF
  path.write_bytes(damaged)
  with pytest.raises(DataError, match="truncated or damaged"):
    sources.load(path)


@pytest.mark.parametrize("factor", [10**3, 10**6, 10**9])
def test_timestamps_of_other_units_are_mended_and_counted(tmp_path, factor):
  text = f"user,item,timestamp\n1,2,{1_500_000_000 * factor}\n1,3,1500000001\n"
  log = sources.load(write(tmp_path, "a.csv", text))
  assert log.events["timestamp"].to_list() == [1_500_000_000, 1_500_000_001]
  assert list(log.repairs.values()) == [1]
  assert "seconds brought to seconds" in next(iter(prepare(log).summary["repairs"]))


def test_large_and_text_ids(tmp_path):
  beyond = 2**31 + 5
  log = sources.load(write(tmp_path, "a.txt", f"{beyond} 1\n{beyond} {2**62}\n"))
  assert rows(log) == [(beyond, 1), (beyond, 2**62)]
  data = prepare(log)
  assert data.events["item"].dtype == pl.Int32
  assert data.item_ids.to_list() == [1, 2**62]
  log = sources.load(write(tmp_path, "b.txt", f"{2**80} 1\n5 2\n"))
  assert rows(log) == [(str(2**80), 1), ("5", 2)]
  assert log.repairs == {"user ids beyond int64, all kept as text": 1}
  text = "user,item\n" + "".join(f"{n},1\n" for n in range(200)) + "2x,1\n"
  log = sources.load(write(tmp_path, "c.csv", text))
  assert log.repairs == {"user ids that are no numbers, all kept as text": 1}


def test_bom_and_crlf_are_counted(tmp_path):
  log = sources.load(write(tmp_path, "a.csv", "\ufeffuser,item\r\n1,2\r\n3,4\r\n"))
  assert rows(log) == [(1, 2), (3, 4)]
  assert log.repairs == {"byte order marks removed": 1, "CRLF line ends read as LF": 3}


@pytest.mark.parametrize(
  ("name", "users", "items", "events", "held_out"),
  [
    ("movielens-1m", 6040, 3416, 999_611, 6040),
    ("movielens-small", 610, 9724, 100_836, 610),
    ("amazon-beauty", 22_363, 12_101, 198_502, 22_363),
    ("amazon-video-games", 31_013, 23_715, 287_107, 31_013 - 384),
  ],
)
def test_real_data_have_the_published_counts(shared_data, name, users, items, events, held_out):
  summary = prepare(sources.load(shared_data / name)).summary
  assert (summary["users"], summary["items"], summary["interactions"]) == (users, items, events)
  assert summary["valid"] == summary["test"] == held_out


def test_real_attributes_line_up(shared_data):
  data = prepare(sources.load(shared_data / "movielens-1m"))
  assert data.items.row(2, named=True)["title"] == "Forrest Gump"
  beauty = prepare(sources.load(shared_data / "amazon-beauty")).items
  assert beauty["title"].null_count() == 7
  attributes = json.loads((shared_data / "amazon-beauty" / "item_attributes.json").read_text())
  assert beauty["attributes"][3].to_list() == attributes["4"]
  small = prepare(sources.load(shared_data / "movielens-small"))
  first = small.items.row(0, named=True)
  assert (first["item"], first["title"]) == (1, "Toy Story (1995)")


def test_file_order_is_kept_by_the_parallel_reader(shared_data):
  path = shared_data / "movielens-1m" / "ml-1m.txt"
  want = [tuple(map(int, line.split())) for line in re.findall(r".+", path.read_text())]
  assert rows(sources.load(path)) == want
