"""Edits files: samples of one edit, or a list of edits. The sample door calls this."""

import collections
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from exedit import images, systems
from exedit.editing import jobs
from exedit.editing.engine import share_out, threads
from exedit.editing.session import Pace, Session, sweep
from exedit.runtime import processes, progress
from exedit.runtime.errors import UserError

COMPILES = 'the first edit of a size compiles, so it takes longer than the next ones'
USUAL_SIZE = 512  # the side in pixels at which released weights were trained
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
  keep: bool = False,
  concept: str | None = None,
  force: bool = False,
  say: Say = print,
  **given: Any,
) -> list[str]:
  """Makes one edit `num_samples` times, with the seeds seed, seed + 1, ...; returns the paths.

  `given` holds the system's inputs (paths and texts) and settings by name. The network sees the
  window that `framing.choose` finds; outside the mask the photo keeps its bytes. A sample does not
  depend on the number of samples. With Paint by Example, at the trained size and without feather
  and match, it is `paint_by_example.edit` with `key=jax.random.key(seed)`. With `keep`, a file that
  is replaced stays under another name. For `concept` and `force` see `concepts.files.weights`.

  Raises:
    UserError: for everything that the user can fix, before anything is written.
  """
  outputs = output_paths(output, num_samples)

  def checked(system, make_settings, *how):
    own = dict(num_samples=num_samples, keep_recipe=keep_recipe)
    return check_once(system, make_settings, given, output, *how, **own)

  _before_fetching(weights, checked, (name for name, value in given.items() if value is not None))
  session = Session(
    weights, which=which, revision=revision, precision=precision, keep_recipes=keep_recipe,
    keep=keep, concept=concept, force=force,
  )  # fmt: skip
  own = lambda settings: session.settings(**settings)
  found, first = checked(session.system, own, session.trained, session.tokenizer, session.grid)
  decoded = session.decode(first.edit)
  known = decoded, session.prepare(first, decoded)
  ours = processes.own_share([dataclasses.replace(first, edit=edit) for edit in found])
  devices, rows, note = share_out(batch_size, 1, len(ours))
  share = '' if first.repainted is None else f' ({first.repainted:.1%} is repainted)'
  understood = [f'{line}{share}' for line in first.understood]
  told = [*session.notes(), *first.notes, *understood, *filter(None, [session.saved(first.edit)])]
  for line in [*told, *_window(first.frame, decoded), *note]:
    say(f'note: {line}')
  if not ours:
    return outputs
  engine = session.load(devices)
  batches = engine.batches(session.works(ours), rows)
  sweep([job.edit.output for job in ours])
  say(COMPILES)
  pace = Pace()
  with _bar(len(ours), 'editing') as bar:
    for batch in session.run(engine, batches, pace=pace, known=known):
      bar.update(len(batch))
      bar.clear()  # for the lines below
      for made in batch:
        old = f' ({made.old})' if made.old else ''
        say(f'{made.path}{old}  seed {made.job.edit.settings.seed}{_moved([made.background])}')
  say(pace.text())
  return outputs


def check_once(
  system: systems.System,
  make_settings: Callable[[dict[str, Any]], Any],
  given: Mapping[str, Any],
  output: str,
  trained: int,
  tokenizer: Any = None,
  grid: int = 1,
  *,
  num_samples: int = 1,
  keep_recipe: bool = True,
) -> tuple[list[jobs.Edit], jobs.Job]:
  """The samples of one edit, and the first of them with its files checked.

  given: inputs and settings by name. make_settings: makes the system's settings of the latter. See
  `jobs.check` for the others.

  Raises:
    UserError: for everything that the user can fix.
  """
  inputs, settings = _split(system, given)
  one = jobs.Edit(inputs, images.check_ending(output), make_settings(settings))
  if why := why_equal(one, system, num_samples):
    raise UserError(why)
  found = jobs.samples([one], num_samples)
  for fault in jobs.clashes(found, system, (), keep_recipe):
    raise UserError(fault.why)
  return found, jobs.check(found[0], system, trained, tokenizer, grid)


def why_equal(edit: jobs.Edit, system: systems.System, num_samples: int) -> str:
  """The reason why all samples of an edit would be the same picture; empty if they would not."""
  kept = system.kept(edit.inputs, edit.settings)
  if num_samples == 1 or kept is None or 'seed' in kept:
    return ''
  return (
    f'--num_samples is {num_samples}, but an edit with --inversion={kept["inversion"]} is the same '
    'with every seed: leave --num_samples out, or use --inversion=edit_friendly'
  )


def _before_fetching(weights: str, checked: Callable[..., Any], given: Iterable[str] = ()) -> None:
  """Checks the files before weights are fetched, as they must suit one of the systems at least.

  checked(system, settings, trained): raises UserError; it is called again when the weights are
  here. settings: makes a system's settings of values by name. given: the names of inputs; the fault
  is that of the system which has most of them.
  """
  if os.path.exists(weights):
    return
  faults, given = [], {*given}
  others = lambda system: len(given - {entry.name for entry in system.inputs})
  for system in sorted(systems.all_systems().values(), key=others):
    if not system.edit:
      continue
    try:
      checked(system, functools.partial(_settings, system), USUAL_SIZE)
      return
    except UserError as error:
      faults.append(error)
  for fault in faults:
    raise fault


def _settings(system, given):
  """The settings as far as they are known without the weights."""
  known = {field.name for field in dataclasses.fields(system.settings)}
  for name in given:
    if name not in known:
      raise UserError(f'{name} is not a setting of {system.name}: leave it out')
  return systems.make_settings(system, given)


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
  stem, ending = os.path.splitext(images.check_ending(output))
  if num_samples == 1:
    return [stem + ending]
  return [images.check_ending(f'{stem}-{i}{ending}') for i in range(num_samples)]


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
  keep: bool = False,
  concept: str | None = None,
  force: bool = False,
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
  remedy = 'Mend them, or leave them out with --skip_bad'

  def checked(system, make_settings, trained, tokenizer=None, grid=1, most_steps=None):
    found, faults = jobs.read(edits, output, system, make_settings(settings), most_steps)
    total = len(found) + len(faults)
    good, more = _checked(found, edits, num_samples, keep_recipe, system, trained, tokenizer, grid)
    faults += more
    if not skip_bad or not good:
      jobs.refuse(faults, edits, total, remedy)
    return good, faults, total

  _before_fetching(weights, checked, jobs.columns(edits))
  session = Session(
    weights, which=which, revision=revision, precision=precision, keep_recipes=keep_recipe,
    keep=keep, concept=concept, force=force,
  )  # fmt: skip
  own = lambda settings: session.settings(**settings)
  good, faults, total = checked(
    session.system, own, session.trained, session.tokenizer, session.grid, session.most_steps
  )
  ours = processes.own_share(good)
  states = _states(session, ours)
  for line in [*session.notes(), *_notes(session, ours, states, keep)]:
    say(f'note: {line}')
  late = _make(session, ours, states, batch_size, say)
  if not skip_bad:
    jobs.refuse(late, edits, total, f'All others are made. {remedy}')
  for fault in jobs.in_order([*faults, *late]):
    say(f'left out: {fault}')
  bad = {fault.where for fault in late}
  return [job.edit.output for job in ours if job.edit.where not in bad]


def _checked(found, listed, num_samples, keep_recipe, system, trained, *how):
  """The jobs of the edits that can be made, and the faults of the others."""
  also = [listed] if os.path.isfile(listed) else []
  several = jobs.samples(found, num_samples)
  faults = jobs.clashes(several, system, also, keep_recipe)
  same = ((edit.where, why_equal(edit, system, num_samples)) for edit in found)
  faults += [jobs.Fault(where, why) for where, why in same if why]
  bad = {fault.where for fault in faults}
  with _bar(len(found), 'checking the files') as bar:
    left = [edit for edit in found if edit.where not in bad]
    good, more = jobs.check_all(left, system, trained, bar.update, *how)
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


def _notes(session, ours, states, keep) -> Iterator[str]:
  counts = collections.Counter(note for job in ours for note in job.notes)
  counts.update(filter(None, (session.saved(job.edit) for job in ours)))
  for note, count in counts.items():
    yield f'{note} ({count} edits)'
  shares = collections.defaultdict(list)
  for job in ours:
    for line in job.understood:
      shares[line].append(job.repainted)
  for line, found in shares.items():
    known = [share for share in found if share is not None]
    share = f'; {min(known):.1%} to {max(known):.1%} is repainted' if known else ''
    yield f'{line} ({len(found)} edits{share})'
  if finished := sum(state != 'no' for state in states.values()):
    yield f'{finished} of {len(ours)} edits are finished already'
  if changed := [output for output, state in states.items() if state == 'changed']:
    yield f'{len(changed)} of them were changed since and are kept, such as {changed[0]}'
  old = [name for name, state in states.items() if state == 'no' and os.path.exists(name)]
  if old:
    what = 'kept under another name' if keep else 'replaced'
    yield f'{len(old)} files that were made otherwise are {what}, such as {old[0]}'


def _make(session, ours, states, batch_size, say) -> list[jobs.Fault]:
  """Makes the jobs that are not finished; returns the faults of damaged files."""
  unfinished = lambda job: states[job.edit.output] == 'no'
  left = [job for job in ours if unfinished(job)]
  if not left:
    return []
  devices, rows, note = share_out(batch_size, PER_DEVICE, len(ours))
  sweep([job.edit.output for job in left])
  engine = session.load(devices)
  works = session.works(ours)
  groups = len(engine.groups(works))
  if groups > 1:
    note = [*note, f'{groups} working sizes or settings, each compiled once']
  for line in note:
    say(f'note: {line}')
  say(COMPILES)
  late: list[jobs.Fault] = []
  pace = Pace()
  with _bar(len(left), 'editing', passing=False) as bar:

    def bad(job, why):
      late.append(jobs.Fault(job.edit.where, why))
      bar.update()

    later = session.later(left)
    backgrounds = []
    for second in (False, True) if later else (False,):
      now = {job.edit.output for job in left if (job.edit.output in later) == second}
      batches = engine.batches(works, rows, lambda job, now=now: job.edit.output in now)
      for batch in session.run(engine, batches, bad=bad, pace=pace, lag=1):
        bar.update(len(batch))
        backgrounds += [made.background for made in batch]
  made = sum(pace.counts)
  say(f'{made} edits: {pace.text()}{_moved(backgrounds)}' if made else 'no edit could be made')
  return late


def _moved(backgrounds: Sequence[float | None]) -> str:
  """How far these backgrounds (`Made.background`) moved, in words; empty if none could."""
  found = [one for one in backgrounds if one is not None]
  if not found:
    return ''
  low, high = min(found), max(found)
  how = f'{low:.1f} dB' if low == high else f'{low:.1f} to {high:.1f} dB'
  return f'  the background differs from the photo: PSNR {how} (--mask keeps it)'


def _bar(total, what, passing=True):
  """A progress bar over edits; a passing one is shown only on a terminal and then removed."""
  hidden = jax.process_index() > 0 or (passing and not sys.stderr.isatty())
  return progress.bar(what=what, total=total, unit='edit', process=int(hidden), leave=not passing)
