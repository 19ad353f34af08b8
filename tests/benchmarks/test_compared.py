"""The comparison of several systems on one benchmark: its rows, and the table of the pastes."""

import json

import pytest

from benchmarks import compared
from exedit.runtime.errors import UserError
from launch import ablation
from tests import small
from tests.refusals import refusal


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp('drawn')
  ablation.write_bench(str(folder), edits=3, seed=0, version=2)
  return folder


def config(drawn, cache):
  return dict(data=dict(root=str(drawn / 'bench')), features={}, reference={}, cache=str(cache))


def test_a_drawn_benchmark_of_version_2_has_a_prompt_for_each_edit(drawn):
  first, *rows = (drawn / 'prompts.csv').read_text().splitlines()
  assert first == 'id,prompt' and [row.split(',')[0] for row in rows] == ['0', '1', '2']
  assert all(row.split(',')[1].startswith('a') for row in rows)


def test_only_systems_with_texts_get_prompts_and_only_blending_a_strength():
  given = dict(data=dict(root='b'), prompts='p.csv', prompt='{category}', mask_resize='nearest')
  given |= dict(clip_scale=200.0, views=4)
  rows = dict(compared.evaluations(given, ours='w', text='sd', image='b', inpainting='in'))
  assert [*rows] == ['ours', 'inpainting', 'text', 'image', *compared.PASTES]
  assert 'prompts' not in rows['image'] and 'clip_scale' not in rows['text']
  assert (rows['image']['clip_scale'], rows['image']['views']) == (200, 4)
  assert 'prompts' not in rows['ours'] and rows['ours']['mask_resize'] == 'nearest'
  assert rows['text']['prompts'] == rows['inpainting']['prompts'] == 'p.csv'
  assert (
    rows['text']['strength'] == rows['image']['strength'] == 1
    and 'strength' not in rows['inpainting']
  )
  given |= dict(strength=0)
  assert dict(compared.evaluations(given, text='sd'))['text']['strength'] == 0
  assert rows['source']['pictures'] == 'source' and 'weights' not in rows['source']


def test_the_table_has_the_scores_against_the_truths(drawn, tmp_path):
  table = compared.compare(str(tmp_path), config(drawn, tmp_path / 'c'), say=lambda line: None)
  assert [*table] == [*compared.PASTES]
  assert json.loads((tmp_path / 'table.json').read_text()) == table
  for cells in table.values():
    assert cells['identification'].endswith(']') and float(cells['psnr_in_hole']) > 0
  assert table['source']['psnr_in_hole'] != table['copy_paste']['psnr_in_hole']


def test_all_weights_are_checked_before_the_first_row(drawn, tmp_path):
  given = config(drawn, tmp_path / 'c') | dict(prompts=str(drawn / 'prompts.csv'))
  ours, missing = small.export(tmp_path / 'ours'), str(tmp_path / 'no')
  for rows, says in (
    (dict(ours=ours, text=missing), 'no does not exist'),
    (dict(ours=ours, text=ours), 'paint_by_example has no such setting|takes no text'),
  ):
    with pytest.raises(UserError, match=says):
      compared.compare(str(tmp_path / 'out'), given, say=pytest.fail, **rows)
  assert not (tmp_path / 'out').exists()


def test_texts_need_prompts(capsys):
  flags = ['--config=configs/coco_ee.py', '--output=out', '--text=sd']
  assert '--config.prompts: a list' in refusal(capsys, compared.run, ['compared', *flags])
