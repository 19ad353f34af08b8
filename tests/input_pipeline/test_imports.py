"""The data pipeline knows no network: it imports neither jax nor exedit, except exedit.runtime."""

import ast

import pytest

from tests import ROOT

FILES = sorted((ROOT / 'input_pipeline').rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_only_the_runtime_is_imported(path):
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and not node.level:
      found.add(node.module)
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  assert not [n for n in found if n.split('.')[0] in ('jax', 'flax', 'torch', 'launch')]
  ours = [n for n in found if n.split('.')[0] == 'exedit']
  assert all(n.startswith('exedit.runtime') for n in ours)
