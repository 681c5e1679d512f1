"""Rows, tables and marked blocks against literal expectations."""

import csv
import io
import json
import math

import numpy as np
import pytest

from kdjax import report


def evaluated(name, value, seed=0, **cost):
  """A row as the evaluation writes it: quality, size and cost nested."""
  return {
    "name": name,
    "seed": seed,
    "metric": "ndcg@10",
    "quality": {"ndcg@10": {"value": value, "low": value - 0.01, "high": value + 0.02}, "hr@10": 1},
    "cost": {"num_params": 1000, "num_nonzero": 1000, "num_bytes": 4_000_000, **cost},
    "against_teacher": {"p_value": 0.5},
  }


def test_flatten_lifts_quality_and_cost():
  row = report.flatten(evaluated("a", 0.5, macs=3))
  assert row == {
    "name": "a",
    "seed": 0,
    "metric": "ndcg@10",
    "quality": 0.5,
    "low": 0.49,
    "high": 0.52,
    "parameters": 1000,
    "nonzero": 1000,
    "bytes": 4_000_000,
    "macs": 3,
  }
  assert report.flatten(row) == row
  assert report.flatten(evaluated("a", 0.5), metric="hr@10")["quality"] == 1


def test_flatten_names_the_metrics_there_are():
  with pytest.raises(report.ResultError, match=r"a: no metric 'mrr' among \['hr@10', 'ndcg@10'\]"):
    report.flatten(evaluated("a", 0.5), metric="mrr")


def test_aggregate_is_numpy_mean_and_sample_deviation():
  values = [0.1, 0.4, 0.25]
  rows = [{"name": "a", "seed": i, "quality": v, "bytes": 7} for i, v in enumerate(values)]
  (row,) = report.aggregate([*rows])
  assert row["quality"] == pytest.approx(np.mean(values))
  assert row["quality_std"] == pytest.approx(np.std(values, ddof=1))
  assert row["bytes"] == 7
  assert row["bytes_std"] == 0
  assert row["runs"] == 3
  assert "seed" not in row


def test_aggregate_groups_by_several_keys_in_order_and_drops_what_differs():
  rows = [
    {"dataset": "x", "name": "b", "quality": 1.0, "note": "p"},
    {"dataset": "y", "name": "b", "quality": 2.0, "note": "p"},
    {"dataset": "x", "name": "b", "quality": 3.0, "note": "q", "only": 1},
  ]
  first, second = report.aggregate(rows, by=("dataset", "name"))
  assert (first["dataset"], first["quality"], second["quality"]) == ("x", 2.0, 2.0)
  assert "note" not in first
  assert "only" not in first
  assert second == {**rows[1], "runs": 1}


def test_aggregate_refuses_a_row_without_the_key():
  with pytest.raises(report.ResultError, match="lacks 'dataset'"):
    report.aggregate([{"name": "a"}], by=("name", "dataset"))


@pytest.mark.parametrize(
  ("alone", "distilled", "teacher", "share"),
  [(0.1, 0.1, 0.2, 0), (0.1, 0.2, 0.2, 1), (0.1, 0.15, 0.2, 0.5), (0.1, 0.05, 0.2, -0.5)],
)
def test_gap_recovered(alone, distilled, teacher, share):
  assert report.gap_recovered(alone, distilled, teacher) == pytest.approx(share)


@pytest.mark.parametrize("teacher", [0.1, 0.05])
def test_gap_recovered_is_undefined_without_a_gap(teacher):
  assert math.isnan(report.gap_recovered(0.1, 0.2, teacher))


def test_markdown_of_seeds_is_literal():
  rows = [
    evaluated("teacher", 0.2, latency_p50_ms=2.5, throughput=1234.5),
    evaluated("alone", 0.1),
    evaluated("alone", 0.12, seed=1),
    evaluated("int8", 0.15, num_nonzero=600, num_bytes=81_234, macs=2_500_000),
    evaluated("int8", 0.17, seed=1, num_nonzero=600, num_bytes=81_234, macs=2_500_000),
  ]
  assert report.to_markdown(report.summarise(rows)) == "\n".join(
    [
      "| model | ndcg@10 (± standard deviation of 2 seeds; [95 %] of users) | gap recovered |"
      " parameters | not 0 | MB | MACs, M | p50, ms | requests/s |",
      "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
      "| teacher | 0.2000 [0.1900, 0.2200] | – | 1,000 | 1,000 | 4.00 | – | 2.50 | 1,234 |",  # noqa: RUF001
      "| alone | 0.1100 ± 0.0141 | – | 1,000 | 1,000 | 4.00 | – | – | – |",  # noqa: RUF001
      "| int8 | 0.1600 ± 0.0141 | 56% | 1,000 | 600 | 0.0812 | 2.50 | – | – |",  # noqa: RUF001
    ]
  )


def test_markdown_escapes_bars_and_shows_nan_as_missing():
  text = report.to_markdown([{"name": "a|b", "quality": 0.5, "macs": math.nan, "bytes": 1e6}])
  assert text.splitlines()[2] == r"| a\|b | 0.5000 | 1.00 |"


def test_csv_keeps_full_precision():
  rows = [{"name": "a, b", "quality": 0.1 + 0.2, "gap": math.nan}, {"name": "c", "macs": 3}]
  read = list(csv.DictReader(io.StringIO(report.to_csv(rows))))
  assert read[0] == {"name": "a, b", "quality": repr(0.1 + 0.2), "gap": "", "macs": ""}
  assert read[1]["macs"] == "3"


@pytest.mark.parametrize("write", [report.to_markdown, report.to_csv])
def test_no_rows_is_an_error(write):
  with pytest.raises(report.ResultError, match="no rows"):
    write([])


def test_read_results_from_files_and_folders(tmp_path):
  for name, result in [("one", {"quality": 1}), ("two", {"rows": [{"name": "a"}, {"name": "b"}]})]:
    (tmp_path / name).mkdir()
    (tmp_path / name / "result.json").write_text(json.dumps(result))
  assert report.read_results([tmp_path / "one", tmp_path / "two" / "result.json"]) == [
    {"workdir": "one", "quality": 1},
    {"workdir": "two", "name": "a"},
    {"workdir": "two", "name": "b"},
  ]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "no such file"),
    (b'{"quality": ', "not JSON"),
    (b"", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[1, 2]", "holds a JSON list instead of an object"),
    (b'{"rows": [1]}', "`rows` is not a list of objects"),
  ],
)
def test_a_bad_result_file_is_named(tmp_path, content, message):
  if content is not None:
    (tmp_path / "result.json").write_bytes(content)
  with pytest.raises(report.ResultError, match=message) as caught:
    report.read_results([tmp_path / "result.json"])
  assert str(tmp_path / "result.json") in str(caught.value)


README = "# Title\r\n<!-- begin results -->\nold\n<!-- end results -->\ntail"


def test_update_file_changes_the_block_alone_and_only_once(tmp_path):
  path = tmp_path / "README.md"
  path.write_bytes(README.encode())
  assert report.update_file(path, {"results": "| new |\n"})
  assert path.read_bytes().decode() == README.replace("old", "| new |")
  assert not report.update_file(path, {"results": "| new |"})


@pytest.mark.parametrize(
  "text",
  [
    "",
    "<!-- begin results -->",
    "<!-- end results --><!-- begin results -->",
    README + README,
  ],
)
def test_update_file_names_the_file_without_its_block(tmp_path, text):
  path = tmp_path / "README.md"
  path.write_bytes(text.encode())
  with pytest.raises(report.ResultError, match=r"README\.md: needs exactly one <!-- begin results"):
    report.update_file(path, {"results": "new"})
  assert path.read_bytes() == text.encode()


def test_update_file_names_a_missing_file(tmp_path):
  with pytest.raises(report.ResultError, match=r"README\.md: no such file"):
    report.update_file(tmp_path / "README.md", {"results": "new"})
