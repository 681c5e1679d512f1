"""Plots of results, on figures of their own: pyplot and its global state are not touched."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from kdjax.report.rows import ResultError
from kdjax.report.table import three_digits

# Okabe and Ito (2008): told apart with every common colour blindness, and by marker in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")


def plot_quality_against_bytes(rows: Iterable[Mapping[str, Any]], path: str | pathlib.Path) -> None:
  """Quality against size on disk (MB, log scale), one labelled point a row.

  Args:
    rows: flat rows with `name`, `quality` and `bytes`; `quality_std` or `low` and `high` become
      bars. The rest is left out.
    path: where to write; the suffix (.png, .svg, .pdf) chooses the format.

  Raises:
    ResultError: if no row has both numbers.
  """
  points = [{**row, "x": row["bytes"] / 1e6} for row in rows if row.get("bytes")]
  _scatter(points, pathlib.Path(path), "size on disk, MB (log scale)")


def plot_quality_against_latency(
  rows: Iterable[Mapping[str, Any]], path: str | pathlib.Path
) -> None:
  """Quality against the median latency of one request (ms, log scale); see the plot of bytes.

  Args:
    rows: flat rows with `name`, `quality` and `latency_p50_ms`.
    path: where to write; the suffix (.png, .svg, .pdf) chooses the format.

  Raises:
    ResultError: if no row has both numbers.
  """
  points = [{**row, "x": row["latency_p50_ms"]} for row in rows if row.get("latency_p50_ms")]
  _scatter(points, pathlib.Path(path), "median latency of one request, ms (log scale)")


def plot_training_curves(
  curves: Mapping[str, Sequence[Mapping[str, float]]],
  path: str | pathlib.Path,
  *,
  loss: str = "train/loss",
  metric: str = "valid/ndcg@10",
  best_steps: Mapping[str, int] | None = None,
) -> None:
  """Training loss and validation metric against the step, one line a run.

  Args:
    curves: lines of `metrics.jsonl` by name of run; each has `step` and some of the numbers.
    path: where to write; the suffix (.png, .svg, .pdf) chooses the format.
    loss: which number goes into the upper panel.
    metric: which number goes into the lower panel.
    best_steps: by name of run, the step whose parameters were kept, marked in the lower panel;
      where it is not given, the step of the greatest value.

  Raises:
    ResultError: if no run has either number.
  """
  figure = Figure(figsize=(7, 6), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  upper, lower = figure.subplots(2, 1, sharex=True)
  drawn = 0
  for number, (name, lines) in enumerate(curves.items()):
    colour = COLOURS[number % len(COLOURS)]
    style = LINES[number // len(COLOURS) % len(LINES)]
    for axes, key in ((upper, loss), (lower, metric)):
      seen = [(line["step"], line[key]) for line in lines if key in line]
      if not seen:
        continue
      drawn += 1
      steps, values = zip(*seen, strict=True)
      axes.plot(steps, values, style, color=colour, label=name, linewidth=1.6)
      if axes is lower:
        kept = (best_steps or {}).get(name)
        if kept in steps:
          best = steps.index(kept)
        else:
          best = max(range(len(values)), key=lambda i: values[i])
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(steps[best], values[best], marker, color=colour, markersize=7)
  if not drawn:
    raise ResultError(f"no run has {loss!r} or {metric!r}; nothing to plot")
  upper.set_ylabel(loss)
  lower.set_ylabel(f"{metric} (marker: kept)")
  lower.set_xlabel("step")
  for axes in (upper, lower):
    _dress(axes)
  handles = {h.get_label(): h for a in (upper, lower) for h in a.get_legend_handles_labels()[0]}
  figure.legend(
    handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9
  )
  _save(figure, pathlib.Path(path))


def _scatter(points: list[dict[str, Any]], path: pathlib.Path, xlabel: str) -> None:
  points = [p for p in points if p.get("quality") is not None and math.isfinite(p["quality"])]
  if not points:
    raise ResultError(f"{path.name}: no row has both a quality and a value for '{xlabel}'")
  figure = Figure(figsize=(7, 4.6), dpi=150, layout="constrained")
  canvas = FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  for number, point in enumerate(points):
    axes.errorbar(
      point["x"],
      point["quality"],
      yerr=_bars(point),
      fmt=MARKERS[number % len(MARKERS)],
      color=COLOURS[number % len(COLOURS)],
      markersize=8,
      capsize=3,
      elinewidth=1.2,
    )
  axes.set_xscale("log")
  axes.set_xlabel(xlabel)
  metrics = {point.get("metric") for point in points}
  axes.set_ylabel(str(metrics.pop() or "quality") if len(metrics) == 1 else "quality")
  axes.margins(x=0.18, y=0.15)
  _plain_ticks(axes, [point["x"] for point in points])
  _dress(axes)
  canvas.draw()  # Settles the layout, so that the labels can be measured.
  figure.set_layout_engine("none")
  _annotate(axes, canvas, points)
  _save(figure, path)


def _bars(point: Mapping[str, Any]) -> list[list[float]] | None:
  if point.get("runs", 1) > 1 and "quality_std" in point:
    return [[point["quality_std"]], [point["quality_std"]]]
  if "low" in point and "high" in point:
    below, above = point["quality"] - point["low"], point["high"] - point["quality"]
    return [[max(0.0, below)], [max(0.0, above)]]
  return None


def _plain_ticks(axes: Axes, xs: Sequence[float]) -> None:
  """Numbers a person reads (0.5, 1, 2), more of them where the axis spans less than a decade."""
  spread = max(xs) / min(xs)
  subs: tuple[float, ...] = (1.0, 2.0, 5.0) if spread < 300 else (1.0,)
  if spread < 6:
    subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
  if spread == 1:
    axes.set_xlim(xs[0] / 3, xs[0] * 3)
  axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
  axes.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
  text = three_digits(value)
  return text.rstrip("0").rstrip(".") if "." in text else text


def _dress(axes: Axes) -> None:
  axes.grid(True, color="#dddddd", linewidth=0.6)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)


def _annotate(axes: Axes, canvas: FigureCanvasAgg, points: Sequence[Mapping[str, Any]]) -> None:
  """Writes each name beside its point, at the first place where it covers nothing."""
  renderer = canvas.get_renderer()
  frame = axes.get_window_extent(renderer)
  pixels = [tuple(axes.transData.transform((p["x"], p["quality"]))) for p in points]
  taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in pixels]
  for point, (x, _) in zip(points, pixels, strict=True):
    if bars := _bars(point):
      ends = (point["quality"] - bars[0][0], point["quality"] + bars[1][0])
      bottom, top = (axes.transData.transform((point["x"], end))[1] for end in ends)
      taken.append(Bbox.from_extents(x - 3, bottom, x + 3, top))
  for point, at in zip(points, pixels, strict=True):
    best, least = None, math.inf
    for dx, dy, horizontal, vertical in _places():
      text = axes.annotate(
        str(point.get("name", "")),
        (point["x"], point["quality"]),
        xytext=(dx, dy),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=9,
        color="#333333",
      )
      box = text.get_window_extent(renderer)
      covered = sum(_common_area(box, other) for other in taken)
      covered += box.width * box.height - _common_area(box, frame)
      if any(_distance(box, other) < _distance(box, at) - 1 for other in pixels):
        covered += 1  # A reader would take it for the other's name.
      if covered < least - 1e-9:
        if best is not None:
          best.remove()
        best, least = text, covered
      else:
        text.remove()
      if least <= 1e-9:
        break
    assert best is not None
    if math.hypot(*best.xyann) > 15:  # Away from its point: a thin line says whose it is.
      axes.annotate(
        "",
        (point["x"], point["quality"]),
        xytext=best.xyann,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6},
      )
    taken.append(best.get_window_extent(renderer))


def _places() -> Iterable[tuple[float, float, str, str]]:
  for distance in (9.0, 22.0, 38.0, 56.0, 76.0):
    yield distance, 0, "left", "center"
    yield -distance, 0, "right", "center"
    for up in (1, -1):
      edge = "bottom" if up > 0 else "top"
      yield distance * 0.7, up * distance * 0.7, "left", edge
      yield -distance * 0.7, up * distance * 0.7, "right", edge
      yield 0, up * distance, "center", edge


def _common_area(a: Any, b: Any) -> float:
  width = min(a.x1, b.x1) - max(a.x0, b.x0)
  height = min(a.y1, b.y1) - max(a.y0, b.y0)
  return max(0.0, width) * max(0.0, height)


def _distance(box: Any, pixel: Sequence[float]) -> float:
  x, y = pixel
  return math.hypot(max(box.x0 - x, 0.0, x - box.x1), max(box.y0 - y, 0.0, y - box.y1))


def _save(figure: Figure, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  # No date in the file: the same results give the same bytes.
  metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
  figure.savefig(path, metadata=metadata)
