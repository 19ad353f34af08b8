"""Jobs of the page: the shell's bytes, several regions, progress, cancelling, restarts."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from exedit.editing import edit_files, replay
from exedit.input_pipeline.codec import png
from exedit.page import editor, ranking
from exedit.runtime import decode
from tests import pictures, small
from tests.page.serving import error, events, finished, mask, order, serving, upload

BOX = 10, 17, 27, 41
HOLE, OTHER = mask(36, 50, *BOX), mask(36, 50, 2, 2, 9, 12)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return small.export(tmp_path_factory.mktemp('weights') / 'small')


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with small.loaded_once():
    yield


@pytest.fixture(scope='module')
def client(server):
  return server()


@pytest.fixture
def files(tmp_path):
  """The paths of a photo of 50 x 36 and an exemplar."""
  return pictures.write(tmp_path, 36, 50, *BOX)


@pytest.fixture
def job(client, files):
  """A job of one region with an exemplar, whose mask is the part `hole`."""
  photo, exemplar = (
    upload(client, open(files[name], 'rb').read())['id'] for name in ('image', 'exemplar')
  )
  return dict(
    picture=photo, regions=[dict(mask='hole', exemplar=dict(picture=exemplar))], seeds=[3]
  )


def shell(server, weights, result, seed=3, **inputs):
  """The bytes that exedit.sample writes with the files of a result; inputs: other files."""
  path = server.page.queue.any(result[:32]).result(int(result[33:]))
  recipe = json.loads(path.with_suffix('.json').read_text())
  given = {name: str(path.parent / entry['path']) for name, entry in recipe['inputs'].items()}
  output = str(path.with_name('shell.png'))
  edit_files.edit_once(weights, output, **(given | inputs), seed=seed, say=lambda line: None)
  return open(output, 'rb').read()


def test_a_result_is_the_shells_file_byte_by_byte_and_its_recipe_replays(
  server, client, weights, job, files, tmp_path
):
  done = finished(client, job | dict(seeds=[3, 4]), hole=HOLE)
  assert done['state'] == 'done' and [c['seed'] for c in done['candidates']] == [3, 4]
  for candidate in done['candidates']:
    made = client.get(f'/api/results/{candidate["result"]}').content
    assert made == shell(server, weights, candidate['result'], candidate['seed'])
  recipe = client.get(f'/api/results/{candidate["result"]}/recipe')
  (tmp_path / 'out.png').write_bytes(made)
  (tmp_path / 'out.json').write_bytes(recipe.content)
  (tmp_path / 'hole.png').write_bytes(HOLE)
  said = []
  given = dict(image=files['image'], exemplar=files['exemplar'], mask=str(tmp_path / 'hole.png'))
  replay.replay(str(tmp_path / 'out.png'), weights=weights, say=said.append, **given)
  assert said[-1].endswith('identical to the recorded pixels')


def test_outside_of_all_regions_the_photo_keeps_its_bytes_and_inside_each_has_changed(
  server, client, weights, job
):
  job['regions'].append(job['regions'][0] | dict(mask='other'))
  done = finished(client, job, hole=HOLE, other=OTHER)
  name = done['candidates'][0]['result']
  made = np.asarray(Image.open(io.BytesIO(client.get(f'/api/results/{name}').content)))
  source = np.asarray(
    Image.open(io.BytesIO(client.get(f'/api/pictures/{job["picture"]}/file').content))
  )
  holes = [np.asarray(Image.open(io.BytesIO(m))) for m in (HOLE, OTHER)]
  np.testing.assert_array_equal(made[~(holes[0] | holes[1])], source[~(holes[0] | holes[1])])
  assert all((made[hole] != source[hole]).any() for hole in holes)
  assert client.get(f'/api/results/{name}').content == shell(server, weights, name)
  assert client.get(f'/api/jobs/{done["id"]}/masks/1').content == OTHER


def test_an_exemplar_may_be_a_part_of_the_photo_with_its_own_mask(server, client, weights, job):
  cut = mask(36, 50, 5, 5, 20, 20)
  exemplar = dict(picture=job['picture'], box=[4, 3, 24, 23], mask='cut')
  job['regions'][0]['exemplar'] = exemplar
  done = finished(client, job, hole=HOLE, cut=cut)
  name = done['candidates'][0]['result']
  assert client.get(f'/api/results/{name}').content == shell(server, weights, name)
  folder = server.page.queue.any(done['id']).folder
  crop = np.asarray(Image.open(folder / f'{done["id"]}-exemplar-0.png'))
  photo = decode.upright(str(folder / 'photo.png'), 'RGB', 'white')
  np.testing.assert_array_equal(crop, np.asarray(photo)[3:23, 4:24])
  seen = np.asarray(Image.open(io.BytesIO(client.get(f'/api/jobs/{done["id"]}/cuts/0').content)))
  assert seen.sum() == 15 * 15 and seen[2:17, 1:16].all()
  assert done['request'] == job


def test_the_events_tell_each_step_and_each_candidate_and_go_on_where_a_client_was(client, job):
  name = order(client, job | dict(seeds=[5, 6]), hole=HOLE).json()['id']
  told = events(client, name)
  kinds = [kind for kind, _ in told]
  assert kinds[-1] == 'done' and kinds.count('candidate') == 2
  assert {kind for kind in kinds[:-1]} <= {'waiting', 'running', 'candidate'}
  again = events(client, name, **{'Last-Event-ID': '1'})
  assert [(kind, data.get('candidate')) for kind, data in again] == [
    ('candidate', 1),
    ('done', None),
  ]
  assert client.get('/api/jobs').json()['jobs'][0]['id'] == name


def test_a_result_is_the_next_source(client, job):
  name = finished(client, job, hole=HOLE)['candidates'][0]['result']
  picture = client.post('/api/pictures', json=dict(from_result=name)).json()
  assert picture['from_result'] == name and picture['width'] == 50
  file = client.get(f'/api/pictures/{picture["id"]}/file').content
  assert file == client.get(f'/api/results/{name}').content
  assert finished(client, job | dict(picture=picture['id']), hole=HOLE)['state'] == 'done'


class Gate:
  """Stops the worker at a step until `open` is called."""

  def __init__(self, monkeypatch, at):
    import threading

    self.reached, self.go, self.at, self.steps = threading.Event(), threading.Event(), at, 0
    look = editor._look
    monkeypatch.setattr(editor, '_look', lambda *given: self.step() or look(*given))

  def step(self):
    self.steps += 1
    if self.steps == self.at:
      self.reached.set()
      assert self.go.wait(60)


def test_a_job_can_be_cancelled_while_it_waits_and_between_two_steps(client, job, monkeypatch):
  gate = Gate(monkeypatch, at=1)
  first, second = (order(client, job | dict(seeds=[7, 8]), hole=HOLE).json() for _ in range(2))
  assert gate.reached.wait(60)
  assert first['position'] == 0 and second['position'] == 1
  running = client.get(f'/api/jobs/{first["id"]}').json()
  assert running['state'] == 'running' and running['progress']['steps'] == 3
  assert client.delete(f'/api/jobs/{second["id"]}').status_code == 204
  assert events(client, second['id']) == [('cancelled', {})]
  client.delete(f'/api/jobs/{first["id"]}')
  gate.go.set()
  assert events(client, first['id'])[-1] == ('cancelled', {})
  assert gate.steps <= 2  # the second candidate has not begun
  assert finished(client, job, hole=HOLE)['state'] == 'done'  # the worker lives


def test_a_preview_shows_the_window_while_it_is_computed(client, job, monkeypatch):
  gate = Gate(monkeypatch, at=2)
  name = order(client, job, hole=HOLE).json()['id']
  assert gate.reached.wait(60)
  answer = client.get(client.get(f'/api/jobs/{name}').json()['progress']['preview'])
  gate.go.set()
  x0, y0, x1, y1 = map(int, answer.headers['X-Frame'].split(','))
  assert 0 <= x0 < 17 and 41 < x1 <= 50 and 0 <= y0 < 10 and 27 < y1 <= 36
  shown = np.asarray(Image.open(io.BytesIO(answer.content)))
  assert shown.shape[2] == 3 and shown.std() > 1
  events(client, name)
  assert client.get(f'/api/jobs/{name}/preview').status_code == 404


def test_a_restarted_server_goes_on_and_has_lost_nothing(weights, files, tmp_path, monkeypatch):
  gate, folder = Gate(monkeypatch, at=3), tmp_path / 'data'
  with serving(weights, folder) as server:
    client = server()
    photo, exemplar = (
      upload(client, open(files[name], 'rb').read())['id'] for name in ('image', 'exemplar')
    )
    job = dict(picture=photo, regions=[dict(mask='hole', exemplar=dict(picture=exemplar))])
    first, second = (order(client, job | dict(seeds=[1, 2]), hole=HOLE).json()['id'] for _ in '12')
    assert gate.reached.wait(60)  # in the second candidate
    one = client.get(f'/api/jobs/{first}').json()['candidates'][0]['result']
    made = client.get(f'/api/results/{one}').content
    server.page.queue.close()
    gate.go.set()
    cookies = dict(client.cookies)
  with serving(weights, folder) as server:
    client = server(cookies=cookies)
    assert client.get(f'/api/results/{one}').content == made
    for name in (first, second):
      assert events(client, name)[-1][0] == 'done'
    assert [job['id'] for job in client.get('/api/jobs').json()['jobs']] == [second, first]
    again = client.get(f'/api/jobs/{second}').json()['candidates'][0]['result']
    assert client.get(f'/api/results/{again}').content[:8] == made[:8]
  shutil.rmtree(folder)


def test_a_job_that_takes_too_long_or_meets_a_full_disk_fails_in_words(
  server, client, job, monkeypatch
):
  done = finished(client, job, hole=HOLE)['candidates'][0]['result']
  monkeypatch.setattr(server.page.worker, 'seconds', 0.0)
  failed = finished(client, job, hole=HOLE)
  assert failed['state'] == 'failed' and 'took longer than the 0 seconds' in failed['error']
  monkeypatch.setattr(server.page.worker, 'seconds', 60.0)

  def full(*_, **__):
    raise OSError(28, 'No space left on device', '/secret/place.png')

  monkeypatch.setattr('exedit.images.files.write_all', full)
  assert 'no space left on the disk' in finished(client, job, hole=HOLE)['error']
  monkeypatch.undo()
  assert client.get(f'/api/results/{done}').status_code == 200
  assert finished(client, job, hole=HOLE)['state'] == 'done'


@pytest.mark.parametrize(
  'change, why',
  [
    (dict(weights='other'), "weights is 'other': use one of small"),
    (dict(seeds=[]), 'seeds must be a list of 1 to 16 whole numbers'),
    (dict(seeds=[-1]), 'seed is -1: it must be between 0 and 2147483647'),
    (dict(settings=dict(steps=0)), 'steps is 0: it must be between 1 and '),
    (dict(settings=dict(stepps=3)), 'stepps is not a setting of paint_by_example'),
    (dict(preset='fast'), "preset is 'fast': use one of quick, best"),
    (dict(regions=[{}]), '--mask is missing'),
    (dict(regions=[dict(mask='nothing')]), "there is no part 'nothing' with a mask"),
    (dict(regions=[dict(mask='empty', exemplar='self')]), 'the mask is empty'),
    (dict(regions=[dict(mask='small', exemplar='self')]), 'mask-0.png is 20 x 20 pixels'),
    (dict(regions=[dict(mask='jpeg', exemplar='self')]), "the part 'jpeg' is no PNG file"),
    (dict(regions=[dict(mask='hole', exemplar=dict(picture='../..'))]), 'there is no picture'),
    (dict(regions='all'), 'regions must be a list of 1 to 8 objects'),
    (dict(hack=1), "'hack' is not part of a job"),
  ],
)
def test_a_wrong_job_is_refused_with_the_shells_sentence_and_leaves_no_file(
  server, client, job, change, why
):
  for region in change.get('regions', []):
    if isinstance(region, dict) and region.get('exemplar') == 'self':
      region['exemplar'] = job['regions'][0]['exemplar']
  masks = dict(hole=HOLE, empty=png(np.zeros((36, 50), bool)), small=mask(20, 20, 2, 2, 9, 9))
  answer = order(client, job | change, **masks, jpeg=b'\xff\xd8\xff')
  told = error(answer, 404 if 'no picture' in why else 400)
  assert why in told and str(server.page.store.folder) not in told
  [folder] = server.page.store.sessions.glob(f'*/{job["picture"]}')
  assert sorted(path.name for path in folder.iterdir()) == ['photo.png', 'picture.json']


def test_with_a_network_that_sees_candidates_have_a_score(server, client, job, monkeypatch):
  class Mean(ranking.Ranking):
    def __init__(self):
      self.network = lambda pictures: np.stack([p.mean((0, 1)) for p in pictures])

  monkeypatch.setattr(server.page.worker, 'ranking', Mean())
  monkeypatch.setattr(editor, 'PROGRAMS', 0)  # all compiled ones are forgotten before
  done = finished(client, job, hole=HOLE)
  [candidate] = done['candidates']
  made = np.asarray(
    Image.open(io.BytesIO(client.get(f'/api/results/{candidate["result"]}').content))
  )
  region = made[10:27, 17:41].mean((0, 1))
  exemplar = np.asarray(
    Image.open(server.page.queue.any(done['id']).folder / f'{done["id"]}-exemplar-0.png')
  ).mean((0, 1))
  cosine = region @ exemplar / np.linalg.norm(region) / np.linalg.norm(exemplar)
  assert candidate['score'] == pytest.approx(cosine, abs=1e-5)
  assert client.get('/api/about').json()['ranking'] == 'clip_i'
