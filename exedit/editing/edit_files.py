"""Edits files: samples of one edit, or a list of edits. The sample door calls this."""

import collections
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from exedit import images
from exedit.editing import jobs
from exedit.editing.engine import share_out, threads
from exedit.editing.session import Pace, Session, sweep
from exedit.runtime import processes, progress
from exedit.runtime.errors import UserError

PER_DEVICE = 4  # edits of a list that a device makes at once, unless a batch size is given

Say = Callable[[str], None]


def edit_once(
  weights: str,
  output: str,
  *,
  num_samples: int = 1,
  precision: str | None = None,
  which: str = 'ema',
  revision: str | None = None,
  batch_size: int | None = None,
  keep_recipe: bool = True,
  say: Say = print,
  **given: Any,
) -> list[str]:
  """Makes one edit `num_samples` times, with the seeds seed, seed + 1, ...; returns the paths.

  `given` holds the system's inputs (paths and texts) and settings by name. The network sees the
  window that `framing.choose` finds; outside the mask the photo keeps its bytes. A sample does not
  depend on the number of samples. With Paint by Example, at the trained size and without feather
  and match, it is `paint_by_example.edit` with `key=jax.random.key(seed)`.

  Raises:
    UserError: for everything that the user can fix, before anything is written.
  """
  outputs = output_paths(output, num_samples)
  session = Session(
    weights, which=which, revision=revision, precision=precision, keep_recipes=keep_recipe
  )
  inputs, settings = _split(session.system, given)
  one = jobs.Edit(inputs, images.check_ending(output), session.settings(**settings))
  found = jobs.samples([one], num_samples)
  for fault in jobs.clashes(found, session.system, (), keep_recipe):
    raise UserError(fault.why)
  first = jobs.check(found[0], session.system, session.trained)
  decoded = session.decode(first.edit)
  known = decoded, session.prepare(first, decoded)
  ours = processes.own_share([dataclasses.replace(first, edit=edit) for edit in found])
  devices, rows, note = share_out(batch_size, 1, len(ours))
  for line in [*session.found.notes, *first.notes, *_window(first.frame, decoded), *note]:
    say(f'note: {line}')
  if not ours:
    return outputs
  engine = session.load(devices)
  batches = engine.batches(session.works(ours), rows)
  sweep([job.edit.output for job in ours])
  pace = Pace()
  with _bar(len(ours), 'editing') as bar:
    for batch in session.run(engine, batches, pace=pace, known=known):
      bar.update(len(batch))
      bar.clear()  # for the lines below
      for made in batch:
        say(f'{made.path}  seed {made.job.edit.settings.seed}')
  say(pace.text())
  return outputs


def _split(system, given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
  """The inputs and the settings among these values."""
  names = {entry.name for entry in system.inputs}
  inputs = {name: value for name, value in given.items() if name in names and value is not None}
  for entry in system.inputs:
    if entry.required and not inputs.get(entry.name):
      raise UserError(f'--{entry.name} is missing: name the {entry.help}')
  return inputs, {name: value for name, value in given.items() if name not in names}


def _window(frame, decoded) -> Iterator[str]:
  """A note on what the network sees, unless it sees the photo as it is."""
  if decoded.photo is None or frame.size == decoded.photo.rgb.shape[:2]:
    return
  height, width = decoded.photo.rgb.shape[:2]
  part = f'the photo of {width} x {height}'
  if (frame.height, frame.width) != (height, width):
    part = f'a window of {frame.width} x {frame.height} of {part}'
  yield f'{part} is repainted at {frame.size[1]} x {frame.size[0]}, and the hole scaled back'


def output_paths(output: str, num_samples: int) -> list[str]:
  """`out.png`, or `out-0.png`, ... for several; UserError for a path that cannot be written."""
  stem, ending = os.path.splitext(images.output_path(output))
  if num_samples == 1:
    return [stem + ending]
  return [images.output_path(f'{stem}-{i}{ending}') for i in range(num_samples)]


# A list


def edit_list(
  weights: str,
  edits: str,
  output: str | None = None,
  *,
  num_samples: int = 1,
  precision: str | None = None,
  which: str = 'ema',
  revision: str | None = None,
  batch_size: int | None = None,
  keep_recipe: bool = True,
  skip_bad: bool = False,
  say: Say = print,
  **settings: Any,
) -> list[str]:
  """Makes the edits of a list (see `jobs.read`); returns the outputs that exist at the end.

  The whole list is checked before the weights are read. An output stays as it is if its recipe says
  that this call would make the same; so the same call continues after an interruption. Each of
  several processes makes and returns its share.

  Raises:
    UserError: for a list with faults, unless `skip_bad`; for files that turn out to be damaged,
      after everything else is made; and as `edit_once`.
  """
  session = Session(
    weights, which=which, revision=revision, precision=precision, keep_recipes=keep_recipe
  )
  own = session.settings(**settings)
  found, faults = jobs.read(edits, output, session.system, own, session.most_steps)
  total = len(found) + len(faults)
  good, more = _checked(found, edits, num_samples, session)
  faults += more
  remedy = 'Mend them, or leave them out with --skip_bad'
  if not skip_bad or not good:
    jobs.refuse(faults, edits, total, remedy)
  ours = processes.own_share(good)
  states = _states(session, ours)
  for line in [*session.found.notes, *_notes(ours, states)]:
    say(f'note: {line}')
  late = _make(session, ours, states, batch_size, say)
  if not skip_bad:
    jobs.refuse(late, edits, total, f'All others are made. {remedy}')
  for fault in jobs.in_order([*faults, *late]):
    say(f'left out: {fault}')
  bad = {fault.where for fault in late}
  return [job.edit.output for job in ours if job.edit.where not in bad]


def _checked(found, listed, num_samples, session):
  """The jobs of the edits that can be made, and the faults of the others."""
  also = [listed] if os.path.isfile(listed) else []
  several = jobs.samples(found, num_samples)
  faults = jobs.clashes(several, session.system, also, session.keep_recipes)
  bad = {fault.where for fault in faults}
  with _bar(len(found), 'checking the files') as bar:
    left = [edit for edit in found if edit.where not in bad]
    good, more = jobs.check_all(left, session.system, session.trained, bar.update)
  several = [
    dataclasses.replace(job, edit=edit)
    for job in good
    for edit in jobs.samples([job.edit], num_samples)
  ]
  return several, faults + more


def _states(session, ours: Sequence[jobs.Job]) -> dict[str, str]:
  """By output: is it made already? See `recipe.finished`."""
  outputs = [job.edit.output for job in ours]
  if not session.keep_recipes:
    return dict.fromkeys(outputs, 'no')
  states = {}
  with threads() as pool, _bar(len(ours), 'checking the outputs') as bar:
    for output, state in zip(outputs, pool.map(session.state, ours)):
      states[output] = state
      bar.update()
  return states


def _notes(ours, states) -> Iterator[str]:
  counts = collections.Counter(note for job in ours for note in job.notes)
  for note, count in counts.items():
    yield f'{note} ({count} edits)'
  if finished := sum(state != 'no' for state in states.values()):
    yield f'{finished} of {len(ours)} edits are finished already'
  if changed := [output for output, state in states.items() if state == 'changed']:
    yield f'{len(changed)} of them were changed since and are kept, such as {changed[0]}'


def _make(session, ours, states, batch_size, say) -> list[jobs.Fault]:
  """Makes the jobs that are not finished; returns the faults of damaged files."""
  unfinished = lambda job: states[job.edit.output] == 'no'
  left = [job for job in ours if unfinished(job)]
  if not left:
    return []
  devices, rows, note = share_out(batch_size, PER_DEVICE, len(ours))
  for folder in {os.path.dirname(job.edit.output) or '.' for job in left}:
    os.makedirs(folder, exist_ok=True)
  sweep([job.edit.output for job in left])
  engine = session.load(devices)
  works = session.works(ours)
  groups = len(engine.groups(works))
  if groups > 1:
    note = [*note, f'{groups} working sizes or settings, each compiled once']
  for line in note:
    say(f'note: {line}')
  late: list[jobs.Fault] = []
  pace = Pace()
  with _bar(len(left), 'editing', passing=False) as bar:

    def bad(job, why):
      late.append(jobs.Fault(job.edit.where, why))
      bar.update()

    batches = engine.batches(works, rows, unfinished)
    for batch in session.run(engine, batches, bad=bad, pace=pace, lag=1):
      bar.update(len(batch))
  made = sum(pace.counts)
  say(f'{made} edits: {pace.text()}' if made else 'no edit could be made')
  return late


def _bar(total, what, passing=True):
  """A progress bar over edits; a passing one is shown only on a terminal and then removed."""
  hidden = jax.process_index() > 0 or (passing and not sys.stderr.isatty())
  return progress.bar(what=what, total=total, unit='edit', process=int(hidden), leave=not passing)
