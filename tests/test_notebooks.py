"""The notebooks run from top to bottom, shortened through their parameter cell alone."""

import pathlib

import nbclient
import nbformat
import pytest

COLAB = pathlib.Path(__file__).parent.parent / 'launch' / 'colab'


def shortened(path: pathlib.Path, **parameters):
  """The notebook with other values in its parameter cell."""
  notebook = nbformat.read(path, as_version=4)
  [cell] = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
  names = {line.split(' = ')[0] for line in cell.source.splitlines()}
  assert set(parameters) <= names
  cell.source += ''.join(f'\n{name} = {value!r}' for name, value in parameters.items())
  return notebook


def test_train_tiny(tmp_path, monkeypatch):
  monkeypatch.setenv('JUPYTER_DATA_DIR', str(tmp_path / 'jupyter'))
  notebook = shortened(
    COLAB / 'train_tiny.ipynb', STEPS=4, SCENES=40, EDITS=4, WORKDIR=str(tmp_path / 'run')
  )
  client = nbclient.NotebookClient(
    notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(COLAB)}}
  )
  client.execute()
  pictures = [
    output
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
    if 'image/png' in output.get('data', {})
  ]
  assert len(pictures) == 5  # the data, the losses, the edit, the benchmark, guidance
  assert (tmp_path / 'run' / 'evaluation' / 'results.json').exists()


@pytest.mark.parametrize('path', sorted(COLAB.glob('*.ipynb')), ids=lambda p: p.name)
def test_notebooks_are_stored_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert all(not cell.outputs and cell.execution_count is None for cell in code)
