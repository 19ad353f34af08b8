r"""Image files in, edited image files out.

  python -m exedit.sample --weights=weights/tiny --image=street.jpg --mask=hole.png \
      --exemplar=bulldog.jpg --output=out.png
  python -m exedit.sample --weights=weights/tiny --edits=list.csv --output=results
  python -m exedit.sample --replay=out.json

White in the mask is repainted with the exemplar's subject; every other pixel keeps its own bytes.
A list has the columns image, mask, exemplar and, where wanted, output, exemplar_mask and settings.
"""

import collections
import contextlib
import dataclasses
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from absl import flags
from tqdm import tqdm

from exedit import images
from exedit.editing import edits, recipe, repaint, replay, shares
from exedit.editing.session import Pace, Session, share_out, sweep, workers
from exedit.runtime import compilation, doors, processes
from exedit.runtime.errors import UserError, heard

FILES = dict(
  weights='run, exported or diffusers folder, .ckpt or .safetensors file, or the id of a hub',
  image='photo to edit',
  mask='mask of the size of the photo, white where it is to be repainted',
  exemplar='picture of the subject to put there',
  output='file to write (with --edits: the folder)',
)
T = TypeVar('T')
PER_DEVICE = 4  # edits of a list that a device makes at once, unless --batch_size says otherwise


def sample(
  weights: str,
  image: str,
  mask: str,
  exemplar: str,
  output: str,
  *,
  exemplar_mask: str | None = None,
  num_samples: int = 1,
  precision: str | None = None,
  which: str = 'ema',
  revision: str | None = None,
  batch_size: int | None = None,
  keep_recipe: bool = True,
  say: Callable[[str], None] = print,
  **settings: Any,
) -> list[str]:
  """Edit one image file `num_samples` times, with the seeds seed, seed + 1, ...; returns the paths.

  The network works on the window that `framing.choose` finds, inside the mask the result is put
  back at the photo's own size, outside it nothing is touched. `settings` are those of
  `edits.Settings`; `steps`, `scale` and `sampler` are the weights' own unless given. Every sample
  is an edit by itself, so it does not depend on how many were asked for; at the trained size,
  without feather and match, it is `paint_by_example.edit` with `key=jax.random.key(seed)`.

  Raises:
    UserError: for any input that the person can mend, before anything is written.
  """
  outputs = output_paths(output, num_samples)
  session = Session(
    weights, which=which, revision=revision, precision=precision, keep_recipes=keep_recipe
  )
  own = session.settings(**settings)
  one = edits.Edit(image, mask, exemplar, images.check_ending(output), own, exemplar_mask)
  found = edits.samples([one], num_samples)
  for fault in outputs_refused(found, (), keep_recipe):
    raise UserError(fault.why)
  first = edits.plan(found[0], session.trained)
  own = repaint.originals(first)
  known = own, repaint.see(first, own, session.exemplar_size)
  jobs = processes.own_share([dataclasses.replace(first, edit=edit) for edit in found])
  devices, rows, note = share_out(batch_size, 1, len(jobs))
  where = _where(first.frame, own.mask.shape)
  for line in [*session.found.notes, *first.notes, *where, *note]:
    say(f'note: {line}')
  if jobs:
    _make_samples(session, jobs, known, devices, rows, say)
  return outputs


def _make_samples(session, jobs, known, devices, rows, say):
  loaded = session.load(devices)
  work = repaint.batches(repaint.groups(jobs, loaded.multiple), rows, len(devices))
  outputs = [job.edit.output for job in jobs]
  sweep(outputs)
  pace = Pace()
  made = session.run(loaded, work, bad=_refuse, pace=pace, known=known)
  for batch in ticking(made, outputs[0]):
    for result in batch:
      say(f'{result.path}  seed {result.job.edit.settings.seed}')
  say(pace.text())


def _refuse(job, why):
  raise UserError(why)


def _where(frame, photo) -> Iterator[str]:
  """What the network sees, if it is not the photo as it is."""
  if frame.size == photo:
    return
  part = f'the photo of {photo[1]} x {photo[0]}'
  if (frame.height, frame.width) != photo:
    part = f'a window of {frame.width} x {frame.height} of {part}'
  yield f'{part} is repainted at {frame.size[1]} x {frame.size[0]}, and the hole scaled back'


def output_paths(output: str, num_samples: int) -> list[str]:
  """`out.png`, or `out-0.png`, ... for several; UserError where that cannot be written."""
  stem, ending = os.path.splitext(images.output_path(output))
  if num_samples == 1:
    return [stem + ending]
  return [images.output_path(f'{stem}-{i}{ending}') for i in range(num_samples)]


def outputs_refused(
  found: Sequence[edits.Edit], also: Sequence[str], keep_recipe: bool
) -> list[edits.Fault]:
  """Outputs that `edits.clashes` names, and recipes that would replace another's file."""
  faults = edits.clashes(found, also, keep_recipe)
  for edit in found if keep_recipe else ():
    if why := recipe.stranger(edit.output):
      faults.append(edits.Fault(edit.where, why))
  return faults


# Many


def sample_list(
  weights: str,
  listed: str,
  output: str | None = None,
  *,
  num_samples: int = 1,
  precision: str | None = None,
  which: str = 'ema',
  revision: str | None = None,
  batch_size: int | None = None,
  keep_recipe: bool = True,
  skip_bad: bool = False,
  say: Callable[[str], None] = print,
  **settings: Any,
) -> list[str]:
  """Make the edits of a list (see `edits.read`); returns the outputs that are there at the end.

  The whole list is checked before the weights are read. Outputs whose recipe says that they are
  what this call would make are left as they are, so the same call goes on after an interruption.
  Of several processes, each makes and returns its share (`shares.end` waits for the others).

  Raises:
    UserError: for a list with faults, unless `skip_bad`; for files that turn out to be damaged,
      once everything else is made; and as `sample`.
  """
  session = Session(
    weights, which=which, revision=revision, precision=precision, keep_recipes=keep_recipe
  )
  own = session.settings(**settings)
  found, faults = edits.read(listed, output, own, session.most_steps)
  total = len(found) + len(faults)
  jobs, more = _checked(found, listed, num_samples, session)
  faults += more
  remedy = 'Mend them, or leave them out with --skip_bad'
  if not skip_bad or not jobs:
    edits.refuse(faults, listed, total, remedy)
  jobs = processes.own_share(jobs)
  states = dict(zip(jobs, _states(session, jobs)))
  for line in [*session.found.notes, *_counted(jobs, states)]:
    say(f'note: {line}')
  late = _make(session, jobs, states, batch_size, say)
  if not skip_bad:
    edits.refuse(late, listed, total, f'All others are made. {remedy}')
  for fault in edits.in_order([*faults, *late]):
    say(f'left out: {fault}')
  bad = {fault.where for fault in late}
  return [job.edit.output for job in jobs if job.edit.where not in bad]


def _checked(found, listed, num_samples, session):
  """The jobs of edits that can be made, and the faults of the others."""
  several = edits.samples(found, num_samples)
  also = [listed] if os.path.isfile(listed) else []
  faults = outputs_refused(several, also, session.keep_recipes)
  bad = {fault.where for fault in faults}
  with _bar(len(found), 'looking at the files') as bar:
    good = [edit for edit in found if edit.where not in bad]
    jobs, more = edits.plan_all(good, session.trained, bar.update)
  jobs = [
    dataclasses.replace(job, edit=edit)
    for job in jobs
    for edit in edits.samples([job.edit], num_samples)
  ]
  return jobs, faults + more


def _states(session, jobs) -> list[str]:
  """Of each output: is it made already?"""
  if not session.keep_recipes:
    return ['no'] * len(jobs)
  with workers() as pool, _bar(len(jobs), 'looking at the outputs') as bar:
    states = []
    for state in pool.map(session.state, jobs):
      states.append(state)
      bar.update()
  return states


def _counted(jobs, states) -> Iterator[str]:
  counts = collections.Counter(note for job in jobs for note in job.notes)
  for note, count in counts.items():
    yield f'{note} ({count} edits)'
  if finished := sum(state != 'no' for state in states.values()):
    yield f'{finished} of {len(jobs)} edits are finished already'
  if changed := [job.edit.output for job in jobs if states[job] == 'changed']:
    yield f'{len(changed)} of them were changed since and are kept, such as {changed[0]}'


def _make(session, jobs, states, batch_size, say) -> list[edits.Fault]:
  """Make the jobs that are not finished; returns those whose files turned out to be damaged."""
  left = [job for job in jobs if states[job] == 'no']
  if not left:
    return []
  devices, rows, note = share_out(batch_size, PER_DEVICE, len(jobs))
  for folder in {os.path.dirname(job.edit.output) or '.' for job in left}:
    os.makedirs(folder, exist_ok=True)
  sweep([job.edit.output for job in left])
  loaded = session.load(devices)
  groups = repaint.groups(jobs, loaded.multiple)
  work = repaint.batches(groups, rows, len(devices), lambda job: states[job] == 'no')
  if len(groups) > 1:
    note = [*note, f'{len(groups)} working sizes or settings, each compiled once']
  for line in note:
    say(f'note: {line}')
  late: list[edits.Fault] = []
  pace = Pace()
  with _bar(len(left), 'editing', passing=False) as bar:

    def bad(job, why):
      late.append(edits.Fault(job.edit.where, why))
      bar.update()

    for batch in session.run(loaded, work, bad=bad, pace=pace, lag=1):
      bar.update(len(batch))
  say(f'{pace.count} edits: {pace.text()}' if pace.count else 'no edit could be made')
  return late


def _bar(total, what, passing=True):
  """Edits per second and the time left; a passing one only where somebody looks on."""
  seen = sys.stderr.isatty()
  quiet = jax.process_index() > 0 or (passing and not seen)
  return tqdm(
    total=total,
    unit='edit',
    desc=what,
    mininterval=0.1 if seen else 10,
    disable=quiet,
    leave=not passing,
  )


# The terminal


def ticking(items: Iterable[T], text: str, every: float = 0.5) -> Iterator[T]:
  """The items; on a terminal, with the seconds that each has been waited for."""
  waiting = iter(items)
  while True:
    with _seconds(text, every):
      item = next(waiting, None)
    if item is None:
      return
    yield item


@contextlib.contextmanager
def _seconds(text, every):
  out, done = sys.stdout, threading.Event()

  def tick():
    begin = time.perf_counter()
    while not done.wait(every):
      out.write(f'\r{text}  {time.perf_counter() - begin:.0f} s ')
      out.flush()
    out.write('\r\033[K')
    out.flush()

  thread = threading.Thread(target=tick, daemon=True)
  if out.isatty():
    thread.start()
  try:
    yield
  finally:
    done.set()
    if thread.is_alive():
      thread.join()


# The door

SETTINGS = tuple(field.name for field in dataclasses.fields(edits.Settings))
DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(edits.Settings)[3:]}
OTHERS = (
  *('exemplar_mask', 'edits', 'replay', 'num_samples', 'precision', 'which', 'revision'),
  *('batch_size', 'recipe', 'skip_bad'),
)
MODES: dict[str | None, tuple[Callable, dict[str, str], tuple[str, ...]]] = {
  None: (sample, dict(recipe='keep_recipe'), tuple(FILES)),
  'edits': (sample_list, dict(recipe='keep_recipe', edits='listed'), ('weights',)),
  'replay': (replay.replay, dict(recipe='keep_recipe', replay='path'), ()),
}
CHOICES = dict(
  sampler="(default: the weights' own)",
  zoom='into a window around a small mask: where it pays, never, always',
  match='the colours around the mask',
  exemplar_fit='how a picture that is not square becomes so',
  mask_resize="the mask to the latents' size: as the original does, or as diffusers",
)


def define_flags() -> None:
  """The arguments of `sample` and `sample_list`, as flags."""
  values = flags.FLAGS
  for name, what in FILES.items():
    flags.DEFINE_string(name, None, what, values)
  flags.DEFINE_string('exemplar_mask', None, "white on the exemplar's subject", values)
  flags.DEFINE_string('edits', None, 'a .jsonl or .csv list of edits, or a folder', values)
  flags.DEFINE_string('replay', None, 'an out.json, or its out.png: make that edit again', values)
  own = "(default: the weights' own)"
  flags.DEFINE_integer('steps', None, f'denoising steps {own}', *edits.BOUNDS['steps'], values)
  flags.DEFINE_float('scale', None, f'of guidance; 1 turns it off {own}', flag_values=values)
  flags.DEFINE_integer('seed', 0, 'of the first sample', *edits.BOUNDS['seed'], values)
  flags.DEFINE_integer(
    'num_samples', 1, 'with seeds that count up: out-0.png, ...', 1, 10**6, values
  )
  what = "the network's pixels over which the result fades in, inside the mask"
  flags.DEFINE_float('feather', DEFAULTS['feather'], what, flag_values=values)
  flags.DEFINE_bool('paste', True, 'keep every pixel outside the mask', values)
  for name, what in CHOICES.items():
    default = DEFAULTS.get(name)
    flags.DEFINE_enum(name, default, list(edits.CHOICES[name]), what, values)
  flags.DEFINE_enum('precision', None, ['float32', 'bfloat16'], f'to compute in {own}', values)
  flags.DEFINE_enum('which', 'ema', ['ema', 'params'], 'average of a run, or its last step', values)
  flags.DEFINE_string('revision', None, 'of weights on a hub', values)
  flags.DEFINE_integer(
    'batch_size', None, 'edits at once, on all devices together', 1, recipe.MOST, values
  )
  flags.DEFINE_bool('recipe', True, 'write out.json, and the recipe into the PNG too', values)
  flags.DEFINE_bool('skip_bad', False, 'leave out the edits of a list with faults', values)


def main(_: list[str]) -> None:
  """Open the door: files in, files out."""
  processes.join_processes()
  compilation.cache_compiled()
  names = (*FILES, *SETTINGS, *OTHERS)
  given = {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].present}
  mode = 'replay' if 'replay' in given else 'edits' if 'edits' in given else None
  function, rename, needed = MODES[mode]
  parameters = inspect.signature(function).parameters
  for name in list(given):
    own = rename.get(name, name)
    if own not in parameters and not ('settings' in parameters and name in SETTINGS):
      raise UserError(f'--{name} does not go with {f"--{mode}" if mode else "a single edit"}')
    given[own] = given.pop(name)
  for name in needed:
    if not given.get(rename.get(name, name)):
      raise UserError(f'--{name} is missing: name the {FILES[name]}')
  if jax.process_index():
    given['say'] = lambda line: None
  failed = None
  try:
    try:
      if mode != 'replay' or not jax.process_index():  # one edit is one process's work
        with heard():
          function(**given)
    except Exception as error:
      failed = error
    shares.end(failed)
  except KeyboardInterrupt:
    line = 'stopped; the same command goes on' if mode == 'edits' else 'stopped'
    print(f'\n{line}', file=sys.stderr)
    sys.exit(130)


if __name__ == '__main__':
  define_flags()
  doors.run(main)
