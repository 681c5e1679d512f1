"""Every public signature of kdjax speaks the grammar of the house."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import types as python_types

import jax.numpy as jnp
import pytest

import kdjax

FOLDERS = sorted(m.name for m in pkgutil.iter_modules(kdjax.__path__) if m.ispkg)
MODULES = sorted(m.name for m in pkgutil.iter_modules(kdjax.__path__) if not m.ispkg)
FORBIDDEN = {"mask", "kind", "rng", "alpha", "beta", "gamma", "lam", "lamda", "training", "train"}
ROOT = pathlib.Path(__file__).resolve().parents[1]


def load(name):
  return importlib.import_module(f"kdjax.{name}")


def public(name):
  """(qualified name, object) of everything a folder lists, or a module defines without _."""
  module = load(name)
  names = getattr(module, "__all__", None)
  if names is None:
    names = [
      key
      for key, value in vars(module).items()
      if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
  return [(f"{name}.{key}", getattr(module, key)) for key in names]


EVERYTHING = [pair for name in FOLDERS + MODULES for pair in public(name)]
FUNCTIONS = [(name, value) for name, value in EVERYTHING if inspect.isfunction(value)]
CLASSES = [(name, value) for name, value in EVERYTHING if inspect.isclass(value)]


def over(pairs):
  return pytest.mark.parametrize(("name", "value"), pairs, ids=[name for name, _ in pairs])


def named(folder, suffix):
  return [
    (name, value)
    for name, value in FUNCTIONS
    if name.startswith(f"{folder}.") and name.endswith(suffix)
  ]


def split(function):
  """(positional, keyword-only) parameters of a signature, by name."""
  parameters = inspect.signature(function).parameters.values()
  keyword = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
  return {p.name: p for p in parameters if p.name not in keyword}, keyword


def test_there_is_something_to_read():
  folders = {path.parent.name for path in (ROOT / "kdjax").glob("*/*.py")}
  assert folders == set(FOLDERS), "a folder without __init__.py would not be packaged"
  assert set(MODULES) >= {"types", "tree", "reduce"}
  assert named("losses", "_loss")
  assert named("metrics", "_metric")


@pytest.mark.parametrize("folder", FOLDERS)
def test_init_lists_its_public_names_and_does_nothing_else(folder):
  module = load(folder)
  listed = module.__all__
  assert list(listed) == sorted(listed, key=_ruff_order), "keep __all__ sorted"
  assert len(set(listed)) == len(listed)
  present = {
    key
    for key, value in vars(module).items()
    if not key.startswith("_") and not isinstance(value, python_types.ModuleType)
  }
  assert present - set(listed) == set(), "imported but not in __all__"
  assert module.__doc__


def _ruff_order(name):
  """Constants, then classes, then the rest."""
  return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@over(EVERYTHING)
def test_public_things_are_documented(name, value):
  if inspect.isfunction(value) or inspect.isclass(value):
    text = inspect.getdoc(value) or ""
    first = text.splitlines()[0] if text else ""
    assert len(first) > 10, f"{name} has no docstring"
    assert not first.startswith(f"{value.__name__}("), f"{name}: not a NamedTuple's own docstring"


@over(FUNCTIONS)
def test_names_follow_the_vocabulary(name, value):
  positional, keyword = split(value)
  wrong = FORBIDDEN & {*positional, *keyword}
  assert not wrong, f"{name}: {sorted(wrong)} is not a word of the house"


@over(FUNCTIONS)
def test_no_booleans_or_defaults_of_mutable_type_hide_in_positions(name, value):
  for parameter in inspect.signature(value).parameters.values():
    assert not isinstance(parameter.default, list | dict | set), f"{name}: {parameter}"
    if parameter.kind is not parameter.KEYWORD_ONLY:
      assert not isinstance(parameter.default, bool), f"{name}: make {parameter.name} keyword-only"


GRAMMATICAL = named("losses", "_loss") + named("metrics", "_metric")


@over(GRAMMATICAL)
def test_where_and_reduce_fn_come_last_with_their_defaults(name, value):
  _, keyword = split(value)
  assert list(keyword)[-2:] == ["where", "reduce_fn"], name
  assert keyword["where"].default is None
  assert keyword["reduce_fn"].default is jnp.mean


@over(GRAMMATICAL)
def test_every_parameter_has_a_type(name, value):
  for parameter in inspect.signature(value).parameters.values():
    assert parameter.annotation is not parameter.empty, f"{name}: {parameter.name} has no type"


@over(GRAMMATICAL)
def test_options_are_keyword_only_with_defaults(name, value):
  positional, keyword = split(value)
  for parameter in positional.values():
    assert parameter.default is parameter.empty, f"{name}: {parameter.name} is an option: after *"
  for parameter in keyword.values():
    assert parameter.default is not parameter.empty, f"{name}: {parameter.name} needs a default"


@over(named("losses", "_loss"))
def test_loss_arguments_stand_in_the_order_of_the_grammar(name, value):
  positional = list(split(value)[0])
  students = [n for n in positional if n == "student" or n.startswith("student_")]
  teachers = [n for n in positional if n == "teacher" or n.startswith("teacher_")]
  rest = [n for n in positional if n not in students + teachers]
  assert positional == students + teachers + rest, f"{name}: student, teacher, then labels"
  if teachers:
    assert students, f"{name}: a teacher without a student"
    assert positional[0] in students
    assert positional[len(students)] in teachers
  assert "labels" not in positional[:1], f"{name}: labels come after what they judge"


@over(named("losses", "_loss"))
def test_a_loss_documents_itself(name, value):
  _check_sections(name, value, ["Args:", "Returns:", "Raises:", "Example:", "Reference:"])
  assert "$$" in value.__doc__, f"{name}: print the formula"
  assert ">>> " in value.__doc__


@over(named("metrics", "_metric"))
def test_a_metric_documents_itself(name, value):
  _check_sections(name, value, ["Args:", "Returns:", "Example:"])
  assert ">>> " in value.__doc__


@over(GRAMMATICAL)
def test_every_argument_is_explained(name, value):
  args = value.__doc__.split("Args:")[1].split("Returns:")[0]
  for parameter in inspect.signature(value).parameters:
    assert f"{parameter}:" in args or f"{parameter}," in args, f"{name}: explain {parameter}"


@pytest.mark.parametrize("folder", ["losses", "metrics"])
def test_public_functions_of_losses_and_metrics_end_as_they_should(folder):
  """A function that takes `reduce_fn` is a loss or a metric, and says so in its name."""
  suffix = {"losses": "_loss", "metrics": "_metric"}[folder]
  for name, value in FUNCTIONS:
    if name.startswith(f"{folder}.") and "reduce_fn" in inspect.signature(value).parameters:
      assert name.endswith(suffix), name


def _check_sections(name, value, sections):
  text = inspect.getdoc(value)
  places = [text.find(f"\n{section}") for section in sections]
  missing = [s for s, place in zip(sections, places, strict=True) if place < 0]
  assert not missing, f"{name}: no {missing}"
  assert places == sorted(places), f"{name}: sections out of order, expected {sections}"


def test_source_files_stay_short():
  """Near 200 lines of code and comment; docstrings may be as long as they are useful."""
  for path in sorted((ROOT / "kdjax").rglob("*.py")):
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines()) - sum(map(_docstring_lines, ast.walk(ast.parse(text))))
    assert lines <= 300, f"{path.relative_to(ROOT)} has {lines} lines without docstrings: split it"


def _docstring_lines(node):
  if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
    return 0
  text = ast.get_docstring(node, clean=False)
  return len(text.splitlines()) if text else 0
