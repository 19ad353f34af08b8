"""One training step, and the program of a run: everything laid out on the mesh from settings."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from exedit.models import kernels, parameters
from exedit.models.parameters import Graph, Params
from exedit.runtime import compilation
from exedit.systems import System
from exedit.training import flops, sharding, state
from exedit.training.optimizer import fitted, learning_rate, make_optimizer
from exedit.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Program:
  """What a run computes; no arrays are allocated yet.

  graph: the model without its parameters.
  state, frozen: shapes with shardings, of the train state and of the parameters that do not train.
  init(key, given) -> (state, frozen parameters), made sharded. Parameters in `given` replace random
    ones, and their memory is reused.
  step(state, frozen, batch) -> (state, metrics): `train_step`, compiled; it reuses the memory of
    the state.
  accumulate: the number of parts of a batch.
  """

  system: System
  mesh: Mesh
  graph: Graph
  state: TrainState
  frozen: Params
  init: Callable
  step: Callable
  accumulate: int

  def loss(
    self, params: Params, frozen: Params, batch: Mapping[str, Array], key: Key[Array, '']
  ) -> tuple[Float[Array, ''], dict[str, Array]]:
    """`System.loss` as a function of the parameters."""
    assert self.system.loss is not None  # `systems.training` refuses other systems
    return self.system.loss(parameters.merge(self.graph, {**params, **frozen}), batch, key)

  def flops(self, batch: Mapping[str, Any]) -> float:
    """Model FLOPs of one step, counted on one part, because a loop's body is counted once."""
    part = {
      name: jax.ShapeDtypeStruct((rows.shape[0] // self.accumulate, *rows.shape[1:]), rows.dtype)
      for name, rows in batch.items()
    }

    def loss(params, frozen, part, key):
      return self.loss(params, frozen, part, key)[0]

    # Kernels of accelerators hide the products of their derivative; XLA's attention shows them.
    with kernels.traced_for(kernels.PLAIN):
      once = flops.training(loss, self.state.params, self.frozen, part, jax.random.key(0))
    return once * self.accumulate

  def peak(self) -> float | None:
    """The peak FLOP/s of all devices together; None if it is not known."""
    one = flops.peak(self.mesh.devices.flat[0].device_kind)
    return one and one * self.mesh.size


def make_program(
  system: System,
  *,
  model: Mapping[str, Any],
  optimizer: Mapping[str, Any],
  ema: Mapping[str, Any],
  mesh: Mapping[str, Any],
  trainable: str,
  batch_size: int,
  accumulate: int,
  seed: int,
  steps: int,
  devices: Sequence[Any] | None = None,
) -> Program:
  """Lays out a training on a mesh of all devices, or of those given (which may be a topology's).

  The other arguments are fields of `Config`.

  Raises:
    ValueError, TypeError: for a setting that is not allowed.
  """
  over = sharding.make_mesh(**mesh, devices=devices)
  sharding.check_batch(over, batch_size, accumulate)
  schedule, _ = fitted(optimizer, steps)
  tx = make_optimizer(**{'steps': steps, **schedule})
  average = state.Ema(**ema)
  abstract = nnx.eval_shape(lambda: system.build(**model, rngs=parameters.Keys(jax.random.key(0))))
  graph, params = parameters.flatten(abstract)

  def begin(params):
    chosen, frozen = parameters.split_trainable(params, trainable)
    return state.create(chosen, tx, ema=average.on), frozen

  def init(key, given={}):
    _, params = parameters.flatten(system.build(**model, rngs=parameters.Keys(key)))
    return begin({**params, **given})  # XLA removes the random numbers that are replaced

  shapes, frozen = jax.eval_shape(begin, params)
  layout, updated = sharding.layouts(shapes, over, mesh.get('sharding', sharding.DEFAULT))
  everywhere = sharding.replicated(over)
  step = functools.partial(
    train_step,
    system=system,
    graph=graph,
    tx=tx,
    ema=average,
    seed=seed,
    num_timesteps=abstract.schedule.num_steps if hasattr(abstract, 'schedule') else 0,
    accumulate=accumulate,
    mesh=over,
    specs={name: s.spec for name, s in layout.params.items()},
    updated={name: s.spec for name, s in updated.items()},
    dtypes=parameters.compute_dtypes(abstract),
  )
  # It runs once, so a CPU need not spend half a minute on optimising hundreds of random numbers.
  quick = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
  return Program(
    system=system,
    mesh=over,
    graph=graph,
    state=sharding.with_sharding(shapes, layout),
    frozen=sharding.with_sharding(frozen, jax.tree.map(lambda _: everywhere, frozen)),
    init=jax.jit(
      init, out_shardings=(layout, everywhere), donate_argnames='given', compiler_options=quick
    ),
    step=compiled(step, layout, over),
    accumulate=accumulate,
  )


def compiled(step: Callable, layout: TrainState, mesh: Mesh) -> Callable:
  """The step of one device as the step of all; each has its parts of the state and the batch."""
  everywhere, examples = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  specs = jax.tree.map(lambda s: s.spec, layout)
  return jax.jit(
    jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(specs, everywhere.spec, examples.spec),
      out_specs=(specs, everywhere.spec),
      check_vma=False,  # the types do not know that the result of a gather is the same everywhere
    ),
    in_shardings=(layout, everywhere, examples),
    out_shardings=(layout, everywhere),
    donate_argnums=0,
    compiler_options=compilation.compiler_options(mesh.devices.flat[0].platform),
  )


def train_step(
  old: TrainState,
  frozen: Params,
  batch: Mapping[str, Array],
  *,
  system: System,
  graph: Graph,
  tx: optax.GradientTransformationExtraArgs,
  ema: state.Ema,
  seed: int,
  num_timesteps: int,
  accumulate: int,
  mesh: Mesh,
  specs: sharding.Specs,
  updated: sharding.Specs,
  dtypes: Mapping[str, Any],
) -> tuple[TrainState, dict[str, Array]]:
  """One step of one device, inside shard_map; all random numbers depend on (seed, step, id) only.

  The device has its parts of the state and its examples of the batch. It gathers the parameters
  once, computes with whole ones, and updates its part of them. The devices exchange only the
  buckets and a few sums; the layers know nothing of other devices. A step without finite loss and
  gradient changes only the counts.

  specs, updated: how the parameters are split between two steps, and during the update. dtypes: the
  types that kernels are used in, by name.
  """
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), old.step)
  whole = sharding.gather(old.params, specs, mesh, dtypes)
  value, aux, grads = gradients(system, graph, whole, frozen, batch, key, accumulate)
  grads = sharding.mean(grads, updated, mesh)
  grad_norm = sharding.norm(grads, updated, mesh)

  sums = dict(loss=value, corrupt=batch['corrupt'].sum())
  if 't' in aux:
    found = state.timestep_buckets(aux['per_example'], aux['t'], num_timesteps)
    sums |= dict(zip(('bucket_sum', 'bucket_count'), found))
  others = {n: rows.mean() for n, rows in aux.items() if n not in ('per_example', 't')}
  sums, others = sharding.total((sums, others), mesh)
  value, corrupt = sums.pop('loss') / mesh.size, sums.pop('corrupt')
  finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)

  def update(tree):
    parts, average, opt_state = tree
    updates, opt_state = tx.update(grads, opt_state, parts, grad_norm=grad_norm)
    parts = cast(Params, optax.apply_updates(parts, updates))
    number = old.step + 1 - old.counts['skipped']
    return parts, ema.update(average, parts, number), opt_state

  moved = {name: updated[name] for name in specs if specs[name] != updated[name]}
  parts = {**old.params, **sharding.own({name: old.params[name] for name in moved}, moved, mesh)}
  parts, average, opt_state = state.guarded(finite, update, (parts, old.ema, old.opt_state))
  params = {**parts, **sharding.gather({name: parts[name] for name in moved}, moved, mesh)}
  new = dataclasses.replace(old, params=params, ema=average, opt_state=opt_state)
  new = state.counted(new, finite, corrupt)
  metrics = dict(
    loss=value,
    grad_norm=grad_norm,
    lr=learning_rate(opt_state),
    **{name: total / mesh.size for name, total in others.items()},
    **sums,
    **new.counts,
  )
  return new, metrics


def gradients(
  system: System,
  graph: Graph,
  params: Params,
  frozen: Params,
  batch: Mapping[str, Array],
  key: Key[Array, ''],
  accumulate: int,
) -> tuple[Float[Array, ''], dict[str, Array], Params]:
  """(loss, its auxiliary values by example, gradient): means over this device's part of the batch.

  The batch is computed in `accumulate` equal parts, one after the other; their gradients are summed
  in float32 and sent once per step.
  """

  assert (of_system := system.loss) is not None

  def loss(params, part):
    return of_system(parameters.merge(graph, {**params, **frozen}), part, key)

  grad = jax.value_and_grad(loss, has_aux=True)
  if accumulate == 1:
    (value, aux), grads = grad(params, batch)
    return value, aux, grads

  def split(rows):  # example i goes to part i % accumulate
    return rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1)

  def add(total, part):
    (value, aux), grads = grad(params, part)
    return jax.tree.map(jnp.add, total, (value, grads)), aux

  zeros = (jnp.zeros(()), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
  total, aux = jax.lax.scan(add, zeros, jax.tree.map(split, dict(batch)))
  value, grads = jax.tree.map(lambda x: x / accumulate, total)
  return value, jax.tree.map(lambda x: x.reshape(-1), aux), grads
