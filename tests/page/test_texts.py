"""Jobs of the text system on the page: the shell's bytes, a target, the words' maps."""

import io

import numpy as np
import pytest
from PIL import Image

from exedit import stable_diffusion
from exedit.editing import edit_files
from tests import pictures, small, small_text
from tests.page.serving import error, finished, mask, order, upload

HOLE = mask(16, 16, 4, 4, 12, 12)


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with small.loaded_once():
    yield


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return small_text.export(tmp_path_factory.mktemp('weights'), stable_diffusion.SYSTEM)


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
  return pictures.write(tmp_path_factory.mktemp('files'), 16, 16, 4, 4, 12, 12)['image']


def same_as_the_shell(server, client, weights, job, done, **inputs):
  [candidate] = done['candidates']
  folder = server.page.queue.any(done['id']).folder
  output = str(folder / 'shell.png')
  texts = {n: v for n, v in job.items() if n in ('prompt', 'target', 'negative_prompt')}
  paths = {name: str(folder / path.format(done['id'])) for name, path in inputs.items()}
  given = paths | texts | job.get('settings', {})
  edit_files.edit_once(weights, output, **given, seed=job['seeds'][0], say=lambda line: None)
  made = client.get(f'/api/results/{candidate["result"]}').content
  return made == open(output, 'rb').read()


def test_a_text_alone_makes_a_picture(server, weights):
  client = server()
  job = dict(prompt='a cat', negative_prompt='dog', seeds=[3])
  done = finished(client, job)
  assert (done['state'], done['picture'], done['width']) == ('done', None, 16)
  assert same_as_the_shell(server, client, weights, job, done)


def test_a_photo_changes_to_its_target_and_keeps_its_inversion(server, weights, photo):
  client = server()
  picture = upload(client, open(photo, 'rb').read())['id']
  job = dict(
    picture=picture, prompt='a cat', target='a dog', seeds=[3], settings=dict(show_words=True)
  )
  done = finished(client, job)
  assert done['state'] == 'done', done
  name = done['candidates'][0]['result']
  words = client.get(f'/api/results/{name}/words')
  assert np.asarray(Image.open(io.BytesIO(words.content))).ndim == 3
  folder = server.page.queue.any(done['id']).folder
  [kept] = folder.glob('inversion-*.npz')
  assert same_as_the_shell(server, client, weights, job, done, image='photo.png')
  again = finished(client, job | dict(settings={}))
  assert [*folder.glob('inversion-*.npz')] == [kept]
  result = again['candidates'][0]['result']
  pixels = lambda name: np.asarray(
    Image.open(io.BytesIO(client.get(f'/api/results/{name}').content))
  )
  np.testing.assert_array_equal(pixels(result), pixels(name))
  assert client.get(f'/api/results/{result}/words').status_code == 404


@pytest.mark.parametrize(
  'change, why',
  [
    (dict(prompt=None), '--prompt is missing'),
    (dict(prompt=3), 'prompt is 3: it must be a text'),
    (dict(target='a dog'), 'target'),
    (dict(regions=[dict(mask='hole')]), 'mask is given without a photo'),
    (dict(settings=dict(strength=2)), 'strength is 2.0: it must be between'),
  ],
)
def test_a_wrong_text_job_is_refused_with_the_shells_sentence(server, change, why):
  answer = order(server(), dict(prompt='a cat', seeds=[1]) | change, hole=HOLE)
  assert why in error(answer)
