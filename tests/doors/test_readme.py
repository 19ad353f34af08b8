"""What the README shows works as it stands there, with the weights that ship."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from exedit import evaluate
from tests import ROOT


def test_the_eight_lines(tmp_path, monkeypatch):
  [code, *_] = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
  monkeypatch.chdir(ROOT)
  exec(code.replace("'out.png'", repr(str(tmp_path / 'out.png'))), {})
  pixels = lambda path: np.asarray(Image.open(path))
  result = pixels(tmp_path / 'out.png')
  source, mask = (pixels(ROOT / 'docs/example' / f'{name}.png') for name in ('image', 'mask'))
  np.testing.assert_array_equal(result[mask == 0], source[mask == 0])
  assert np.any(result[mask > 0] != source[mask > 0])


def test_the_shipped_weights_are_small_and_say_where_they_come_from():
  folder = ROOT / 'weights' / 'tiny'
  assert (folder / 'model.safetensors').stat().st_size <= 8e6
  config = json.loads((folder / 'config.json').read_text())
  assert {'seed', 'steps', 'model', 'data', 'exported'} <= set(config)
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[-1])['step'] == config['exported']['step'] == config['steps']


def test_the_shipped_weights_show_the_exemplar(tmp_path):
  results = evaluate.evaluate(str(ROOT / 'weights' / 'tiny'), str(tmp_path), edits=64, seed=5)
  assert results['own']['identification'] >= 0.4
  assert results['shuffled']['identification'] <= 0.25
  assert results['own']['untouched'] == 64


@pytest.mark.parametrize('name', re.findall(r'\]\(([^)#:]+)\)', (ROOT / 'README.md').read_text()))
def test_every_file_that_the_readme_links_is_there(name):
  assert (ROOT / name).exists()
