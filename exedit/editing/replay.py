"""Makes an edit again from its recipe, and compares the pixels with the recorded ones."""

import dataclasses
import os
from collections.abc import Callable, Mapping

import jax

from exedit import images, systems
from exedit.editing import framing, jobs
from exedit.editing import recipe as recipes
from exedit.editing.engine import Batch
from exedit.editing.session import Pace, Session
from exedit.runtime import decode, files
from exedit.runtime.errors import UserError


def replay(
  path: str,
  output: str | None = None,
  *,
  weights: str | None = None,
  concept: str | None = None,
  keep_recipe: bool = True,
  keep: bool = False,
  say: Callable[[str], None] = print,
  **inputs: str | None,
) -> str:
  """Makes the edit of a recipe (`out.json`, or `out.png` that contains it) again.

  The weights and the input files are those that the recipe names, seen from its folder, or those
  given here by name; they must have the recorded content. The default of `output` is
  `out-replay.png` beside the recipe. A line says whether the pixels are identical, or how far off.
  On the same kind of machine, with the same versions and beside the first output, the new file is
  the same byte by byte.

  Returns:
    The path written.
  Raises:
    UserError: for a recipe that cannot be read, and for weights or inputs that are missing or have
      another content.
  """
  old = recipes.read(path)
  first = _first_output(old, path)
  target = _output(old, path, output)
  files.check_output(target)
  session = _session(old, path, weights, concept)
  session.keep_recipes, session.keep = keep_recipe, keep
  settings = recipes.settings_of(old, session.system, path)
  systems.check_steps(systems.network_settings(settings), session.most_steps)
  edit = jobs.Edit(_inputs(old, path, inputs), target, settings)
  inputs_too = [path, images.recipe_path(path), first]
  for fault in jobs.clashes([edit], session.system, inputs_too, keep_recipe):
    raise UserError(fault.why)
  job = _job(edit, old, session, say)
  for line in recipes.other_versions(old, session.versions):
    say(f'note: {line}: the pixels may differ')

  engine = session.load(jax.local_devices()[:1])
  [batch] = engine.batches(session.works([job]), 1)
  batch = Batch(batch.works, old.batch, batch.size)  # as many rows as then: others round otherwise
  pace = Pace()
  [[made]] = session.run(engine, [batch], pace=pace)
  verdict = recipes.compare(old, made.recipe, first, made.path)
  old = f' ({made.old})' if made.old else ''
  say(f'{made.path}{old}  seed {settings.seed}  {pace.seconds():.1f} s  {verdict}')
  return made.path


def _first_output(old, path) -> str:
  """The output that the recipe describes; it may no longer exist."""
  stem, ending = os.path.splitext(path)
  return path if ending.lower() == '.png' else stem + old.output['ending']


def _inputs(old: recipes.Recipe, path: str, named: Mapping[str, str | None]) -> dict[str, str]:
  """The recorded inputs, from the files that are named instead; all must have the same content."""
  for name, given in named.items():
    if given and 'path' not in old.inputs.get(name, {}):
      raise UserError(f'the edit of {path} had no {name}: leave --{name} out')
  found = {}
  for name, entry in old.inputs.items():
    if 'text' in entry:
      found[name] = entry['text']
      continue
    place = named.get(name) or recipes.locate(entry['path'], os.path.dirname(path))
    if not os.path.isfile(place):
      raise UserError(f'{place} does not exist: name the {name} of {path} with --{name}')
    if (sha := files.sha256(place)) != entry['sha256']:
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
  images.check_ending(output)
  if not os.path.splitext(output)[1]:
    output += ending
  if images.format_of(images.check_ending(output)) != images.format_of('a' + ending):
    raise UserError(f'{output} is of another kind than the recorded {ending}: name a {ending}')
  return output


def _session(old, path, weights, concept) -> Session:
  """A session with the recorded weights and concepts, or those given instead."""
  if weights is None:
    weights = recipes.locate(old.weights['source'], os.path.dirname(path))
    if not os.path.exists(weights):  # replaying somebody's recipe must not start a download
      raise UserError(f'the weights of {path}, {weights}, are not here: name them with --weights')
  named = concept
  if concept is None and (found := old.weights.get('concepts')):
    places = [recipes.locate(entry['path'], os.path.dirname(path)) for entry in found]
    for place in places:
      if not os.path.exists(place):
        raise UserError(f'the concept of {path}, {place}, is not here: name it with --concept')
    named = [(entry['word'], place) for entry, place in zip(found, places)]
  session = Session(
    weights,
    concept=named,
    force=True,  # they are the recorded ones, or the digest tells
    which=old.weights['which'],
    revision=old.weights['revision'],
    precision=old.precision,
  )
  if session.digest != old.weights['digest']:
    what = 'weights or another tokenizer' if session.system.tokenizer else 'weights'
    flags = '--weights'
    if named is not None:
      what, flags = f'concepts, {what}', '--weights and --concept'
    raise UserError(
      f'{weights} holds other {what} (digest {session.digest[:12]}...) than the recipe says'
      f' ({old.weights["digest"][:12]}...): name the right ones with {flags}'
    )
  return session


def _job(edit, old, session, say) -> jobs.Job:
  """The job with the recorded window; UserError if the window does not fit the files."""
  frame, inputs = old.frame, edit.inputs
  for entry in session.system.inputs_of('photo'):
    if entry.name not in inputs:
      continue
    size = decode.header(inputs[entry.name]).size
    if size != (old.output['height'], old.output['width']):
      raise UserError(
        f'{inputs[entry.name]} is {size[1]} x {size[0]} pixels, not of the size that the recipe'
        ' says: the recipe is damaged'
      )
  if max(frame.size) > 2 * framing.LONGEST * session.trained:
    raise UserError(
      f'frame.size is {frame.size}, and these weights were trained at {session.trained}'
    )
  for entry in session.system.inputs_of('mask'):
    if entry.name in inputs:
      size = (old.output['height'], old.output['width'])
      top, left, bottom, right = framing.bounds(jobs.read_mask(edit, entry, size))
      if top < frame.top or left < frame.left or bottom > frame.bottom or right > frame.right:
        raise UserError(
          f'{inputs[entry.name]} leaves the frame that the recipe says: the recipe is damaged'
        )
  job = jobs.check(edit, session.system, session.trained, session.tokenizer, session.grid)
  if job.frame != frame:
    say('note: this exedit would choose another window; the recorded one is used')
  return dataclasses.replace(job, frame=frame)
