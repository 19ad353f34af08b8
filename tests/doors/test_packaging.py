"""What pip installs is complete, has no generic names, and runs from any folder."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib

import pytest

from tests import ROOT

OURS = ('exedit', 'input_pipeline', 'configs')
KINDS = ('.py', '.html', '.js', '.css', '.svg', '.png')
BUILD = 'import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])'


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """Builds the sdist, from it the wheel, and installs that; returns the site folder."""
  tmp = tmp_path_factory.mktemp('packaging')
  checkout, built, unpacked = tmp / 'checkout', tmp / 'built', tmp / 'unpacked'
  checkout.mkdir()
  for name in OURS:  # a copy, because setuptools writes beside its sources
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
  for path in [*ROOT.glob('requirements*.txt'), *(ROOT / n for n in ('pyproject.toml', 'LICENSE'))]:
    shutil.copy(path, checkout)
  shutil.copy(ROOT / 'README.md', checkout)
  call(sys.executable, '-c', BUILD.format('build_sdist'), built, cwd=checkout)
  with tarfile.open(next(built.glob('*.tar.gz'))) as archive:
    # Python 3.11 has filters from 3.11.4 on; earlier versions have no use for the attribute.
    archive.extraction_filter = getattr(tarfile, 'data_filter', None)
    archive.extractall(unpacked)
  call(sys.executable, '-c', BUILD.format('build_wheel'), built, cwd=next(unpacked.iterdir()))
  wheel = next(built.glob('*.whl'))
  pip = ('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', tmp / 'site')
  call(sys.executable, *pip, wheel, cwd=tmp)
  return tmp / 'site'


def call(*command, cwd, site=None, status: int = 0):
  """Runs a command; with `site`, only installed packages can be imported. Returns its output."""
  env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  if site:
    env['PYTHONPATH'] = str(site)
  done = subprocess.run(
    [*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == status, done.stdout + done.stderr
  return done.stdout + done.stderr


def modules(*folders, under=ROOT):
  return {
    path.relative_to(under)
    for folder in folders
    for path in (under / folder).rglob('*')
    if path.suffix in KINDS and '__pycache__' not in path.parts
  }


def test_the_wheel_has_every_file_inside_the_package(installed):
  ours = {path for path in modules('exedit') if path.parts[1] not in OURS}
  ours |= {'exedit' / path for path in modules('input_pipeline', 'configs')}
  assert {str(path) for path in modules('exedit', under=installed)} == {*map(str, ours)}
  assert not any(path.is_symlink() for path in installed.rglob('*'))
  names = [path.name for path in installed.iterdir()]
  assert sorted(n for n in names if not n.endswith('.dist-info')) == ['bin', 'exedit']


IMPORT_ALL = """
import importlib, json, pkgutil, sys
import exedit
for module in pkgutil.walk_packages(exedit.__path__, 'exedit.'):
  if not module.name.endswith('__main__'):
    importlib.import_module(module.name)
print(json.dumps([exedit.__path__[0], *sorted({name.split('.')[0] for name in sys.modules})]))
"""


def test_every_module_imports_from_another_folder_without_generic_names(installed, tmp_path):
  said = call(sys.executable, '-c', IMPORT_ALL, cwd=tmp_path, site=installed)
  place, *imported = json.loads(said.splitlines()[-1])
  assert place == str(installed / 'exedit')
  assert not {'input_pipeline', 'configs', 'launch', 'tests'} & set(imported)


ALL_HELP = """
import os, sys
from importlib.metadata import entry_points
for command in entry_points(group='console_scripts'):
  if not command.value.startswith('exedit.'):
    continue
  sys.stdout.flush()
  if not os.fork():
    sys.argv = [command.name, '--help']
    try:
      command.load()()
    except SystemExit as end:
      assert not end.code
    sys.exit('jax' in sys.modules)
  if os.wait()[1]:
    sys.exit(f'{command.name} fails')
"""


def test_every_console_command_has_help_without_jax(installed, tmp_path):
  said = call(sys.executable, '-c', ALL_HELP, cwd=tmp_path, site=installed)
  scripts = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']
  assert said.count('Flags:') + said.count('Commands (') == len(scripts)
  assert 'python -m exedit.input_pipeline.show' in said and 'python -m input_pipeline' not in said
  assert "pip install 'exedit[plan]'" in said
  assert {*scripts} == {path.name for path in (installed / 'bin').iterdir()}


def test_a_command_finds_the_installed_config_unless_the_working_folder_has_its_own(
  installed, tmp_path
):
  train = (installed / 'bin' / 'exedit-train', '--config=configs/pbe.py:nope', '--workdir=run')
  said = call(*train, cwd=tmp_path, site=installed, status=2)
  assert said.startswith("error: configs/pbe.py has no variant 'nope'; use full, tiny, ")
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'pbe.py').write_text("def get_config(_):\n  raise ValueError('mine')\n")
  assert call(*train, cwd=tmp_path, site=installed, status=2) == 'error: mine\n'


def test_the_eight_lines_of_the_readme_run_from_another_folder(installed, tmp_path):
  [code, *_] = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
  code = re.sub(r"'((?:weights|docs)/)", rf"'{ROOT}/\1", code)
  call(sys.executable, '-c', code, cwd=tmp_path, site=installed)
  assert (tmp_path / 'out.png').exists()


def test_what_is_required_is_imported_and_what_is_imported_is_required():
  distributions = importlib.metadata.packages_distributions()
  imported = {
    normal(distribution)
    for path in modules(*OURS)
    if path.suffix == '.py'
    for name in imports(ROOT / path)
    if name not in (*OURS, *sys.stdlib_module_names)
    for distribution in distributions.get(name, [name])[:1]
  }
  page = required('requirements-demo.txt') | {'anyio', 'h11'}  # of Starlette and of uvicorn
  optional = {'libtpu', 'gcsfs', 'scikit-learn', *page}
  assert imported - optional == required('requirements.txt')


def test_the_plan_takes_the_versions_of_jax_that_the_package_takes():
  lists = [(ROOT / f'requirements{name}.txt').read_text() for name in ('', '-plan')]
  package, plan = (re.findall(r'^jax(?:\[tpu\])?([<>=].*)', text, re.M) for text in lists)
  assert package == plan and len(plan) == 1


def test_the_beam_program_imports_only_what_its_own_requirements_name():
  code = 'import json, sys, launch.prepare_open_images; print(json.dumps([*sys.modules]))'
  names = json.loads(call(sys.executable, '-c', code, cwd=ROOT))
  distributions = importlib.metadata.packages_distributions()
  imported = {'protobuf'} if 'google.protobuf' in names else set()
  for name in {name.split('.')[0] for name in names} - {'google'}:
    imported |= {normal(distribution) for distribution in distributions.get(name, [])}
  assert imported - {'setuptools'} <= required('requirements-prepare.txt')


def required(name):
  """The distributions that a requirements file names."""
  text = re.sub(r'#.*', '', (ROOT / name).read_text())
  return {normal(re.split(r'[\[<>=]', line)[0]) for line in text.split()}


def imports(path):
  """The top-level names that a module imports, also inside functions."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
      names = [node.module]
    for name in names:  # several distributions share the namespace `google`
      yield 'protobuf' if name.startswith('google.protobuf') else name.split('.')[0]


def normal(name):
  return re.sub(r'[-_.]+', '-', name).lower()
