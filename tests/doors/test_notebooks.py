"""Both notebooks run from top to bottom, with smaller values in their cell of parameters."""

import pathlib
import re

import nbclient
import nbformat
import numpy as np
import pytest

from exedit import images
from exedit.editing import edit_files
from tests import ROOT

COLAB = ROOT / 'launch' / 'colab'


def shortened(path: pathlib.Path, **parameters):
  """The notebook with other values in its cell of parameters."""
  notebook = nbformat.read(path, as_version=4)
  [cell] = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
  names = {line.split(' = ')[0] for line in cell.source.splitlines()}
  assert set(parameters) <= names
  cell.source += ''.join(f'\n{name} = {value!r}' for name, value in parameters.items())
  return notebook


def outputs(notebook):
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  return [output for cell in code for output in cell.outputs]


def pictures(notebook):
  return [output for output in outputs(notebook) if 'image/png' in output.get('data', {})]


def said(notebook):
  return ''.join(output.get('text', '') for output in outputs(notebook))


def run(notebook, tmp_path, monkeypatch):
  """Runs every cell in a kernel of its own."""
  monkeypatch.setenv('JUPYTER_DATA_DIR', str(tmp_path / 'jupyter'))
  resources = {'metadata': {'path': str(COLAB)}}
  nbclient.NotebookClient(
    notebook, timeout=600, kernel_name='python3', resources=resources
  ).execute()
  return notebook


def test_train_tiny(tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  few = dict(STEPS=4, SCENES=40, EDITS=4, WORKDIR=str(workdir))
  notebook = run(shortened(COLAB / 'train_tiny.ipynb', **few), tmp_path, monkeypatch)
  assert len(pictures(notebook)) == 5  # the data, the losses, the edit, the benchmark, guidance
  assert (workdir / 'evaluation' / 'results.json').exists()


def test_edit(tmp_path, monkeypatch):
  output = str(tmp_path / 'edited.png')
  few = dict(STEPS=4, SCALES=[1.0, 3.0], SEEDS=[0, 1], OUTPUT=output)
  notebook = run(shortened(COLAB / 'edit.ipynb', **few), tmp_path, monkeypatch)
  assert len(pictures(notebook)) == 6  # inputs, result, noise, guesses, decoded, the sweep
  [line] = re.findall(r'largest difference of a pixel: (\S+)', said(notebook))
  assert float(line) < 1e-3
  paths = {name: str(ROOT / f'docs/example/{name}.png') for name in ('image', 'mask', 'exemplar')}
  weights, door = str(ROOT / 'weights/tiny'), str(tmp_path / 'door.png')
  door = edit_files.edit_once(weights, door, **paths, steps=4)
  np.testing.assert_array_equal(images.read(output), images.read(door[0]))


def test_the_first_part_of_the_edit_notebook_has_six_cells():
  notebook = nbformat.read(COLAB / 'edit.ipynb', as_version=4)
  kinds = [cell.cell_type for cell in notebook.cells]
  assert kinds[1:8] == ['code'] * 6 + ['markdown']


@pytest.mark.parametrize('path', sorted(COLAB.glob('*.ipynb')), ids=lambda p: p.name)
def test_notebooks_are_stored_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert all(not cell.outputs and cell.execution_count is None for cell in code)
