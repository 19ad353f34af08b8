"""Edits from files to files: weights, the model on its devices, outputs with their recipes."""

import dataclasses
import functools
import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from exedit import images, systems
from exedit.concepts import files as concepts
from exedit.editing import framing, jobs, photo, prompts
from exedit.editing import recipe as recipes
from exedit.editing.engine import Batch, Engine, Result, Work
from exedit.editing.settings import saved_evaluations
from exedit.runtime import files
from exedit.runtime.errors import UserError, one_line

KEPT_FORMAT = 1  # of the files of inversions; increase it when `text_editing.invert` changes
RELEASED = dict(paint_by_example='Fantasy-Studio/Paint-by-Example')  # by system, on the hub


@dataclasses.dataclass(frozen=True)
class Made:
  """One written output.

  old: in words, what became of the file that had its name; or empty. background: how near the part
  that should stay is to the photo's, as PSNR in dB; None if every pixel of it is the photo's own.
  """

  job: jobs.Job
  path: str
  recipe: recipes.Recipe
  old: str = ''
  background: float | None = None


@dataclasses.dataclass(frozen=True)
class Decoded:
  """The inputs of one edit at their own size; `given` is what `photo.prepare` takes.

  photo: None for a system without a photo, and then so is region, the part to repaint.
  """

  photo: images.Photo | None
  region: Bool[np.ndarray, 'h w'] | None
  given: dict[str, Any]


class Pace:
  """The seconds of a run; the first batch is apart because it includes the compilation."""

  def __init__(self):
    self.times, self.counts = [time.perf_counter()], []

  def made(self, count: int) -> None:
    """Notes that a batch with this number of edits is done."""
    self.times.append(time.perf_counter())
    self.counts.append(count)

  def seconds(self) -> float:
    return self.times[-1] - self.times[0]

  def text(self) -> str:
    """For example 'first 12.3 s with compiling, then 2.1 s each'."""
    batch = 'first' if self.counts[0] == 1 else f'first {self.counts[0]} in'
    words = f'{batch} {self.times[1] - self.times[0]:.1f} s with compiling'
    rest = sum(self.counts[1:])
    each = (self.times[-1] - self.times[1]) / max(rest, 1)
    return words + (f', then {each:.2g} s each' if rest else '')


class Session:
  """Weights to edit with. The constructor reads their headers, `load` reads the tensors."""

  def __init__(
    self,
    weights: str,
    *,
    which: str = 'ema',
    revision: str | None = None,
    precision: str | None = None,
    keep_recipes: bool = True,
    keep: bool = False,
    concept: str | Sequence[tuple[str, str]] | None = None,
    force: bool = False,
  ):
    """keep: an output that is replaced keeps its old file under another name.

    concept, force: see `concepts.files.weights`.
    """
    self.found = concepts.weights(weights, concept, which, revision, force=force)
    self.config = self.found.config
    self.system = systems.editing(self.found)
    self.trained = systems.trained_on(self.system, self.config, 'size')
    self.grid = self.system.mask_grid(self.config['model'])
    self.most_steps = systems.most_steps(self.config)
    self.precision = precision or self.config['model'].get('dtype', 'float32')
    self.keep_recipes, self.keep = keep_recipes, keep
    self._weights, self._concepts = weights, concepts.split(concept)
    self._named = dict(which=which, revision=revision, step=self.found.step)
    self._lock, self._digest = threading.Lock(), ''
    self._sha256 = functools.cache(files.sha256)

  @property
  def digest(self) -> str:
    """The name of the weights in a recipe. It is computed once, by the first thread that asks."""
    with self._lock:
      if not self._digest:
        model = self.system.complete(self.config['model'])
        words = self.found.tokenizer_digest()
        self._digest = recipes.identity(self.found.digest(), model, words)
    return self._digest

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The function that turns a text into tokens; None for a system without texts."""
    return self.system.tokenizer(self.found) if self.system.tokenizer else None

  @functools.cached_property
  def versions(self) -> dict[str, Any]:
    """The versions that a recipe records."""
    return recipes.versions()

  def settings(self, **given: Any) -> Any:
    """The settings given, else the weights' own, else the defaults, as the system's dataclass.

    Raises:
      UserError: for a setting that the system does not have, or a value that is not allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(self.system.settings)}
    for name in given:
      if name not in fields:
        raise UserError(f'{name} is not a setting of {self.system.name}: leave it out')
    network = {n: v for n, v in given.items() if fields[n].metadata['network']}
    own = systems.edit_settings(self.system, self.config, self.found.where, **network)
    return systems.make_settings(self.system, {**given, **own})

  def notes(self) -> list[str]:
    """What to tell about the weights."""
    root = str(self.config['data'].get('root', ''))
    if not self.config.get('synthetic') and os.path.basename(root.rstrip('/')) != 'synthetic':
      return [*self.found.notes]
    what = f'these weights were trained on drawn scenes of {self.trained} pixels'
    remedy = 'for photos use weights that were trained on photos'
    known = RELEASED.get(self.system.name)
    return [*self.found.notes, f'{what}; {remedy}{f", --weights={known}" if known else ""}']

  def saved(self, edit: jobs.Edit) -> str:
    """See `settings.saved_evaluations`."""
    settings = systems.network_settings(edit.settings)
    photo = any(entry.name in edit.inputs for entry in self.system.inputs_of('photo'))
    return saved_evaluations(settings, self.most_steps, photo)

  def asked(self, edit: jobs.Edit) -> dict[str, Any]:
    """`Recipe.asked` of the output that this session would make."""
    settings = dataclasses.asdict(edit.settings)
    return recipes.asked(self.digest, self._inputs(edit, ''), settings, self.precision)

  def state(self, job: jobs.Job) -> str:
    """'yes', 'no' or 'changed': see `recipe.finished`."""
    if not os.path.exists(images.recipe_path(job.edit.output)):
      return 'no'
    with jobs.PHOTOS.taken(job.pixels):
      return recipes.finished(job.edit.output, self.asked(job.edit))

  def load(self, devices: Sequence[Any]) -> Engine:
    """Reads the weights onto these devices; UserError if they are damaged."""
    model = systems.load(self.found, dtype=self.precision)
    return Engine(self.system, model, devices)

  def works(self, found: Sequence[jobs.Job]) -> list[Work]:
    """The engine's description of these jobs."""
    optional = {e.name for e in self.system.inputs_of('photo', 'picture', 'text') if not e.required}
    return [
      Work(
        job,
        job.frame.size,
        systems.network_settings(job.edit.settings),
        tuple(name for name in job.edit.inputs if name in optional),
      )
      for job in found
    ]

  def run(
    self,
    engine: Engine,
    batches: Sequence[Batch],
    *,
    bad: Callable[[jobs.Job, str], Any] | None = None,
    pace: Pace,
    known: tuple[Decoded, dict[str, np.ndarray]] | None = None,
    lag: int = 0,
  ) -> Iterator[list[Made]]:
    """Makes these batches; yields each batch once its files are written.

    Args:
      bad, lag: see `Engine.run`. pace: counts each batch when the devices have computed it.
      known: the decoded inputs of all jobs and their arrays, if all jobs are samples of one edit.
        Otherwise each photo is decoded twice, before and after the network, so that photos do not
        take memory while they wait: `jobs.PHOTOS` limits those in work at the same time.
    Raises:
      UserError: for a result that is not finite.
    """
    if self.keep_recipes:  # hash the weights while XLA compiles
      threading.Thread(target=lambda: self.digest, daemon=True).start()

    def read(job):
      arrays, decoded = (known[1], known[0]) if known else (self.read(job), None)
      return arrays | self._kept_arrays(job), decoded

    def write(result):
      with jobs.PHOTOS.taken(result.item.pixels):
        return self._write(result, result.kept or self.decode(result.item.edit, 'photo', 'mask'))

    key = lambda job: own_key(job.edit.settings.seed)
    return engine.run(batches, read, write, key=key, bad=bad, arrived=pace.made, lag=lag)

  def read(self, job: jobs.Job) -> dict[str, np.ndarray]:
    """The network's arrays of one job; UserError for a damaged file."""
    with jobs.PHOTOS.taken(job.pixels):
      return self.prepare(job, self.decode(job.edit))

  def decode(self, edit: jobs.Edit, *kinds: str) -> Decoded:
    """Decodes the inputs of these kinds, or all inputs; UserError for a damaged file."""
    whole, given = None, {}
    for entry in self.system.inputs:
      path = edit.inputs.get(entry.name)
      if path is None or (kinds and entry.kind not in kinds):
        continue
      if entry.kind == 'text':
        given[entry.name] = path
      elif entry.kind == 'photo':
        whole = images.read_photo(path)
        given[entry.name] = whole.rgb
      elif entry.kind == 'picture':
        given[entry.name] = images.read(path)
    for entry in self.system.inputs_of('mask', 'cutout'):
      if entry.name in edit.inputs and (not kinds or entry.kind in kinds):
        of = entry.of or next((e.name for e in self.system.inputs_of('photo')), '')
        size = given[of].shape[:2] if of in given else None
        given[entry.name] = jobs.read_mask(edit, entry, size)
    return Decoded(whole, photo.painted_region(self.system.inputs, given), given)

  def prepare(self, job: jobs.Job, decoded: Decoded) -> dict[str, np.ndarray]:
    """The network's arrays of one job with these decoded inputs."""
    model = self.config['model']
    size = self.system.picture_size(model) if self.system.inputs_of('picture') else 0
    arrays = photo.prepare(
      self.system.inputs, decoded.given, job.edit.settings,
      trained=self.trained, picture_size=size, tokens=self.tokenizer, frame=job.frame,
    ).arrays  # fmt: skip
    return arrays | self.system.together(job.edit.inputs, job.edit.settings, self.tokenizer)[0]

  def later(self, found: Sequence[jobs.Job]) -> set[str]:
    """The outputs of those jobs whose photo another one of them inverts, and keeps, before."""
    outputs: set[str] = set()
    first: set[str] = set()
    for job in found:
      path = self._kept_path(job)
      if path is None or os.path.exists(path):
        continue
      if path in first:
        outputs.add(job.edit.output)
      first.add(path)
    return outputs

  def _kept_path(self, job: jobs.Job) -> str | None:
    """The file for the inversion of this edit's photo; None if it keeps none."""
    edit = job.edit
    found = self.system.kept(edit.inputs, edit.settings)
    if found is None or not self.keep_recipes:
      return None
    photos = [self._sha256(edit.inputs[e.name]) for e in self.system.inputs_of('photo')]
    parts = [KEPT_FORMAT, self.digest, self.precision, dataclasses.asdict(job.frame), found, photos]
    name = recipes.text_digest(json.dumps(parts, sort_keys=True))[:16]
    return os.path.join(os.path.dirname(edit.output), f'inversion-{name}.npz')

  def _kept_arrays(self, job: jobs.Job) -> dict[str, np.ndarray]:
    """The inversion that an earlier edit has kept; {} if there is none."""
    path = self._kept_path(job)
    if path is None:
      return {}
    try:
      with np.load(path, allow_pickle=False) as found:
        return dict(found)
    except FileNotFoundError:
      return {}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
      raise UserError(f'{path} is damaged ({one_line(error)}): delete it') from None

  def _keep(self, result: Result) -> None:
    """Keeps the arrays that a next edit can take."""
    arrays: dict[str, Any] = {
      name: a for name, a in result.seen.items() if name.startswith(prompts.KEPT)
    }
    path = self._kept_path(result.item)
    if arrays and path and not os.path.exists(path):
      data = io.BytesIO()
      np.savez(data, **arrays)
      files.write_all({path: data.getvalue()})

  def _write(self, result: Result, decoded: Decoded) -> Made:
    """Saves one output, with its recipe in it and beside it."""
    job, edit = result.item, result.item.edit
    pixels = photo.finish(
      job.frame, result.raw, decoded.photo, decoded.region, edit.settings,
      alpha=images.holds_alpha(edit.output), name=edit.output,
    )  # fmt: skip
    folder = os.path.dirname(edit.output)
    os.makedirs(folder or '.', exist_ok=True)
    recipe = recipes.Recipe(
      weights=dict(
        source=recipes.relative(self._weights, folder),
        **self._named,
        **recipes.concepts(self._concepts, folder),
        digest=self.digest if self.keep_recipes else '',
      ),
      inputs=self._inputs(edit, folder) if self.keep_recipes else {},
      settings=recipes.as_used(dataclasses.asdict(edit.settings), edit.inputs),
      precision=self.precision,
      frame=job.frame,
      batch=result.per_device,
      versions=self.versions,
      output=recipes.describe(edit.output, pixels),
    )
    old = 'replaced' if os.path.exists(edit.output) else ''
    if old and self.keep:
      old = files.keep_old(edit.output, images.recipe_path(edit.output))
      old = f'the old one is kept as {old}'
    if not self.keep_recipes:
      recipes.forget(edit.output)
    path = images.save(
      pixels,
      edit.output,
      icc_profile=decoded.photo.icc_profile if decoded.photo else None,
      recipe=recipe.text() if self.keep_recipes else None,
    )
    if getattr(edit.settings, 'show_words', False) and 'words' in result.seen:
      assert decoded.photo is not None  # words are seen in a photo
      grown = [side * self.grid for side in result.seen['region'].shape[:2]]
      given = edit.inputs['prompt'], self.tokenizer, result.seen['words'], grown
      shown = images.to_uint8(framing.cut(job.frame, decoded.photo.rgb))
      sheet = images.words_path(edit.output)
      if self.keep and os.path.exists(sheet):
        files.keep_old(sheet)
      images.save(prompts.sheet(*given, shown), sheet)
    self._keep(result)
    region, background = result.seen.get('region'), None
    if region is not None and decoded.photo is not None and 'mask' not in edit.inputs:
      background = photo.background(job.frame, pixels, decoded.photo.rgb, region, self.grid)
    return Made(job, path, recipe, old, background)

  def _inputs(self, edit, folder) -> dict[str, dict[str, str]]:
    """The `inputs` of a recipe that lies in this folder."""
    texts = {entry.name for entry in self.system.inputs_of('text')}
    return {
      name: dict(text=value, sha256=recipes.text_digest(value))
      if name in texts
      else dict(path=recipes.relative(value, folder), sha256=self._sha256(value))
      for name, value in edit.inputs.items()
    }


def own_key(seed: int) -> jax.Array:
  """The key with which a notebook's `edit` makes the first picture of `jax.random.key(seed)`."""
  return jax.random.fold_in(jax.random.key(seed), 0)


def sweep(outputs: Sequence[str]) -> None:
  """Removes what killed runs left under temporary names beside these outputs."""
  beside = images.recipe_path, images.words_path
  paths = [*outputs, *(place(path) for path in outputs for place in beside)]
  names: dict[str, set[str]] = {}
  for path in paths:
    folder, name = os.path.split(os.path.abspath(path))
    names.setdefault(folder, set()).add(name)
  for folder, own in names.items():
    files.sweep(folder, own.__contains__)
