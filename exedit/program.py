"""What a run computes: the step, and everything laid out on the mesh from settings alone."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from exedit import paint_by_example
from exedit.training import flops, optimizer, state
from exedit.training import mesh as meshes
from exedit.training.state import Graph, Params, TrainState

SYSTEMS: dict[str, ModuleType] = {'paint_by_example': paint_by_example}


@dataclasses.dataclass(frozen=True)
class Program:
  """What a run computes, made from settings alone; nothing is allocated yet.

  now and frozen are shapes with shardings. init(key, given) -> (state, frozen parameters), born
  sharded; parameters by name in `given` replace random ones, and their memory is taken over.
  step(state, frozen, batch) -> (state, metrics) donates the state. compute is one part's loss.
  """

  system: ModuleType
  mesh: Mesh
  graph: Graph
  now: TrainState
  frozen: Params
  init: Callable
  step: Callable
  compute: Callable
  accumulate: int

  def flops(self, batch: Mapping[str, Any]) -> float:
    """Model FLOPs of one step, counted on one part (a loop's body would be counted once)."""
    part = {
      name: jax.ShapeDtypeStruct((rows.shape[0] // self.accumulate, *rows.shape[1:]), rows.dtype)
      for name, rows in batch.items()
    }

    def loss(params, frozen, part, key):
      return self.compute(params, frozen, part, key)[0]

    once = flops.training(loss, self.now.params, self.frozen, part, jax.random.key(0))
    return once * self.accumulate

  def peak(self) -> float | None:
    """FLOP/s of all devices together at their best, where that is known."""
    one = flops.peak(self.mesh.devices.flat[0].device_kind)
    return one and one * self.mesh.size


def make_program(
  system: ModuleType,
  model: Mapping[str, Any],
  optimizer_settings: Mapping[str, Any],
  ema: Mapping[str, Any],
  mesh: Mapping[str, Any],
  trainable: str,
  batch_size: int,
  accumulate: int,
  seed: int,
  steps: int,
) -> Program:
  """Lay everything out on the mesh; ValueError or TypeError where a setting cannot be."""
  devices = meshes.make(**mesh)
  meshes.check_batch(devices, batch_size, accumulate)
  tx = optimizer.make(**{'steps': steps, **optimizer_settings})
  average = state.Ema(**ema)
  abstract = nnx.eval_shape(lambda: system.build(**model, rngs=state.Keys(jax.random.key(0))))
  graph, params = state.flatten(abstract)

  def fresh(key, given={}):
    _, params = state.flatten(system.build(**model, rngs=state.Keys(key)))
    return begin({**params, **given})  # what is not used is never drawn

  def begin(params):
    chosen, frozen = state.split_trainable(params, trainable)
    return state.create(chosen, tx, ema=average.on), frozen

  shapes, frozen = jax.eval_shape(begin, params)
  everywhere = meshes.replicated(devices)
  # Runs once: on a CPU half a minute of optimising hundreds of random draws is not worth it.
  quick = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
  layout = meshes.shardings(shapes, devices)
  compute = functools.partial(objective, loss=system.loss, graph=graph)
  step = functools.partial(
    train_step,
    loss=system.loss,
    graph=graph,
    tx=tx,
    ema=average,
    seed=seed,
    num_timesteps=abstract.schedule.num_steps,
    accumulate=accumulate,
    mesh=devices,
  )
  return Program(
    system=system,
    mesh=devices,
    graph=graph,
    now=with_sharding(shapes, layout),
    frozen=with_sharding(frozen, jax.tree.map(lambda _: everywhere, frozen)),
    init=jax.jit(
      fresh,
      out_shardings=(layout, everywhere),
      donate_argnames='given',
      compiler_options=quick,
    ),
    step=jax.jit(
      step,
      in_shardings=(layout, everywhere, meshes.batch_sharding(devices)),
      out_shardings=(layout, everywhere),
      donate_argnums=0,
    ),
    compute=compute,
    accumulate=accumulate,
  )


def with_sharding(shapes: Any, layout: Any) -> Any:
  """Shapes that also say where they lie."""
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, layout
  )


def train_step(
  now: TrainState,
  frozen: Params,
  batch: Mapping[str, Array],
  *,
  loss: Callable,
  graph: Graph,
  tx: optax.GradientTransformation,
  ema: state.Ema,
  seed: int,
  num_timesteps: int,
  accumulate: int,
  mesh: Mesh,
) -> tuple[TrainState, dict[str, Array]]:
  """One step on one batch, a pure function; every random number is keyed by (seed, step, id).

  A step whose loss or gradient is not finite changes nothing but the counts.
  """
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), now.step)
  compute = functools.partial(objective, loss=loss, graph=graph)
  value, aux, grads = gradients(compute, now.params, frozen, batch, key, accumulate, mesh)
  # The optimizer's layout: each device reduces only the part that it updates.
  grads = jax.lax.with_sharding_constraint(grads, meshes.shardings(grads, mesh))
  grad_norm = optax.tree.norm(grads)

  updates, opt_state = tx.update(grads, now.opt_state, now.params)
  params = optax.apply_updates(now.params, updates)
  average = ema.update(now.ema, params, now.step - now.counts['skipped'])
  new = dataclasses.replace(now, params=params, ema=average, opt_state=opt_state)
  finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
  new = state.guarded(now, new, finite, batch['corrupt'].sum())

  sums, counts = state.timestep_buckets(aux['per_example'], aux['t'], num_timesteps)
  metrics = dict(
    loss=value,
    grad_norm=grad_norm,
    lr=optimizer.learning_rate(opt_state),
    bucket_sum=sums,
    bucket_count=counts,
    **new.counts,
  )
  return new, metrics


def objective(
  params: Params, frozen: Params, batch: Mapping[str, Array], key: Key[Array, ''], *, loss, graph
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The system's loss as a function of the trainable parameters."""
  return loss(state.merge(graph, {**params, **frozen}), batch, key)


def gradients(
  compute: Callable,
  params: Params,
  frozen: Params,
  batch: Mapping[str, Array],
  key: Key[Array, ''],
  accumulate: int,
  mesh: Mesh,
) -> tuple[Float[Array, ''], dict[str, Array], Params]:
  """Loss, its parts by example, and the gradient: means over the batch, taken in equal parts."""
  grad = jax.value_and_grad(compute, has_aux=True)
  if accumulate == 1:
    (value, aux), grads = grad(params, frozen, batch, key)
    return value, aux, grads

  def split(rows):  # example i to part i % accumulate, so that each part is spread as the batch is
    parts = rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(parts, meshes.micro_batch_sharding(mesh))

  def add(total, part):
    (value, aux), grads = grad(params, frozen, part, key)
    return jax.tree.map(jnp.add, total, (value, grads)), aux

  zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
  total, aux = jax.lax.scan(add, zeros, jax.tree.map(split, dict(batch)))
  value, grads = jax.tree.map(lambda x: x / accumulate, total)
  return value, jax.tree.map(lambda x: x.reshape(-1), aux), grads
