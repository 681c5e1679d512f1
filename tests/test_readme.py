import contextlib
import io
import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_synopsis_prints_what_it_says():
  code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1)
  said = re.findall(r"print\(.*\)\s+# (.+)", code)
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    exec(compile(code, "README.md", "exec"), {})
  lines = printed.getvalue().split()
  assert len(said) == len(lines) == 3
  for expected, line in zip(said, lines, strict=True):
    if re.match(r"[0-9]", expected):
      assert abs(float(line) - float(expected)) < 1e-5
    else:
      assert line == expected


def test_files_and_folders_of_the_map_exist():
  text = README.read_text(encoding="utf-8")
  for path in re.findall(r"`((?:kdjax|experiments|benchmarks|tests|colabs)[\w/.]*)`", text):
    root = README.parent
    assert (root / path).exists() or (root / (path.replace(".", "/") + ".py")).exists(), path


def test_its_tables_are_those_of_the_result_files():
  from benchmarks import summary
  from kdjax import report

  text = README.read_text(encoding="utf-8")
  for name, block in summary.blocks().items():
    assert report.replace_block(text, name, block) == text, f"python -m benchmarks.summary ({name})"


def test_claims_are_those_of_the_rows():
  from benchmarks import recommenders

  def rows(name, values, size):
    return [
      {"name": name, "metric": "m", "quality": {"m": {"value": v}}, "size": {"bytes": size}}
      for v in values
    ]

  found = recommenders.claims(
    rows("teacher", [0.5], 1000)
    + rows("alone", [0.4, 0.41, 0.42], 500)
    + rows("+ pruned", [0.48, 0.49, 0.5], 200)
    + rows("+ int8", [0.47, 0.48, 0.49], 100)
  )
  assert found["kept"] == pytest.approx(0.96)
  assert found["smaller"] == 10
  assert found["gain"] == pytest.approx(0.07)
  # Both samples have deviation .01, so the error of the difference is .01 sqrt(2 / 3).
  assert found["gain_in_errors"] == pytest.approx(7 * (3 / 2) ** 0.5)
  assert found["int8_cost"] == pytest.approx((1 / 48 + 1 / 49 + 1 / 50) / 3)
