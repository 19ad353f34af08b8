"""An edit made again from its recipe, and compared with the pixels that it gave."""

import dataclasses
import os
from collections.abc import Callable, Mapping

import jax

from exedit import images, systems
from exedit.editing import edits, framing, repaint
from exedit.editing import recipe as recipes
from exedit.editing.session import Pace, Session
from exedit.runtime import decode
from exedit.runtime.errors import UserError


def replay(
  path: str,
  output: str | None = None,
  *,
  weights: str | None = None,
  image: str | None = None,
  mask: str | None = None,
  exemplar: str | None = None,
  exemplar_mask: str | None = None,
  keep_recipe: bool = True,
  say: Callable[[str], None] = print,
) -> str:
  """Make the edit of this recipe (`out.json`, or `out.png` with it inside) again.

  Weights and inputs are looked for where the recipe says, seen from its folder, unless they are
  given; they must be the recorded ones to the last byte. `output` is by default `out-replay.png`
  beside the recipe. Says whether the pixels are identical, or how far off. On the same kind of
  machine, with the same versions and beside the first output, the file is the same byte by byte.

  Returns:
    The path written.
  Raises:
    UserError: for a recipe that cannot be read, and weights or inputs that are missing or others.
  """
  old = recipes.read(path)
  first = _first(old, path)
  named = dict(image=image, mask=mask, exemplar=exemplar, exemplar_mask=exemplar_mask)
  inputs = _inputs(old, path, named)
  edit = edits.Edit(**inputs, output=_output(old, path, output), settings=old.settings)
  for fault in edits.clashes([edit], [path, images.recipe_path(path), first], keep_recipe):
    raise UserError(fault.why)
  if keep_recipe and (why := recipes.stranger(edit.output)):
    raise UserError(why)
  if weights is None:
    weights = recipes.locate(old.weights['source'], os.path.dirname(path))
    if not os.path.exists(weights):  # a stranger's recipe shall not fetch gigabytes by itself
      raise UserError(f'the weights of {path}, {weights}, are not here: name them with --weights')
  session = _session(old, weights)
  session.keep_recipes = keep_recipe
  systems.check_steps(old.settings.steps, session.most_steps)
  job = _job(edit, old, session.trained, say)
  for line in recipes.other_versions(old, session.versions):
    say(f'note: {line}: the pixels may differ')

  loaded = session.load(jax.local_devices()[:1])
  pace = Pace()
  work = [repaint.Batch((job,), old.batch)]  # as many rows as then: another shape rounds otherwise
  [[made]] = session.run(loaded, work, bad=_refuse, pace=pace)
  verdict = recipes.compare(old, made.recipe, first, made.path)
  say(f'{made.path}  seed {old.settings.seed}  {pace.last:.1f} s  {verdict}')
  return made.path


def _refuse(job, why):
  raise UserError(why)


def _first(old, path) -> str:
  """The file that the recipe came with; it need not be there any more."""
  stem, ending = os.path.splitext(path)
  return path if ending.lower() == '.png' else stem + old.output['ending']


def _inputs(old: recipes.Recipe, path: str, named: Mapping[str, str | None]) -> dict[str, str]:
  """The paths of the recorded inputs, or of those named instead; all must hold the same bytes."""
  found = {}
  for name, given in named.items():
    entry = old.inputs.get(name)
    if entry is None and given:
      raise UserError(f'the edit of {path} had no {name}: leave --{name} out')
    if entry is None:
      continue
    place = given or recipes.locate(entry['path'], os.path.dirname(path))
    if not os.path.isfile(place):
      raise UserError(f'{place} does not exist: name the {name} of {path} with --{name}')
    if (sha := recipes.fingerprint(place)) != entry['sha256']:
      raise UserError(
        f'{place} is not the {name} of {path} (sha256 {sha[:12]}... here, {entry["sha256"][:12]}...'
        f' there): name the right one with --{name}'
      )
    found[name] = place
  return found


def _output(old, path, output) -> str:
  ending = old.output['ending']
  if output is None:
    return os.path.splitext(path)[0] + '-replay' + ending
  if not os.path.splitext(output)[1]:
    output += ending
  if images.format_of(images.output_path(output)) != images.format_of('a' + ending):
    raise UserError(f'{output} is of another kind than the recorded {ending}: name a {ending}')
  return output


def _session(old, weights) -> Session:
  session = Session(
    weights,
    which=old.weights['which'],
    revision=old.weights['revision'],
    precision=old.precision,
  )
  if session.digest != old.weights['digest']:
    raise UserError(
      f'{weights} holds other weights (digest {session.digest[:12]}...) than the recipe says'
      f' ({old.weights["digest"][:12]}...): name the right ones with --weights'
    )
  return session


def _job(edit, old, trained, say) -> edits.Job:
  """The edit in its recorded place."""
  if decode.header(edit.image).size != (old.output['height'], old.output['width']):
    raise UserError(f'{edit.image} is not of the size that the recipe says: the recipe is damaged')
  top, left, bottom, right = framing.bounds(images.read_mask(edit.mask))
  frame = old.frame
  if max(frame.size) > 2 * framing.LONGEST * trained:
    raise UserError(f'frame.size is {frame.size}, and these weights were trained at {trained}')
  if top < frame.top or left < frame.left or bottom > frame.bottom or right > frame.right:
    raise UserError(f'{edit.mask} leaves the frame that the recipe says: the recipe is damaged')
  job = edits.plan(edit, trained)
  if job.frame != frame:
    say('note: this exedit would choose another window; the recorded one is used')
  return dataclasses.replace(job, frame=frame)
