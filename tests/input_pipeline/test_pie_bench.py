"""PIE-Bench's layout: what an edit is read as, and what is refused."""

import json

import numpy as np
import pytest

from exedit.input_pipeline import pie_bench
from exedit.input_pipeline.errors import DataError
from exedit.runtime import lists
from tests import bench, pie
from tests.refusals import refusal


def test_an_edit_is_read_as_its_entry_says(tmp_path):
  own = pie_bench.Bench(pie.write(tmp_path))
  assert own.ids.tolist() == [0, 111000000001, 823000000002] and len(own) == 3
  for i, (x0, y0, x1, y1) in enumerate(pie.BOXES):
    edit = own[i]
    np.testing.assert_array_equal(edit['source'], np.asarray(bench.picture(i, (40, 40))))
    expected = np.zeros((40, 40), np.uint8)
    expected[y0:y1, x0:x1] = 255
    expected[[0, -1]] = expected[:, [0, -1]] = 255
    np.testing.assert_array_equal(edit['mask'], expected)
    assert own.name(i) == pie.PATHS[i] and edit['type'] == pie.PATHS[i][0]
  first, second = own[0], own[1]
  assert (first['prompt'], first['target']) == ('photo of red ball', 'photo of blue ball')
  assert (first['words'], second['words']) == (('ball', 'ball'), ())
  assert first['instruction'] == 'Change it'


@pytest.mark.parametrize(
  'runs, inside',
  [
    ([], []),
    ([7, 2, 13, 1], [(1, 1), (1, 2), (2, 1)]),
    ([8, 7], [(1, 2), (1, 3), (1, 4), (2, 1), (2, 2)]),  # it goes on in the next row
    ([20, 1000, 99, 5], [(3, 2), (3, 3), (3, 4)]),  # what is beyond the last pixel is dropped
  ],
)
def test_runs_go_row_by_row_and_the_border_belongs_to_the_region(runs, inside):
  mask = pie_bench.decode_mask(runs, (5, 6))
  border = np.ones((5, 6), bool)
  border[1:-1, 1:-1] = False
  assert mask[border].all()
  assert [*zip(*np.nonzero(mask & ~border))] == inside


def test_a_benchmark_is_named_by_its_contents(tmp_path):
  own = pie_bench.Bench(pie.write(tmp_path / 'a'))
  found = pie.entries()
  found['000000000000']['editing_prompt'] = 'photo of ball'
  other = pie_bench.Bench(pie.write(tmp_path / 'b', found=found))
  assert own.encoded(0)['words'] != other.encoded(0)['words']
  assert own.encoded(0)['source'] == other.encoded(0)['source']
  assert own.encoded(1) == other.encoded(1)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(mask=[3]), 'mask has 1 numbers: each run is a start and a length'),
    (dict(mask=[-1, 4]), 'mask must be a list of whole numbers'),
    (dict(mask='3 4'), 'mask must be a list of whole numbers'),
    (dict(image_path='../x.jpg'), "image_path '../x.jpg' must lie below annotation_images"),
    (dict(image_path='/x.jpg'), 'must lie below annotation_images'),
    (dict(editing_prompt=' '), "editing_prompt is ' ': it must be a text"),
    (dict(editing_type_id='12'), "editing_type_id is '12': 0 to 9 exist"),
    (dict(editing_type_id=0), 'editing_type_id is 0: it must be a text'),
  ],
)
def test_an_entry_that_cannot_be_used_is_named(tmp_path, change, message):
  found = pie.entries()
  found['111000000001'] |= change
  with pytest.raises(DataError, match="edit '111000000001'") as caught:
    pie_bench.Bench(pie.write(tmp_path, found=found))
  assert message in str(caught.value)


def test_files_that_are_no_benchmark_are_refused(tmp_path):
  with pytest.raises(DataError, match='mapping_file.json is missing'):
    pie_bench.Bench(tmp_path)
  entry = json.dumps(pie.entries()['000000000000'])
  for text, message in [
    ('{', 'cannot be read'),
    ('[1, 2]', 'holds no edits by their ids'),
    ('{}', 'holds no edits'),
    ('{"a": {}}', "edit 'a': the id must be a number"),
    ('{"7": {}}', "edit '7' has no image_path"),
    (f'{{"7": {entry}, "07": {entry}}}', 'has an id twice'),
    (f'{{"7": {entry}, "7": {entry}}}', 'has an id twice'),
  ]:
    (tmp_path / pie_bench.MAPPING).write_text(text)
    with pytest.raises(DataError, match=message):
      pie_bench.Bench(tmp_path)
  own = pie_bench.Bench(pie.write(tmp_path))
  (tmp_path / pie_bench.PICTURES / pie.PATHS[2]).unlink()
  with pytest.raises(DataError, match='823000000002.png cannot be read: No such file'):
    own[2]


def test_its_edits_are_written_as_a_list(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pie.write(tmp_path / 'bench')
  flags = ['door', '--bench=bench', '--results=results', '--output=edits.csv']
  pie_bench.run(flags)
  assert capsys.readouterr().out == 'edits.csv: 3 edits\n'
  rows, base = lists.read('edits.csv', (), ())
  for (_, row), path, (_, target) in zip(rows, pie.PATHS, pie.PROMPTS, strict=True):
    assert row['image'] == str(tmp_path / 'bench' / pie_bench.PICTURES / path)
    assert row['output'] == str(tmp_path / 'results' / path) and base == ''
    assert row['target'] == target.replace('[', '').replace(']', '')
  assert 'edits.csv exists already' in refusal(capsys, pie_bench.run, flags)
  line = refusal(capsys, pie_bench.run, [*flags[:3], '--output=edits.txt'])
  assert '--output is edits.txt: it must end with .csv' in line
