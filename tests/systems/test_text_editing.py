"""Edits of photos from one text to another: what is exact, and what the sample door says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from exedit import latent_diffusion, stable_diffusion, systems, text_editing
from exedit.diffusion import prompt_edits
from exedit.editing import framing, photo, prompts
from exedit.models import parameters
from exedit.weights import find
from tests.refusals import refusal
from tests.small_text import export
from tests.systems.test_third_system import open_sample_door

STEPS, SCALE = 3, 2.0
LARGER = ('to_q.kernel', 'attn1.to_v.kernel')


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return export(tmp_path_factory.mktemp('sd'), stable_diffusion.SYSTEM)


@pytest.fixture(scope='module')
def loaded(weights):
  found = find.weights(weights)
  graph, params = parameters.flatten(systems.load(found))
  # Random weights are so small that all maps would be nearly uniform, and no edit would show.
  params = {n: 30 * a if n.endswith(LARGER) else a for n, a in params.items()}
  return parameters.merge(graph, params), stable_diffusion.tokenizer(found)


def photos(count=2, seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.uniform(-1, 1, (count, 8, 32, 3)), jnp.float32)


def tables(spell, *pairs, **how):
  """The tables of edits [(prompt, target), ...]."""
  settings = stable_diffusion.SYSTEM.settings(**dict(steps=STEPS) | how)
  given = [dict(prompt=a, target=b, image='photo.png') for a, b in pairs]
  rows = [prompts.together(one, settings, spell)[0] for one in given]
  stacked = {n.removeprefix(prompts.PREFIX): jnp.stack([r[n] for r in rows]) for n in rows[0]}
  return text_editing.Tables(**stacked)


def spelt(spell, *texts):
  return jnp.stack([spell(text) for text in texts])


def taking_nothing(edits):
  """These tables without anything of the source; the whole photo may change."""
  none = 0 * edits.words
  free = dict(mix=0 * edits.mix, own=jnp.ones_like(edits.own), hold=jnp.zeros_like(edits.hold))
  return dataclasses.replace(edits, words=none, new_words=none, **free)


def placed(known, spots):
  """The inversion with the map of each token of `spots` at its latent alone; others are nowhere."""
  maps = np.zeros(known.seen.shape, np.float32)
  for token, (y, x) in spots.items():
    maps[:, y, x, token] = 1
  return dataclasses.replace(known, seen=jnp.asarray(maps))


PAIRS = ('a red ball', 'a blue ball'), ('photo of a star', 'photo of a red ball')


@pytest.fixture(scope='module')
def inverted(loaded):
  model, spell = loaded
  tokens = spelt(spell, *(a for a, _ in PAIRS))
  return text_editing.invert(model, photos(), tokens, steps=STEPS)


def changed(loaded, inverted, pairs=PAIRS, mask=None, edits=None, **how):
  """The change by these tables, for which `how` is, or by those that the settings `how` make."""
  model, spell = loaded
  given = (spelt(spell, *texts) for texts in zip(*pairs))
  edits, how = (tables(spell, *pairs, **how), {}) if edits is None else (edits, how)
  return text_editing.change(model, inverted, *given, edits, mask=mask, scale=SCALE, **how)


def test_an_edit_that_takes_nothing_is_guided_ddim_and_one_without_a_mask_the_source(
  loaded, inverted
):
  model, spell = loaded
  made, region = changed(loaded, inverted, edits=taking_nothing(tables(spell, *PAIRS)))
  assert region.all()
  expected = stable_diffusion.generate(
    model, spelt(spell, *(b for _, b in PAIRS)), key=jax.random.key(0), size=(8, 32),
    steps=STEPS, scale=SCALE, sampler='ddim', noise=inverted.path[:, 0],
  )  # fmt: skip
  np.testing.assert_allclose(made, expected, atol=2e-5 * float(jnp.abs(expected).max()))
  pixels = lambda a: np.clip(np.round(np.asarray(a) * 127.5 + 127.5), 0, 255)
  nothing = jnp.zeros((2, 2, 8, 1))
  made, region = changed(loaded, inverted, mask=nothing)
  np.testing.assert_array_equal(pixels(made), pixels(photos()))
  assert not region.any()
  left = nothing.at[0, :, :2].set(1)  # a mask of one photo; the other has none of it
  made, _ = changed(loaded, inverted, mask=left)
  np.testing.assert_array_equal(pixels(made)[0, :, 8:], pixels(photos())[0, :, 8:])
  np.testing.assert_array_equal(pixels(made)[1], pixels(photos())[1])
  assert (pixels(made)[0, :, :8] != pixels(photos())[0, :, :8]).any()


def test_rows_do_not_depend_on_their_neighbours_and_nothing_compiles_again(loaded, inverted):
  model, spell = loaded
  made, region = changed(loaded, inverted)
  other = PAIRS[0], ('a ball', 'a red star')
  source = photos().at[1].set(photos(seed=3)[1])
  programs = [
    latent_diffusion.compiled(text_editing._invert, 'cpu', INVERT),
    latent_diffusion.compiled(text_editing._change, 'cpu', CHANGE),
  ]
  before = [program._cache_size() for program in programs]
  known = text_editing.invert(model, source, spelt(spell, *(a for a, _ in other)), steps=STEPS)
  again, _ = changed(loaded, known, other)
  np.testing.assert_allclose(again[0], made[0], atol=1e-5)
  assert float(jnp.abs(again[1] - made[1]).max()) > 1e-3
  usual, _ = changed(loaded, inverted, (PAIRS[0],) * 2)
  for how in (dict(strength=0.1), dict(cross='0.9,blue=0.1')):
    differs, _ = changed(loaded, inverted, (PAIRS[0],) * 2, **how)
    assert float(jnp.abs(differs - usual).max()) > 5e-5, how
  changed(loaded, inverted, (PAIRS[0],) * 2, words='ball')
  assert [program._cache_size() for program in programs] == before
  assert before[0] > 0


def test_a_photo_changes_where_its_words_are(loaded, inverted):
  known = placed(inverted, {2: (0, 0), 4: (0, 3)})  # `red` is left, `star` right
  made, region = changed(loaded, known)
  left = np.arange(8) < 4  # the neighbours of a place belong to it
  np.testing.assert_array_equal(region[..., 0], np.stack([[left] * 2, [~left] * 2]))
  differs = (jnp.abs(made - photos()) > 1e-4).any((1, 3))
  np.testing.assert_array_equal(differs.reshape(2, 8, 4).any(-1), [left, ~left])
  pairs = ('a red ball', 'a ball'), PAIRS[1]  # the first has no new words
  edits = tables(loaded[1], *pairs, blend='both')
  _, region = changed(loaded, known, pairs, edits=edits, method='ddim', both=True)
  np.testing.assert_array_equal(region[0, ..., 0], [left] * 2)
  assert region[1, :, 4:].all()


INVERT = ('method', 'steps', 'spacing', 'offset')
CHANGE = ('method', 'scale', 'spacing', 'offset', 'both')


@pytest.mark.parametrize('method', text_editing.INVERSIONS[1:])
def test_strength_and_cross_act_with_every_inversion_and_exact_ones_lead_back(loaded, method):
  model, spell = loaded
  tokens, target = (spelt(spell, *texts) for texts in zip(*PAIRS))
  scale = dict(edit_friendly=text_editing.SOURCE_SCALE).get(method, SCALE)
  how = dict(method=method, scale=scale, keys=jax.random.split(jax.random.key(0), 2))
  known = text_editing.invert(model, photos(), tokens, steps=STEPS, **how)
  how = dict(method=method, scale=scale, both=method == 'ddim')
  settings = dict(inversion=method, blend='none')

  def made(target, edits):
    return text_editing.change(model, known, tokens, target, edits, **how)[0]

  if method == 'edit_friendly':  # the others follow the path only nearly
    back = made(tokens, taking_nothing(tables(spell, *PAIRS, **settings)))
    np.testing.assert_allclose(back, photos(), atol=2e-3)
  usual = made(target, tables(spell, *PAIRS, **settings, strength=0.0, cross='0'))
  assert np.isfinite(usual).all()
  for change in (dict(strength=1.0, cross='0'), dict(strength=0.0, cross='1')):
    differs = made(target, tables(spell, *PAIRS, **settings, **change))
    assert float(jnp.abs(differs - usual).max()) > 3e-6, change


def test_words_of_two_tokens_and_windows_become_tables(loaded):
  _, spell = loaded
  made = tables(spell, ('a xy ball', 'a red xy ball'), cross='0.2,xy ball=0-1', reweight='xy=3')
  gate = np.asarray(made.gate[0])
  np.testing.assert_array_equal(gate[:, :6].sum(0), [0, 0, 0, 3, 3, 3])
  assert made.mix[0, 2, 3] == made.mix[0, 3, 4] == 3 and made.own[0, 2] == 1
  assert not made.words.any()  # the target has every word
  made = tables(spell, ('a red ball', 'a blue star'), alignment='replace', strength=0.0)
  assert made.mix[0, 2, 2] == 1 and made.hold.all()
  np.testing.assert_array_equal(np.flatnonzero(made.words[0]), [2, 3])
  made = tables(spell, PAIRS[0], inversion='edit_friendly', steps=50, strength=0.75)
  assert made.gate.shape[1] == 32  # without the noisiest 36 %
  assert made.gate[0, :13, 1].all() and made.gate[0, :, 1].sum() == 13
  assert made.hold[0, :8].all() and made.hold.sum() == 8
  assert prompt_edits.count(spell('xy')) == 2


# The door


@pytest.fixture
def given(weights, tmp_path):
  colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  Image.fromarray(colours).save(tmp_path / 'photo.png')
  half = np.arange(30) < 12
  Image.fromarray(np.broadcast_to(np.uint8(half * 255), (20, 30))).save(tmp_path / 'mask.png')
  return dict(
    weights=weights, image=tmp_path / 'photo.png', prompt='a red ball', target='a blue ball',
    output=tmp_path / 'out.png',
  )  # fmt: skip


def pixels(path):
  return np.asarray(Image.open(path))


def test_a_photo_of_any_size_is_edited_and_replays(given, tmp_path, capsys, monkeypatch):
  open_sample_door(**given, show_words='true')
  said = capsys.readouterr().out
  assert "without a mask the photo changes only where 'red' is" in said
  source, made = pixels(given['image']), pixels(given['output'])
  assert made.shape == source.shape and (made != source).any()
  assert pixels(tmp_path / 'out-words.png').shape[1] > 4 * 90  # the photo and three words
  recipe = json.loads((tmp_path / 'out.json').read_text())
  assert recipe['inputs']['target']['text'] == 'a blue ball'
  assert recipe['settings']['strength'] == 0.5 and recipe['settings']['sampler'] == 'ddim'
  assert recipe['settings']['inversion'] == 'direct' and recipe['settings']['cross'] == '0.4'
  monkeypatch.setattr(text_editing, 'invert', lambda *_, **__: pytest.fail('inverted again'))
  [kept] = tmp_path.glob('inversion-*.npz')
  open_sample_door(replay=given['output'])
  assert capsys.readouterr().out.endswith('identical to the recorded pixels\n')
  monkeypatch.undo()
  masked = dict(given, mask=tmp_path / 'mask.png', output=tmp_path / 'masked.png', zoom='off')
  open_sample_door(**masked)
  said = capsys.readouterr().out
  assert 'background' not in said and 'without a mask' not in said
  inside = (pixels(masked['output']) != source).any(-1)
  assert inside[:, :12].any() and not inside[:, 12:].any()
  rows = [dict(given, strength=s, output=f'{i}.png') for i, s in enumerate((0.1, None))]
  lines = [{k: str(v) for k, v in row.items() if v is not None} for row in rows]
  lines = [{k: v for k, v in row.items() if k != 'weights'} for row in lines]
  (tmp_path / 'list.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  invert, calls, folder = text_editing.invert, [], tmp_path / 'list'
  monkeypatch.setattr(text_editing, 'invert', lambda *a, **k: calls.append(0) or invert(*a, **k))
  how = dict(edits=tmp_path / 'list.jsonl', output=folder, batch_size=1)
  open_sample_door(weights=given['weights'], **how)
  first, second = (pixels(folder / f'{i}.png').astype(int) for i in range(2))
  assert np.abs(second - made).max() <= 1 and first.shape == second.shape
  assert len(calls) == 1 and [path.name for path in folder.glob('inversion-*')] == [kept.name]
  kept.write_bytes(b'PK')
  said = refusal(capsys, open_sample_door, **given)
  assert f'{kept} is damaged' in said and said.endswith('delete it')


def test_each_sample_is_made_from_the_noises_of_its_own_seed(given, tmp_path):
  how = dict(given, inversion='edit_friendly', blend='none', scale=20)
  for seed in (0, 1):
    open_sample_door(**dict(how, seed=seed, output=tmp_path / f'{seed}' / 'alone.png'))
  alone = [pixels(tmp_path / f'{seed}' / 'alone.png') for seed in (0, 1)]
  open_sample_door(**dict(how, num_samples=2, output=tmp_path / '0' / 'out.png'))  # of 0 it is kept
  made = [pixels(tmp_path / '0' / f'out-{seed}.png') for seed in (0, 1)]
  for one, other in zip(made, alone):
    assert np.abs(one.astype(int) - other).max() <= 1
  assert (made[0] != made[1]).any()
  assert len([*(tmp_path / '0').glob('inversion-*')]) == 2


def test_the_sheet_of_words_is_bright_where_a_word_is(loaded):
  _, spell = loaded
  seen = np.zeros((2, 4, 12), np.float32)
  seen[:, :2, 1] = seen[:, 2:, 2] = seen[:, 2:, 3] = 1  # `a` is left, both tokens of `xy` right
  white = np.full((96, 96, 3), 255, np.uint8)
  sheet = prompts.sheet('a xy', spell, seen, (96, 96), white)
  a, xy = (sheet[60, 4 + k * 100 : 100 + k * 100, 0] for k in (1, 2))
  assert a[5] == xy[-5] == 255 and a[-5] < 30 and xy[5] < 30


def test_the_background_is_what_lies_outside_the_region():
  source = np.full((10, 20, 3), 100, np.uint8)
  result = source.copy()
  result[:, :10] = 0  # inside the region
  result[:, 10:] += 5
  region = np.zeros((2, 4, 1), np.float32)
  region[:, :2] = 1
  frame = framing.Frame(0, 0, 10, 20, (8, 16))
  found = photo.background(frame, result, source, region, 4)
  np.testing.assert_allclose(found, 20 * np.log10(255 / 5))
  assert photo.background(frame, result, source, np.ones_like(region), 4) is None


@pytest.mark.parametrize(
  'change, says',
  [
    (dict(target='a  red ball'), 'target is the same text as prompt, so nothing would change'),
    (dict(target='a RED ball'), 'target has the same tokens as prompt, so nothing would change'),
    (dict(words='star'), "words names 'star', which is not in prompt"),
    (dict(cross='0.4,red=0.2'), "cross names 'red', which is not in target"),
    (dict(cross='1.4'), 'cross is '),
    (dict(reweight='star=2'), "reweight names 'star', which is not in target"),
    (dict(reweight='ball'), "reweight is 'ball': it must be words with factors"),
    (dict(words='red', blend='none'), 'words have no use with blend=none'),
    (dict(words='red', mask='mask.png'), 'words have no use with a mask'),
    (dict(target='a ball', alignment='replace'), 'prompt has 3 words and target 2'),
    (dict(inversion='negative_prompt', negative_prompt='a star'), 'leave negative_prompt out'),
    (dict(guidance_interval='0,.5'), 'guidance_interval does not go with a target'),
    (dict(inversion='null_text', precision='bfloat16'), 'null_text needs float32'),
    (dict(target='', words='ball'), 'target is empty'),
    (dict(num_samples=2), '--inversion=direct is the same with every seed'),
    (dict(image=None), 'target is given without image: name the photo that prompt describes'),
    (dict(target=None, words='ball'), 'words goes with a target only'),
    (dict(target=None, blend='both'), 'blend goes with a target only'),
    (dict(sampler='dpm_solver_pp'), 'does not go with a target, which takes ddim'),
  ],
)
def test_edits_that_could_do_nothing_are_refused(given, tmp_path, capsys, change, says):
  change = {name: tmp_path / v if name == 'mask' else v for name, v in change.items()}
  asked = {name: value for name, value in (given | change).items() if value is not None}
  assert says in refusal(capsys, open_sample_door, **asked)
  assert not (tmp_path / 'out.png').exists()
