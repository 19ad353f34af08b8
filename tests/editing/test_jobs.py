import dataclasses
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from exedit.editing import jobs
from exedit.editing.settings import LARGEST_SEED
from exedit.paint_by_example import SYSTEM
from exedit.runtime.errors import UserError
from tests import pictures

OWN = SYSTEM.settings(steps=20, scale=3.0, sampler='ddim')
FILES = ('image', 'mask', 'exemplar', 'exemplar_mask')
ROW = dict(image='a.png', mask='m.png', exemplar='e.png')


@pytest.fixture
def folder(tmp_path):
  """Pictures a.png and tall.png with masks of their sizes, and an exemplar with its own."""
  rng = np.random.default_rng(0)
  for name, size in (('a', (32, 40)), ('tall', (60, 20)), ('e', (9, 20))):
    Image.fromarray(pictures.noise(rng, *size)).save(tmp_path / f'{name}.png')
  for name, size in (('m', (32, 40)), ('hole', (60, 20)), ('subject', (9, 20))):
    Image.fromarray(pictures.box(*size, 3, 4, 7, 16)).save(tmp_path / f'{name}.png')
  Image.new('L', (40, 32)).save(tmp_path / 'black.png')
  return tmp_path


def jsonl(folder, *rows):
  path = folder / 'list.jsonl'
  path.write_text('\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows))
  return str(path)


def csv(folder, text):
  path = folder / 'list.csv'
  path.write_text(text)
  return str(path)


def only_fault(path, output='out'):
  found, faults = jobs.read(path, output, SYSTEM, OWN, most_steps=499)
  [fault] = faults
  assert '\n' not in str(fault)
  return str(fault), found


# reading


def test_a_jsonl_list_with_paths_in_its_folder_and_settings_of_its_own(folder):
  row = ROW | dict(exemplar_mask='subject.png', seed=7, steps=50, scale=2, paste=False, zoom='off')
  path = jsonl(folder, ROW, '', row | dict(output='deep/b.webp'))
  found, faults = jobs.read(path, 'out', SYSTEM, OWN)
  assert not faults and [edit.where for edit in found] == ['line 1', 'line 3']
  first, second = found
  assert first.settings == OWN and first.output == os.path.join('out', 'a.png')
  assert first.inputs == {name: str(folder / path) for name, path in ROW.items()}
  assert second.output == os.path.join('out', 'deep/b.webp')
  assert second.inputs['exemplar_mask'] == str(folder / 'subject.png')
  changed = dict(seed=7, steps=50, scale=2.0, paste=False, zoom='off')
  assert second.settings == dataclasses.replace(OWN, **changed)


def test_a_line_ends_at_a_line_feed_alone(folder):
  path = folder / 'list.jsonl'
  row = ROW | dict(output='a\u2028b\x85.png')
  path.write_text(json.dumps(row, ensure_ascii=False) + '\r\n', encoding='utf-8')
  found, faults = jobs.read(str(path), 'out', SYSTEM, OWN)
  assert not faults and [edit.output for edit in found] == [os.path.join('out', row['output'])]


def test_a_csv_list_says_the_same(folder):
  text = '\ufeffimage, mask,exemplar,output,seed,paste,scale\r\n'
  text += 'a.png,m.png,e.png,"b, c.png",7,false,\r\n\r\na.png,m.png,e.png,,,,2.5\r\n'
  found, faults = jobs.read(csv(folder, text), 'out', SYSTEM, OWN)
  assert not faults and [edit.where for edit in found] == ['line 2', 'line 4']
  assert found[0].output == os.path.join('out', 'b, c.png')
  assert found[0].settings == dataclasses.replace(OWN, seed=7, paste=False)
  assert found[1].settings == dataclasses.replace(OWN, scale=2.5)
  assert found[1].output == os.path.join('out', 'a.png')


HEAD, CELLS = 'image,mask,exemplar,seed,scale,paste', 'a.png,m.png,e.png,7,2.5,no'
TABLES = dict(
  semicolons=f'{HEAD}\n{CELLS}\n'.replace(',', ';'),
  tabs=f'{HEAD}\n{CELLS}\n'.replace(',', '\t'),
  said=f'sep=;\n{HEAD}\n{CELLS}\n'.replace(',', ';'),
  crlf=f'\ufeff{HEAD}\r\n{CELLS}\r\n',
  utf16=f'{HEAD}\r\n{CELLS}\r\n'.replace(',', '\t'),
  old_mac=f'{HEAD}\r{CELLS}\r',
  quoted=f'{HEAD}\na.png, "m.png", "e.png", "7", "2.5" ,"no" \n',
  empty_ends=f'\n{HEAD},,\n{CELLS},,\n{CELLS},,,,\n,,,,,,,,\n  \n\n',
  index=f',{HEAD}\n0,{CELLS}\n',
  two_indexes=f',Unnamed: 0,{HEAD}\n4,9,{CELLS}\n',
  index_of_floats=f',{HEAD}\n0.0,{CELLS}\n1.0,{CELLS}\n',
  floats=f'{HEAD}\na.png,m.png,e.png,7.0,2.5,0.0\n',
  nan=f'{HEAD},steps,zoom,output\n{CELLS},NaN,nan,<NA>\n',
  words=f'{HEAD},steps,zoom,sampler\n{CELLS},None,n/a,null\n',
)


@pytest.mark.parametrize('kind', TABLES)
def test_a_table_is_read_as_spreadsheets_and_pandas_write_it(folder, kind):
  path = folder / ('list.tsv' if kind == 'tabs' else 'list.csv')
  path.write_bytes(TABLES[kind].encode('utf-16' if kind == 'utf16' else 'utf-8'))
  found, faults = jobs.read(str(path), 'out', SYSTEM, OWN)
  assert not faults
  for edit in found:
    assert edit.inputs == {name: str(folder / path) for name, path in ROW.items()}
    assert edit.settings == dataclasses.replace(OWN, seed=7, scale=2.5, paste=False)
    assert edit.output == os.path.join('out', 'a.png')


def test_words_for_nothing_are_texts_where_they_may_be_meant(folder):
  table = 'image,mask,exemplar,match,output\nnull,None,n/a,none,none\n'
  [edit], faults = jobs.read(csv(folder, table), 'out', SYSTEM, OWN)
  assert not faults and edit.settings == dataclasses.replace(OWN, match='none')
  names = dict(image='null', mask='None', exemplar='n/a')
  assert edit.inputs == {name: str(folder / path) for name, path in names.items()}
  assert edit.output == os.path.join('out', 'none.png')


def test_rows_of_pandas_as_json(folder):
  row = ROW | {'Unnamed: 0': 3, 'seed': 7.0, 'paste': 0, 'scale': None, 'steps': float('nan')}
  found, faults = jobs.read(jsonl(folder, row), 'out', SYSTEM, OWN)
  assert not faults
  assert found[0].settings == dataclasses.replace(OWN, seed=7, paste=False)


def test_without_an_output_folder_outputs_lie_beside_the_list(folder):
  path = jsonl(folder, ROW | dict(output='b'), ROW)
  found, [fault] = jobs.read(path, None, SYSTEM, OWN)
  assert found[0].output == str(folder / 'b.png')
  assert '--output' in fault.why


def test_a_folder_is_matched_by_stem(folder):
  for name in FILES:
    (folder / name).mkdir()
  for stem in ('one', 'two'):
    Image.open(folder / 'a.png').convert('RGB').save(folder / 'image' / f'{stem}.jpg')
    Image.open(folder / 'm.png').save(folder / 'mask' / f'{stem}.png')
    Image.open(folder / 'e.png').save(folder / 'exemplar' / f'{stem}.webp')
  Image.open(folder / 'subject.png').save(folder / 'exemplar_mask' / 'two.png')
  (folder / 'image' / '.DS_Store').write_text('')
  (folder / 'mask' / 'three.png').write_text('')
  found, faults = jobs.read(str(folder), 'out', SYSTEM, OWN)
  assert [edit.output for edit in found] == [
    os.path.join('out', f'{s}.png') for s in ('one', 'two')
  ]
  assert set(found[0].inputs) == set(FILES[:3])
  assert found[1].inputs['exemplar_mask'] == str(folder / 'exemplar_mask' / 'two.png')
  assert found[1].inputs['mask'] == str(folder / 'mask' / 'two.png')
  assert [str(f) for f in faults] == [
    f'three: {folder}/mask/three.png has no partner image/three.*'
  ]
  (folder / 'mask' / 'one.jpg').write_text('')
  (folder / 'mask' / 'three.png').unlink()
  assert 'have one name' in only_fault(str(folder))[0]


@pytest.mark.parametrize(
  'row, says',
  [
    ('{"image": ', 'line 2: is not JSON'),
    ('[1]', 'must be an object'),
    (ROW | dict(exmplar='e.png'), "'exmplar' is not a column: did you mean 'exemplar'"),
    (ROW | dict(output=3), 'output is 3: it must be a path'),
    (ROW | dict(image='a/' * 3000), "image is 'a/a/"),
    (ROW | dict(mask='\ud800.png'), 'mask is'),
    (ROW | dict(output='..'), '.. is a folder'),
    (ROW | dict(image=''), 'its image is empty'),
    (dict(image='a.png'), 'it has no mask'),
    (ROW | dict(seed='many'), "seed is 'many': it must be a whole number"),
    (ROW | dict(seed=2.5), 'seed is 2.5'),
    (ROW | dict(seed='2.5'), "seed is '2.5': it must be a whole number"),
    (ROW | dict(scale='2,5'), "scale is '2,5': it must be a number, with a point"),
    (ROW | dict(paste=2), 'paste is 2: it must be true or false'),
    (ROW | dict(seed=True), 'seed is True'),
    (ROW | dict(seed=-1), 'between 0 and'),
    (ROW | dict(steps=500), 'steps is 500: it must be between 1 and 499'),
    (ROW | dict(scale='nan'), 'scale is nan'),
    (ROW | dict(scale=10**400), 'scale is 1000'),
    (ROW | dict(sampler='euler'), 'use one of plms'),
    (ROW | dict(sampler=1), 'it must be a word'),
    (ROW | dict(paste='perhaps'), 'true or false'),
    (ROW | dict(spacing='even'), 'use one of leading, ldm'),
    (ROW | dict(spacing='ldm', steps=300), "steps=300 with spacing 'ldm' would start at t=500"),
    (ROW | dict(spacing='ldm', sampler='dpm_solver_pp'), 'dpm_solver_pp has timesteps of its own'),
    (ROW | dict(guidance_interval='0.8,0.2'), "'0.8,0.2': the first share must be less than"),
    (ROW | dict(guidance_interval=[0.5, 1.5]), 'both shares must be between 0'),
    (ROW | dict(guidance_interval='0.5'), 'it must be two shares LOW,HIGH'),
    (ROW | dict(output='b.gif'), '.gif is not one of'),
    ('[' * 100000, 'is not JSON'),
  ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(folder, row, says):
  fault, found = only_fault(jsonl(folder, ROW, row, ROW))
  assert fault.startswith('line 2: ') and says in fault and len(fault) < 400
  assert [edit.where for edit in found] == ['line 1', 'line 3']


@pytest.mark.parametrize(
  'text, says',
  [
    ('', 'line 1: it has no image'),
    ('image,mask\na,b\n', 'it has no exemplar: an edit needs image, mask, exemplar'),
    ('image,mask,exemplar,sede\n', "'sede' is not a column: did you mean 'seed'"),
    ('image,mask,exemplar,mask\n', 'mask appears twice'),
    ('image,mask,exemplar\n', 'lists no edit'),
    ('image,mask,exemplar\n"a\n', 'is not CSV'),
  ],
)
def test_a_csv_that_cannot_be_read(folder, text, says):
  with pytest.raises(UserError, match=says):
    jobs.read(csv(folder, text), 'out', SYSTEM, OWN)


@pytest.mark.parametrize(
  'text, says',
  [
    ('image,mask,exemplar\na,b,c,d\n', 'line 2: it has 4 cells and the first line 3'),
    ('image,mask,exemplar,scale\na,b,c,2,5\n', '5 cells and the first line 4: .* a decimal takes'),
    ('image,mask,exemplar,\na,b,c,d\n', "its column 4 has no name and holds 'd'"),
    ('image,mask,exemplar,\na,b,c,7\n', "its column 4 has no name and holds '7'"),
    (',image,mask,exemplar\nx,a,b,c\n', "its column 1 has no name and holds 'x'"),
    ('image;mask;exemplar;scale\na;b;c;2,5\n', "scale is '2,5': .* with a point"),
    ('image,mask,exemplar\nnan,b,c\n', 'its image is empty'),
  ],
)
def test_a_csv_line_with_cells_that_do_not_fit(folder, text, says):
  assert re.search(says, only_fault(csv(folder, text))[0])


def test_what_is_no_list(folder):
  (folder / 'latin.csv').write_bytes(b'image,mask,exemplar\n\xe9,b,c\n')
  (folder / 'wide.csv').write_bytes('image,mask,exemplar\na,b,c\n'.encode('utf-16-le'))
  (folder / 'empty.jsonl').write_text('')
  for name, says in (
    ('none.csv', 'does not exist'),
    ('a.png', 'is no list'),
    ('latin.csv', 'UTF-8'),
    ('wide.csv', 'zero bytes'),
    ('empty.jsonl', 'lists no edit'),
    ('', 'has no folder image/'),
  ):
    with pytest.raises(UserError, match=says):
      jobs.read(str(folder / name), 'out', SYSTEM, OWN)


def test_a_list_that_is_a_pipe_is_not_waited_for(folder):
  os.mkfifo(folder / 'list.csv')
  with pytest.raises(UserError, match='list.csv is a pipe or device'):
    jobs.read(str(folder / 'list.csv'), 'out', SYSTEM, OWN)


# samples


def test_samples_count_their_seeds_and_names_up():
  one = jobs.Edit({}, 'out/a.webp', dataclasses.replace(OWN, seed=5), where='line 2')
  assert jobs.samples([one], 1) == [one]
  three = jobs.samples([one], 3)
  assert [edit.output for edit in three] == ['out/a-0.webp', 'out/a-1.webp', 'out/a-2.webp']
  assert [edit.settings.seed for edit in three] == [5, 6, 7]
  assert {edit.where for edit in three} == {'line 2'}
  late = dataclasses.replace(one, settings=dataclasses.replace(OWN, seed=LARGEST_SEED))
  with pytest.raises(UserError, match='no room for 2 samples'):
    jobs.samples([late], 2)


# checking the files


def planned(folder, own=OWN, **changes):
  paths = {name: str(folder / path) for name, path in (ROW | changes).items()}
  return jobs.check(jobs.Edit(paths, 'out.png', own), SYSTEM, trained=16)


def test_a_plan_knows_the_window_and_what_to_tell(folder):
  job = planned(folder)
  assert (job.frame.height, job.frame.width, job.frame.size) == (32, 40, (16, 20))
  assert job.notes == () and job.pixels == 32 * 40 + 9 * 20
  job = planned(folder, image='tall.png', mask='hole.png', exemplar_mask='subject.png')
  assert job.frame.size == (48, 16)
  Image.new('L', (40, 32), 255).save(folder / 'm.png')
  assert 'white everywhere' in planned(folder).notes[0]


def test_a_plan_says_how_masks_were_understood_and_the_share_that_is_repainted(folder):
  assert planned(folder).understood == () and planned(folder).repainted == 48 / 1280
  hole, subject = pictures.box(32, 40, 3, 4, 7, 16), pictures.box(9, 20, 3, 4, 7, 16)
  for name, photo, opaque in (('cut', 'a', ~hole), ('subject', 'e', subject)):
    pixels = np.dstack([Image.open(folder / f'{photo}.png'), np.where(opaque, 255, 0)])
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{name}.png')
  job = planned(folder, mask='cut.png', exemplar_mask='subject.png')
  assert job.repainted == 48 / 1280
  assert ['that part' in line for line in job.understood] == [True, False]
  assert job.understood[1].endswith('the visible part is meant')
  Image.fromarray(~hole).save(folder / 'm.png')
  [line] = planned(folder).understood
  assert 'more than half of the photo' in line


def test_a_mask_of_the_photos_shape_is_scaled_when_it_is_asked_for(folder):
  Image.fromarray(pictures.box(64, 80, 6, 8, 14, 32)).save(folder / 'large.png')
  with pytest.raises(UserError, match='large.png is 80 x 64 .* 40 x 32: .*--scale_mask'):
    planned(folder, mask='large.png')
  scaled = planned(folder, dataclasses.replace(OWN, scale_mask=True), mask='large.png')
  plain = planned(folder)
  assert (scaled.frame, scaled.repainted) == (plain.frame, plain.repainted)


@pytest.mark.parametrize(
  'changes, says',
  [
    (dict(mask='a.png'), 'a.png is no mask'),
    (dict(exemplar_mask='e.png'), 'e.png is no mask'),
    (dict(image='none.png'), 'none.png does not exist'),
    (dict(mask='hole.png'), 'hole.png is 20 x 60 pixels .* image is 40 x 32'),
    (dict(mask='black.png'), 'black.png: the mask is empty'),
    (dict(exemplar='.'), 'is a folder'),
    (dict(exemplar_mask='m.png'), 'm.png is 40 x 32 pixels .* the exemplar is 20 x 9'),
    (dict(image='text.png'), 'not an image'),
  ],
)
def test_files_that_do_not_fit(folder, changes, says):
  (folder / 'text.png').write_text('no picture')
  with pytest.raises(UserError, match=says):
    planned(folder, **changes)


def test_a_window_that_is_too_long_names_the_photo(folder):
  for name in ('a.png', 'm.png'):
    Image.open(folder / name).resize((100, 16)).save(folder / name)
  Image.new('L', (100, 16), 255).save(folder / 'm.png')
  with pytest.raises(UserError, match='a.png: .*100 x 16'):
    planned(folder)


def test_all_faults_are_found_and_told_in_order(folder):
  rows = [ROW | dict(mask='hole.png'), ROW, ROW | dict(image='none.png')] * 4
  found, none = jobs.read(jsonl(folder, *rows), 'out', SYSTEM, OWN)
  seen = []
  good, faults = jobs.check_all(found, SYSTEM, 16, lambda: seen.append(1))
  assert not none and len(good) == 4 and len(faults) == 8 and len(seen) == 12
  with pytest.raises(UserError) as caught:
    jobs.refuse(faults[::-1], 'list', 12, 'Mend them')
  line = str(caught.value)
  assert line.startswith('list: 8 of 12 edits cannot be made: line 1: ')
  assert line.index('line 3') < line.index('line 4') < line.index('and 5 more. Mend them')
  jobs.refuse([], 'list', 12, 'Mend them')


# outputs


def clashes(folder, *outputs, also=(), recipes=True):
  rows = [ROW | dict(output=output) for output in outputs]
  found, none = jobs.read(jsonl(folder, *rows), str(folder), SYSTEM, OWN)
  assert not none
  return [str(fault) for fault in jobs.clashes(found, SYSTEM, also, recipes)]


def test_outputs_must_differ_from_each_other_and_from_all_inputs(folder):
  assert clashes(folder, 'b.png', 'c.png', 'new/deeper/c.png') == []
  assert 'line 2: ' in clashes(folder, 'b.png', 'b.png')[0]
  assert clashes(folder, 'b.png', 'b.webp', recipes=False) == []
  assert f'{folder}/b.json is written by line 1 too' in clashes(folder, 'b.png', 'b.webp')[0]
  assert 'also an input' in clashes(folder, 'm.png')[0]
  os.symlink(folder / 'e.png', folder / 'link.png')
  assert 'also an input' in clashes(folder, 'link.png')[0]
  assert 'also an input' in clashes(folder, 'b.png', also=[str(folder / 'b.json')])[0]


def test_an_output_below_a_file_is_refused(folder):
  assert 'cannot be written to' in clashes(folder, 'a.png/b.png')[0]
