"""What programs ask: edits in the shape of image APIs, masks, windows, selections, numbers."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from starlette.routing import Route

from exedit.editing import edit_files, framing
from exedit.input_pipeline.codec import png
from exedit.page import api, editor, operations, programs, select
from exedit.runtime.errors import UserError
from tests import pictures, small
from tests.page.serving import error, mask, upload

BOX = 10, 17, 27, 41
HOLE = mask(36, 50, *BOX)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return small.export(tmp_path_factory.mktemp('weights') / 'small')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The paths of a photo of 50 x 36, its mask and an exemplar."""
  return pictures.write(tmp_path_factory.mktemp('files'), 36, 50, *BOX)


def sent(files, hole=HOLE, **change):
  """The parts of an edit. Parts that are None are left out."""
  parts = {name: open(files[name], 'rb').read() for name in ('image', 'exemplar')} | change
  both = [('image[]', (f'{n}.png', data)) for n, data in parts.items() if data is not None]
  return [*both, *([('mask', ('m.png', hole))] if hole is not None else [])]


def edit(client, files, parts=None, **fields):
  return client.post('/v1/images/edits', files=parts or sent(files), data=fields)


@pytest.fixture(scope='module')
def shells(weights, files, tmp_path_factory):
  """The pixels of exedit.sample for the seeds 7 and 8."""
  output = tmp_path_factory.mktemp('shell') / 'out.png'
  say = lambda line: None
  made = edit_files.edit_once(weights, str(output), **files, seed=7, num_samples=2, say=say)
  return [np.asarray(Image.open(path)) for path in made]


def pixels(data):
  return np.asarray(Image.open(io.BytesIO(data)))


def test_the_answer_holds_the_shells_pictures_in_base64_or_as_links(server, files, shells):
  answer = edit(server(), files, n='2', seed='7', prompt='a dog', model='gpt-image-1').json()
  assert answer['size'] == '50x36' and [one['seed'] for one in answer['data']] == [7, 8]
  for one, shell in zip(answer['data'], shells):
    np.testing.assert_array_equal(pixels(base64.b64decode(one['b64_json'])), shell)
  [one] = edit(server(), files, seed='7', response_format='url').json()['data']
  anybody = server()
  np.testing.assert_array_equal(pixels(anybody.get(one['url']).content), shells[0])
  assert anybody.get(one['url'][:-1]).status_code == 404


def test_a_mask_with_an_alpha_channel_means_its_transparent_part(server, files, shells):
  hole = pixels(HOLE)
  rgba = np.full((36, 50, 4), 255, np.uint8)
  rgba[..., 3] = np.where(hole, 0, 255)
  answer = edit(server(), files, sent(files, png(rgba)), seed='7').json()
  np.testing.assert_array_equal(pixels(base64.b64decode(answer['data'][0]['b64_json'])), shells[0])
  rgba[..., 3] = 255  # an opaque one means nothing, though it is white
  told = error(edit(server(), files, sent(files, png(rgba))))['message']
  assert told.startswith('mask-0.png: the mask is empty')


@pytest.mark.parametrize(
  'change, fields, why',
  [
    (dict(hole=b'no picture'), {}, 'the mask is not an image of a kind that Pillow reads'),
    (dict(hole=None), {}, '--mask is missing'),
    (dict(hole=mask(20, 20, 1, 1, 9, 9)), {}, 'mask-0.png is 20 x 20 pixels'),
    (dict(image=b''), {}, 'is empty (0 bytes)'),
    (dict(exemplar=None), {}, 'no weights here edit a photo with a text'),
    (dict(more=png(np.zeros((9, 9, 3), np.uint8))), {}, 'small takes 2 images, and 3 were sent'),
    ({}, dict(n='17'), "n is '17': it must be from 1 to 16"),
    ({}, dict(size='1024x1024'), 'the result has the size of the photo, auto or 50x36'),
    ({}, dict(seed='-1'), "seed is '-1': it must be a whole number"),
    ({}, dict(steps='many'), "steps is 'many': it must be a whole number"),
    ({}, dict(background='transparent'), "'background' is 'transparent', which is not done here"),
    ({}, dict(response_format='webp'), "response_format is 'webp': use b64_json or url"),
  ],
)
def test_what_cannot_be_done_is_an_error_in_the_shape_of_image_apis(
  server, files, change, fields, why
):
  answer = edit(server(), files, sent(files, **change), **fields)
  assert why in error(answer)['message']
  assert answer.json()['error']['type'] == 'invalid_request_error'


def test_the_frame_is_the_window_of_the_network(server, files):
  client = server()
  picture = upload(client, open(files['image'], 'rb').read())['id']
  for zoom in ('auto', 'off'):
    asked = dict(picture=picture, settings=dict(zoom=zoom))
    parts = dict(mask=('m.png', HOLE))
    found = client.post('/api/frame', data=dict(request=json.dumps(asked)), files=parts).json()
    wanted = framing.choose(pixels(HOLE), small.SIZE, zoom)
    assert [found[n] for n in ('x0', 'y0', 'x1', 'y1')] == [
      wanted.left, wanted.top, wanted.right, wanted.bottom,
    ]  # fmt: skip
    assert (found['height'], found['width']) == wanted.size
    assert found['repainted'] == pytest.approx(pixels(HOLE).mean())


def test_any_mask_file_means_what_the_shell_says(server, files):
  client = server()
  picture = upload(client, open(files['image'], 'rb').read())['id']
  drawn = np.zeros((72, 100, 3), np.uint8)
  drawn[20:54, 34:82] = 255, 0, 0
  answer = client.post(f'/api/masks?picture={picture}', content=png(drawn))
  np.testing.assert_array_equal(pixels(answer.content), pixels(HOLE))
  assert Image.open(io.BytesIO(answer.content)).mode == '1'
  assert '(255, 0, 0) on a dark ground' in json.loads(answer.headers['x-notes'])[0]
  told = error(client.post(f'/api/masks?picture={picture}', content=png(drawn[:40])))
  assert told.startswith('mask.png is 100 x 40 pixels')


def scene():
  """A red disc on a green ground, with noise; and the disc's pixels."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:120, :160]
  disc = (x - 90) ** 2 + (y - 60) ** 2 < 30**2
  rgb = np.where(disc[..., None], (200, 40, 40), (40, 120, 60)) + rng.integers(
    -15, 15, (120, 160, 1)
  )
  return np.uint8(rgb), disc


@pytest.mark.parametrize(
  'asked', [dict(box=[50, 20, 130, 100]), dict(point=[92, 55]), dict(box=[-20, -5, 130.4, 100])]
)
def test_a_box_or_a_click_selects_the_object(server, asked):
  rgb, disc = scene()
  client = server()
  asked = asked | dict(picture=upload(client, png(rgb))['id'])
  answer = client.post('/api/select', json=asked)
  found = pixels(answer.content)
  assert (found & disc).sum() / (found | disc).sum() > 0.95


def test_a_selection_takes_what_is_surely_the_object_and_refuses_what_is_outside(server):
  rgb, disc = scene()
  rgb[:, 150:] = 250
  surely = np.zeros(disc.shape, bool)
  surely[50:70, 152:158] = True
  found = select.object_in(rgb, box=(50.0, 20.0, 160.0, 100.0), surely=surely)
  assert found[surely].all() and found[disc].mean() > 0.9
  with pytest.raises(UserError, match='point is 200, 5: it must lie in the photo of 160 x 120'):
    select.object_in(rgb, point=(200.0, 5.0))
  with pytest.raises(UserError, match='box is too small, or outside'):
    select.object_in(rgb, box=(300.0, 300.0, 400.0, 400.0))


def test_about_has_all_that_the_page_makes_its_fields_of(server):
  found = server().get('/api/about').json()
  [own] = found['weights']
  assert own['system'] == 'paint_by_example' and own['size'] == small.SIZE
  kinds = {entry['name']: entry['kind'] for entry in own['inputs']}
  assert kinds == dict(image='photo', mask='mask', exemplar='picture', exemplar_mask='cutout')
  settings = {entry['name']: entry for entry in own['settings']}
  assert settings['steps'] | dict(help='') == dict(
    name='steps', type='int', default=3, least=1, most=999, choices=[], help=''
  )
  assert settings['zoom']['choices'] == ['auto', 'off', 'context'] and 'seed' not in settings
  assert own['presets']['best'] == dict(steps=3, sampler='ddim', scale=2.0)
  assert own['presets']['quick']['sampler'] == 'dpm_solver_pp'
  assert found['limits']['regions'] == 8


def test_the_numbers_and_the_description_of_the_server(server, files):
  client = server()
  before = client.get('/metrics').text
  edit(client, files)
  after = client.get('/metrics').text
  count = lambda text: int(text.split('exedit_edit_seconds_count ')[1].split('\n')[0])
  assert count(after) == count(before) + 1 and '\nexedit_queue_length 0\n' in after
  assert client.get('/healthz').status_code == client.get('/readyz').status_code == 200
  paths = client.get('/openapi.json').json()['paths']
  told = {(method, path) for path, methods in paths.items() for method in methods}
  routes = [*api.ROUTES, *programs.ROUTES, *operations.ROUTES]
  served = {
    (method.lower(), route.path.replace(':str', '').replace(':int', ''))
    for route in routes
    if isinstance(route, Route)
    for method in (route.methods or set()) - {'HEAD'}
  }
  assert told == served


def test_weights_have_names_of_their_own(weights, tmp_path):
  found = editor.open_editors([weights, weights + '/'])
  assert [*found] == ['small', 'small-2']
  with pytest.raises(UserError):
    editor.open_editors([str(tmp_path / 'nothing')])
