"""What `benchmarks.accelerators` reads in compiled programs, and does where nothing compiles."""

import pytest

from benchmarks import accelerators

PROGRAM = """
%body (p: f32[8]) -> f32[8] {
  %a = f32[8] add(%p, %p), backend_config={"estimated_cycles":"7"}
}

%condition (p: s32[]) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %b = f32[8] multiply(%x, %x), backend_config={"estimated_cycles":"10"}
  %w = f32[8] while(%b), condition=%condition, body=%body
}
"""


def test_cycles_count_loops():
  assert accelerators.cycles(PROGRAM) == 10 + 5 * 7


def test_loops_of_unknown_length_are_refused():
  with pytest.raises(ValueError, match="does not say how often body runs"):
    accelerators.cycles(PROGRAM.replace("constant(5)", "parameter(0)"))


def test_a_chip_without_compiler_is_named_and_nothing_is_written(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(accelerators, "missing", lambda chip: list(chip.packages))
  accelerators.run(tmp_path / "accelerators")
  assert "TPU v5e: pip install libtpu" in capsys.readouterr().out
  assert not list(tmp_path.iterdir())
