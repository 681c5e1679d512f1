"""The plots hold what they should, labels do not overlap, and pyplot stays untouched."""

import subprocess
import sys

import pytest
from matplotlib import image
from matplotlib.figure import Figure

from kdjax import report
from kdjax.report import plots

ROWS = [
  {"name": name, "quality": quality, "bytes": size, "latency_p50_ms": ms, "metric": "ndcg@10"}
  | {"low": quality - 0.005, "high": quality + 0.006}
  for name, quality, size, ms in [
    ("teacher", 0.182, 4.2e6, 2.1),
    ("same student alone", 0.165, 5.2e5, 0.61),
    ("distilled", 0.178, 5.2e5, 0.60),
    ("+ pruned", 0.177, 3.9e5, 0.52),
    ("+ int8", 0.1765, 1.1e5, 0.50),
  ]
]
CURVES = {
  name: [
    {"step": step, "train/loss": 8 - step / 50, "valid/ndcg@10": 0.1 + gain * step / 100}
    for step in range(0, 100, 10)
  ]
  for name, gain in [("teacher", 0.08), ("student", 0.05)]
}


@pytest.fixture
def figures(monkeypatch):
  """The figures that were saved."""
  seen = []
  save = Figure.savefig

  def spy(figure, *args, **kwargs):
    seen.append(figure)
    return save(figure, *args, **kwargs)

  monkeypatch.setattr(Figure, "savefig", spy)
  return seen


scatters = pytest.mark.parametrize(
  ("plot", "key", "unit"),
  [
    (report.plot_quality_against_bytes, "bytes", 1e6),
    (report.plot_quality_against_latency, "latency_p50_ms", 1),
  ],
)


@scatters
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_scatter_shows_every_row_with_its_name(plot, key, unit, suffix, tmp_path, figures):
  path = tmp_path / "new folder" / f"plot{suffix}"
  plot([*ROWS, {"name": "unmeasured", "quality": 0.5}], path)
  (axes,) = figures[0].axes
  assert axes.get_xscale() == "log"
  assert axes.get_ylabel() == "ndcg@10"
  assert sorted(t.get_text() for t in axes.texts if t.get_text()) == sorted(
    row["name"] for row in ROWS
  )
  points = {(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axes.containers}
  assert points == {(row[key] / unit, row["quality"]) for row in ROWS}
  if suffix == ".png":
    pixels = image.imread(path)
    assert pixels.shape[:2] == (690, 1050)
    assert pixels[..., :3].min() < 0.2
  else:
    assert path.read_text(encoding="utf-8").count("<svg") == 1


@scatters
def test_labels_cover_neither_each_other_nor_leave_the_frame(plot, key, unit, tmp_path, figures):
  plot(ROWS, tmp_path / "plot.png")
  (axes,) = figures[0].axes
  renderer = figures[0].canvas.get_renderer()
  boxes = [t.get_window_extent(renderer) for t in axes.texts if t.get_text()]
  frame = axes.get_window_extent(renderer)
  for number, box in enumerate(boxes):
    assert plots._common_area(box, frame) == pytest.approx(box.width * box.height)
    for other in boxes[number + 1 :]:
      assert plots._common_area(box, other) == 0


def test_one_row_and_equal_rows_can_be_drawn(tmp_path):
  report.plot_quality_against_bytes(ROWS[:1], tmp_path / "one.png")
  report.plot_quality_against_bytes([ROWS[0]] * 5, tmp_path / "equal.png")
  assert (tmp_path / "equal.png").stat().st_size > 0


def test_deviation_over_seeds_becomes_the_bar(tmp_path, figures):
  row = {**ROWS[0], "runs": 3, "quality_std": 0.002}
  report.plot_quality_against_bytes([row], tmp_path / "plot.png")
  (segment,) = figures[0].axes[0].containers[0].lines[2][0].get_segments()
  assert segment[:, 1] == pytest.approx([0.18, 0.184])


def test_training_curves_draw_each_run_and_mark_its_best(tmp_path, figures):
  report.plot_training_curves(CURVES, tmp_path / "curves.png")
  upper, lower = figures[0].axes
  assert [line.get_label() for line in upper.lines] == ["teacher", "student"]
  assert list(upper.lines[0].get_ydata()) == [8 - step / 50 for step in range(0, 100, 10)]
  best = [line for line in lower.lines if len(line.get_xdata()) == 1]
  assert [line.get_xdata()[0] for line in best] == [90, 90]
  assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["teacher", "student"]


def test_training_curves_mark_the_step_that_was_kept(tmp_path, figures):
  report.plot_training_curves(CURVES, tmp_path / "curves.png", best_steps={"student": 50})
  lower = figures[0].axes[1]
  marked = [line for line in lower.lines if len(line.get_xdata()) == 1]
  assert [line.get_xdata()[0] for line in marked] == [90, 50]


def test_nothing_to_plot_is_an_error(tmp_path):
  with pytest.raises(report.ResultError, match="no row has both a quality and"):
    report.plot_quality_against_bytes([{"name": "a"}], tmp_path / "plot.png")
  with pytest.raises(report.ResultError, match="no run has 'train/loss' or 'valid/mrr'"):
    report.plot_training_curves({"a": [{"step": 1}]}, tmp_path / "plot.png", metric="valid/mrr")


def test_same_rows_give_the_same_bytes(tmp_path):
  for name in ("a", "b"):
    report.plot_quality_against_bytes(ROWS, tmp_path / f"{name}.png")
  assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pyplot_is_not_loaded():
  code = "import sys, kdjax.report; assert 'matplotlib.pyplot' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
