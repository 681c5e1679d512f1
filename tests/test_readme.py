import contextlib
import io
import pathlib
import re

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
  assert report.replace_block(text, "speed", summary.table()) == text
  rows = report.read_results([README.parent / "benchmarks" / "results" / "demo"])
  demo = report.to_markdown(report.summarise(rows))
  assert report.replace_block(text, "demo", demo) == text
