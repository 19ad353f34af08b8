"""The interface of a system, and the registry of all systems.

Training, sampling, evaluation, planning and the doors know a system only through `System`. To add
one, write a module with a `System` and add it to `_builtin`. See CONTRIBUTING.md.
"""

import dataclasses
import functools
import importlib
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exedit.runtime.errors import UserError

if TYPE_CHECKING:
  from flax import nnx

  from exedit.weights.found import Weights


@dataclasses.dataclass(frozen=True)
class Input:
  """One input of an edit: a flag of `exedit.sample`, a column of a list, an entry of a recipe.

  name: the flag and the column. A 'picture' needs the edit setting `<name>_fit`.
  kind: 'photo' (the picture to edit), 'mask' (the photo's region to repaint), 'picture' (another
    picture, given to the network as a square), 'cutout' (the mask of the subject in the picture
    `of`) or 'text'.
  help: one phrase for people.
  """

  name: str
  kind: str
  help: str
  required: bool = True
  of: str | None = None


@dataclasses.dataclass(frozen=True)
class Data:
  """The data of a training; every function takes `System.data_settings` as keyword arguments.

  batches(batch_size, seed, start, shard_index, shard_count, **data): an endless iterator of the
    batches behind the first `start` examples, {name: array [b ...]}, with `id` int32 [b] and
    `corrupt` int32 [b] among the names.
  held_out(count, **data): the first `count` validation examples, not augmented, with texts for
    people, which batches leave out.
  shapes(**data): {name: (shape, dtype)} of one example.
  survey(root, split, ...): a dataclass that describes the data; it must be equal in all processes.
    It gets those of the settings that it names.
  defaults(): the default values of the settings that make an example, such as `size`.
  """

  batches: Callable[..., Any]
  held_out: Callable[..., Any]
  shapes: Callable[..., dict[str, tuple[tuple[int, ...], Any]]]
  survey: Callable[..., Any]
  defaults: Callable[[], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Form:
  """What a person fills in for an edit; the first three fields of `System`."""

  name: str
  inputs: tuple[Input, ...]
  settings: type

  def inputs_of(self, *kinds: str) -> tuple[Input, ...]:
    """The inputs of these kinds, in order."""
    return tuple(entry for entry in self.inputs if entry.kind in kinds)


@dataclasses.dataclass(frozen=True)
class System(Form):
  """A system as a set of functions; it edits, or trains networks, or both.

  name: the value of `config.system`, and the `kind` of the system's weights.
  inputs: the inputs of an edit, in the order of the columns.
  settings: a frozen dataclass of the settings of one edit. Its fields are made by `setting`. It is
    a subclass of `editing.settings.EditSettings`, or of `PhotoSettings` if it has a photo.
  build(**model, rngs): the model; one of the settings is `dtype`, the name of the type that it
    computes in. The model has `multiple()` (its pictures have sides that are multiples of this
    number of pixels); `schedule`, if the loss has timesteps; `autoencoder`, if `moments` is given.
  complete(model): the same model settings with every default value, without the settings that only
    say how to compute. Two models with equal complete settings compute the same function.
  start(init_from, init_clip, model): the weights to start a training from, {path: unread Tensor}.
    None: those of the system itself, and the towers of a CLIP. starts_from: the names of other
    systems whose whole weights `start` takes; of all others a training can take parts (see
    `training.given`).
  data: the source of the batches.
  loss(model, batch, key): the mean loss, and {'per_example': [b], 't': timestep [b]}, without `t`
    if it has no timesteps. The log gets the mean of every other array [b]. None: the system only
    edits, with networks that other systems train; of `data` then only the `defaults` count.
  preview(model, examples, **edit): captions and rows of pictures and texts for the grids during a
    training. None: as `loss`.
  edit(model, arrays, keys, size, **settings): the edited pictures [b h w 3] in [-1, 1], as the
    network gives them. `arrays` holds the inputs by name, at (height, width) `size`. `keys` [b] is
    one random key for each picture. `settings` are the network's (see `setting`). It may also give
    a pair, the pictures and {name: array [b ...]} of what else is known of each edit: `region`
    [b h w 1] is 1 where the picture may differ from the photo, `words` [b h w m] are the maps of
    the tokens of `prompt`, and those called `kept_...` are arrays for a next edit, see `kept`.
    None: the system only trains networks that other systems take.
  picture_size(model): the side in pixels of a 'picture' input, from the model settings.
  mask_grid(model): the network's latents see a mask only at every such pixel of rows and columns,
    from the model settings; 1: everywhere.
  tokenizer(weights): a function of a text that gives the array that `edit` gets for a 'text' input;
    its `cut(text)` is the end of a text that is too long. See `input_pipeline.tokenizer`.
  together(inputs, settings, tokenizer): further arrays for `edit` by name, of the texts and
    settings of one edit that have a meaning only together, and notes for the user. It raises
    UserError for those that do not go together. `inputs` are texts and paths by name; without a
    tokenizer it only checks what needs no vocabulary.
  kept(inputs, settings): the texts and settings on which the arrays `kept_...` depend, besides the
    weights and the photo; None: there are none. `edit` uses them instead of making them again.
  data_settings(config, workdir): the settings that `data` takes: `config.data`, and what it needs
    of the rest of a training's config, which is a mapping. With a `workdir` the settings also name
    files, such as the folder of a `tokenizer`, and weights may be fetched for them. The training
    copies that folder into the workdir.
  moments(autoencoder, image, mask): the moments that `exedit.encode` stores. None: the system does
    not train on stored latents.
  """

  build: Callable[..., Any]
  complete: Callable[[Mapping[str, Any]], dict[str, Any]]
  data: Data
  loss: Callable[..., Any] | None = None
  preview: Callable[..., tuple[Sequence[str], list[list[Any]]]] | None = None
  edit: Callable[..., Any] | None = None
  start: Callable[..., dict[str, Any]] | None = None
  starts_from: tuple[str, ...] = ()
  picture_size: Callable[[Mapping[str, Any]], int] = lambda model: 0
  mask_grid: Callable[[Mapping[str, Any]], int] = lambda model: 1
  tokenizer: Callable[['Weights'], Any] | None = None
  together: Callable[..., tuple[dict[str, Any], list[str]]] = lambda inputs, settings, spell: (
    {},
    [],
  )
  kept: Callable[..., dict[str, Any] | None] = lambda inputs, settings: None
  moments: Callable[..., Any] | None = None
  completed: Callable[..., dict[str, Any]] = lambda tensors, config: dict(tensors)
  outcome: Callable[..., None] | None = None
  data_settings: Callable[..., dict[str, Any]] = lambda config, workdir=None: dict(config['data'])


# The registry

_registered: dict[str, System] = {}


@functools.cache
def _builtin() -> dict[str, System]:
  """The systems of this package. They are imported here because they import this module."""
  from exedit import autoencoder_kl, contrastive, custom_edit, paint_by_example, stable_diffusion
  from exedit import blended_diffusion as blended
  from exedit import stable_diffusion_inpainting as inpainting

  modules = (paint_by_example, stable_diffusion, inpainting, blended, autoencoder_kl, contrastive)
  modules += (custom_edit,)
  return {module.SYSTEM.name: module.SYSTEM for module in modules}


def _builtin_forms() -> tuple[Form, ...]:
  """Forms of the systems of `_builtin`, from modules that import no JAX: see `forms`."""
  from exedit import autoencoder_form, clip_form, custom_edit_form
  from exedit import blended_diffusion_form as blended
  from exedit import paint_by_example_form as paint_by_example
  from exedit import stable_diffusion_form as by_text

  modules = (paint_by_example, by_text, blended, autoencoder_form, clip_form, custom_edit_form)
  return *(module.FORM for module in modules), by_text.INPAINTING


def register(system: System) -> System:
  """Add a system that lives outside this package; returns it."""
  _registered[system.name] = system
  return system


def all_systems() -> dict[str, System]:
  """Every known system by its name.

  The environment variable EXEDIT_SYSTEMS names further modules, separated by commas. They are
  imported here, and each has a `SYSTEM` or calls `register`.

  Raises:
    UserError: for a module that cannot be imported.
  """
  _import_named()
  return {**_builtin(), **_registered}


def forms() -> dict[str, Form]:
  """The form of every known system by its name.

  A door makes its flags of them, and answers a misspelt flag before JAX is imported. Of the systems
  outside this package (see `all_systems`) the whole modules are imported.
  """
  _import_named()
  return {form.name: form for form in (*_builtin_forms(), *_registered.values())}


def _import_named() -> None:
  for module in filter(None, os.environ.get('EXEDIT_SYSTEMS', '').split(',')):
    try:
      found = importlib.import_module(module)
      if isinstance(system := getattr(found, 'SYSTEM', None), System):
        register(system)
    except ImportError as error:
      raise UserError(
        f'EXEDIT_SYSTEMS names {module}, which cannot be imported ({error}): correct it, or put '
        'the folder of the module on PYTHONPATH'
      ) from error


def get(name: str) -> System:
  """The system of this name.

  Raises:
    UserError: if there is none; the line names the known ones.
  """
  known = all_systems()
  if name not in known:
    raise UserError(f"config.system is '{name}'; use one of {', '.join(known)}")
  return known[name]


def training(name: str) -> System:
  """The system of this name, to train its networks.

  Raises:
    UserError: if there is none, and for one that only edits.
  """
  system = get(name)
  if system.loss is None:
    able = ', '.join(name for name, known in all_systems().items() if known.loss)
    raise UserError(
      f"config.system is '{name}', which only edits, with networks that other systems train: train "
      f'one of {able}'
    )
  return system


def of(weights: 'Weights') -> System:
  """The system that these weights belong to.

  Raises:
    UserError: for weights of no known system.
  """
  known = all_systems()
  if weights.kind not in known:
    raise UserError(
      f'{weights.where} holds weights of the system {weights.kind!r}; this exedit edits with '
      f'{", ".join(known)}'
    )
  return known[weights.kind]


def editing(weights: 'Weights') -> System:
  """The system that edits with these weights.

  Raises:
    UserError: for weights of no known system, and of one that only trains.
  """
  system = of(weights)
  if system.edit is None:
    able = ', '.join(name for name, known in all_systems().items() if known.edit)
    raise UserError(
      f'{weights.where} holds weights of {system.name}, which edits nothing: a training takes them '
      f'as --config.init_from; to edit, name weights of {able}'
    )
  return system


def load(weights: 'Weights', dtype: str | None = None) -> 'nnx.Module':
  """The model with these weights; see `latent_diffusion.load`."""
  from exedit import latent_diffusion

  return latent_diffusion.load(of(weights).build, weights, dtype)


# The settings of an edit


def setting(
  default: Any,
  help: str,
  *,
  choices: Sequence[str] = (),
  bounds: tuple[float | int, float | int] | None = None,
  read: Callable[[Any], Any] | None = None,
  network: bool = False,
) -> Any:
  """A field of a settings dataclass.

  choices: the allowed words. bounds: the least and the greatest number. read: makes the value of
  what is given, or raises UserError; equal values must be equal as JSON. network: the value is an
  argument of `System.edit`, so one compiled function serves one value.
  """
  metadata = dict(help=help, choices=tuple(choices), bounds=bounds, read=read, network=network)
  return dataclasses.field(default=default, metadata=metadata)


def network_settings(settings: Any) -> dict[str, Any]:
  """The settings that are arguments of `System.edit`."""
  fields = dataclasses.fields(settings)
  return {f.name: getattr(settings, f.name) for f in fields if f.metadata['network']}


def check_setting(settings: type, name: str, given: Any) -> Any:
  """A value as the type of its field; text such as '2.5' and 'yes' is converted.

  Raises:
    UserError: for a value of another type, out of bounds, or not among the choices.
  """
  field = next(f for f in dataclasses.fields(settings) if f.name == name)
  if read := field.metadata['read']:
    return read(given)
  if given is None and field.default is None:
    return None
  kind = kind_of(field)
  try:
    found = _converted(kind, given)
  except (ValueError, OverflowError):
    words = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a word'}
    comma = kind in (int, float) and ',' in str(given)
    hint = ', with a point for decimals and no comma' if comma else ''
    raise UserError(f'{name} is {given!r:.40}: it must be {words[kind]}{hint}') from None
  bounds, choices = field.metadata['bounds'], field.metadata['choices']
  if bounds and not bounds[0] <= found <= bounds[1]:  # False for NaN
    raise UserError(f'{name} is {found}: it must be between {bounds[0]} and {bounds[1]}')
  if choices and found not in choices:
    raise UserError(f'{name} is {found!r:.40}: use one of {", ".join(choices)}')
  return found


def kind_of(field: dataclasses.Field) -> Any:
  """The type of a setting; that of a setting that may be None without the None."""
  kinds = [kind for kind in typing.get_args(field.type) if kind is not type(None)]
  return kinds[0] if kinds else field.type


def _converted(kind: Any, given: Any) -> Any:
  """A cell of a list or a JSON value as `kind`; 3.0 is a whole number, and true is no number."""
  if kind is bool:
    word = str(given).strip().lower().removesuffix('.0')
    if word not in ('true', 'yes', '1', 'false', 'no', '0'):
      raise ValueError
    return word in ('true', 'yes', '1')
  if kind is str:
    if not isinstance(given, str):
      raise ValueError
    return given
  if isinstance(given, bool) or not isinstance(given, int | float | str):
    raise ValueError
  if kind is int and isinstance(given, str) and '.' in given:  # pandas writes 3.0
    given = float(given)
  if kind is int and isinstance(given, float) and not given.is_integer():
    raise ValueError
  return kind(given)


def make_settings(system: System, values: Mapping[str, Any]) -> Any:
  """The settings dataclass of a system with these values, each checked; None means the default."""
  known = [field.name for field in dataclasses.fields(system.settings)]
  if unknown := set(values) - set(known):
    raise TypeError(f'unexpected settings: {", ".join(sorted(unknown))}')
  checked = {
    name: check_setting(system.settings, name, value)
    for name, value in values.items()
    if value is not None
  }
  return system.settings(**checked)


def edit_settings(
  system: System, config: Mapping[str, Any], where: str = '', **given: Any
) -> dict[str, Any]:
  """The network's settings of an edit: those given, else the config's `edit`, else the defaults.

  config: the config of a training or of weights. where: its place, for error messages. given:
  settings by name; None means not given.

  Raises:
    UserError: for a value that is not allowed; for steps that the weights' schedule does not have.
  """
  fields = [f for f in dataclasses.fields(system.settings) if f.metadata['network']]
  told = config.get('edit', {})
  found, name = {}, 'steps'
  try:
    for field in fields:
      name, value = field.name, given.get(field.name)
      value = told.get(name, field.default) if value is None else value
      found[name] = check_setting(system.settings, name, value)
    name = 'steps'
    check_steps(found, most_steps(config))
  except UserError as error:
    from_config = given.get(name) is None and name in told
    raise UserError(f'{where}: {error}' if where and from_config else str(error)) from None
  return found


def most_steps(config: Mapping[str, Any]) -> int:
  """The largest number of sampling steps with these weights.

  It is one less than the number of training timesteps, because timestep 0 is the end of sampling
  (docs/facts.md, Schedule and timesteps).
  """
  from exedit.diffusion.schedule import Schedule

  schedule = config.get('model', {}).get('schedule', {})
  return schedule.get('num_steps', Schedule.num_steps) - 1


def check_steps(settings: Mapping[str, Any], most: int) -> None:
  """Check the steps of an edit; settings without `steps` have nothing to check.

  most: see `most_steps`.

  Raises:
    UserError: if the weights' schedule does not have the timesteps that the settings ask for.
  """
  from exedit import latent_diffusion
  from exedit.diffusion.schedule import Schedule

  if 'steps' not in settings:
    return
  steps = settings['steps']
  if not 1 <= steps <= most:
    raise UserError(
      f"steps is {steps}: it must be between 1 and {most}, because the weights' schedule has "
      f'{most + 1} timesteps'
    )
  asked = {n: settings[n] for n in ('steps', 'sampler', 'spacing') if n in settings}
  if 'spacing' in asked:
    try:
      latent_diffusion.timesteps(Schedule(num_steps=most + 1), **asked)
    except ValueError as error:
      raise UserError(str(error)) from None


def trained_on(system: System, config: Mapping[str, Any], name: str) -> Any:
  """The value of a data setting in the config, such as `size`, or its default."""
  return config['data'].get(name, system.data.defaults()[name])
