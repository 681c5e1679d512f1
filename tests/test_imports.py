"""Who may import whom: the map of the house, read from the imports themselves.

Add a module here when you add one to `kdjax/`; the test below says so if you forget.
"""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASE = {"types", "tree", "reduce", "order", "traced", "reconstruct", "mesh_table"}
TOOLS = {"losses", "metrics", "prune", "quant"}  # These four never import each other.
# Models declare how they are pruned and quantized.
MODELS = BASE | {"prune", "quant", "layers", "rows", "composed"}
RUNNERS = BASE | TOOLS | {"rows", "layers", "models", "data", "cost", "store"}

# Unit of kdjax -> the other units it may import. `__init__` of the package is empty of imports.
MAY_IMPORT: dict[str, set[str]] = {
  "__init__": set(),
  "types": set(),
  "tree": {"types"},
  "reduce": {"types"},
  "order": {"types"},
  "reconstruct": {"types"},
  "rows": {"types", "tree"},
  "mesh_table": {"types"},
  "traced": {"types", "tree"},  # Programs and their axes, for whatever looks into a function.
  **dict.fromkeys(TOOLS, BASE),
  "data": BASE,
  "report": BASE,
  "flags": BASE,
  "cost": BASE,
  "collectives": set(),
  "scaling": set(),
  "store": BASE | {"quant"},
  "layers": BASE | {"quant", "rows"},
  "composed": BASE | {"quant", "layers"},
  "lora": BASE | {"quant"},
  "models": MODELS,
  "train": RUNNERS,
  "serve": RUNNERS,
  "export": RUNNERS | {"serve"},
}


def units():
  return sorted(p for p in (ROOT / "kdjax").iterdir() if p.suffix == ".py" or _has_code(p))


def _has_code(path):
  return path.is_dir() and any(path.glob("*.py"))


def files_of(folder):
  return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def imported(path):
  """Every absolute name imported anywhere in a file, lazily or not: `a.b` for `from a import b`."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}, line {node.lineno}: imports are absolute in this house"
      assert node.module, f"{path}, line {node.lineno}"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def kdjax_units(path):
  """Which units of kdjax a file imports."""
  parts = [name.split(".") for name in imported(path)]
  return {part[1] if len(part) > 1 else "__init__" for part in parts if part[0] == "kdjax"}


@pytest.mark.parametrize("unit", units(), ids=lambda path: path.stem)
def test_a_unit_imports_only_what_it_may(unit):
  assert unit.stem in MAY_IMPORT, (
    f"say in {pathlib.Path(__file__).name} what {unit.stem} may import"
  )
  allowed = MAY_IMPORT[unit.stem] | {unit.stem}
  for path in [unit] if unit.is_file() else files_of(unit):
    wrong = kdjax_units(path) - allowed
    assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


def test_the_map_forbids_cycles():
  done: set[str] = set()
  while rest := set(MAY_IMPORT) - done:
    ready = {unit for unit in rest if MAY_IMPORT[unit] <= done | {unit}}
    assert ready, f"a cycle among {sorted(rest)}"
    done |= ready


def test_the_library_imports_no_experiment():
  for path in files_of("kdjax"):
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & {"experiments", "benchmarks", "colabs", "tests"}, path.relative_to(ROOT)


@pytest.mark.parametrize("folder", ["experiments", "benchmarks"])
def test_scripts_import_each_other_in_no_cycle(folder):
  """Each can be run as `python -m`, whichever comes first."""
  needs = {
    f"{folder}.{path.stem}": {name for name in imported(path) if name.startswith(f"{folder}.")}
    for path in files_of(folder)
  }
  done: set[str] = set()
  while rest := set(needs) - done:
    # `from a.b import c` names a.b.c: the module is its longest prefix that is a file.
    ready = {
      name
      for name in rest
      if not any(need == m or need.startswith(f"{m}.") for need in needs[name] for m in rest)
    }
    assert ready, f"a cycle among {sorted(rest)}"
    done |= ready


def test_experiments_import_no_benchmark():
  for path in files_of("experiments"):
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & {"benchmarks", "colabs", "tests"}, path.relative_to(ROOT)


def test_absl_flags_live_at_the_edge():
  for path in files_of("kdjax"):
    uses = {name for name in imported(path) if name.split(".")[0] == "absl"}
    assert not uses or path.name == "flags.py", path.relative_to(ROOT)


def test_base_install_needs_no_extra():
  """No file of kdjax imports at its top level a package that only tests or extras install."""
  extra = {"torch", "rax", "ranx", "sklearn", "hypothesis", "pytest", "transformers"}
  for path in files_of("kdjax"):
    assert not {name.split(".")[0] for name in imported(path)} & extra, path.relative_to(ROOT)


def test_third_party_imports_are_declared():
  """What kdjax imports at the top of a file is in the base requirements of setup.py."""
  with_jax = {"jaxlib", "ml_dtypes"}
  declared = {_import_name(req) for req in _base_requirements()} | {"kdjax"} | with_jax
  for path in files_of("kdjax"):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
      if isinstance(node, ast.Import):
        names |= {alias.name.split(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module:
        names.add(node.module.split(".")[0])
    missing = names - declared - set(sys.stdlib_module_names)
    assert not missing, f"{path.relative_to(ROOT)} imports {sorted(missing)}, not in setup.py"


def _base_requirements():
  for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "BASE":
      return ast.literal_eval(node.value)
  raise AssertionError("setup.py defines no BASE")


def _import_name(requirement):
  name = requirement.split(">")[0].split("=")[0].strip()
  named = {"absl-py": "absl", "orbax-checkpoint": "orbax", "grain": "grain"}
  return named.get(name, name.replace("-", "_"))
