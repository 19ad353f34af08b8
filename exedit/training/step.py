"""What a run computes: the step, and everything laid out on the mesh from settings alone."""

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
from exedit.training import flops, optimizer, sharding, state
from exedit.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Program:
  """What a run computes, made from settings alone; nothing is allocated yet.

  now and frozen are shapes with shardings. init(key, given) -> (state, frozen parameters), born
  sharded; parameters by name in `given` replace random ones, and their memory is taken over.
  step(state, frozen, batch) -> (state, metrics) donates the state. compute is one part's loss.
  """

  system: System
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

    # Kernels of accelerators hide their derivative's products; XLA's attention has the same ones.
    with kernels.traced_for(kernels.PLAIN):
      once = flops.training(loss, self.now.params, self.frozen, part, jax.random.key(0))
    return once * self.accumulate

  def peak(self) -> float | None:
    """FLOP/s of all devices together at their best, where that is known."""
    one = flops.peak(self.mesh.devices.flat[0].device_kind)
    return one and one * self.mesh.size


def make_program(
  system: System,
  model: Mapping[str, Any],
  optimizer_settings: Mapping[str, Any],
  ema: Mapping[str, Any],
  mesh: Mapping[str, Any],
  trainable: str,
  batch_size: int,
  accumulate: int,
  seed: int,
  steps: int,
  devices: Sequence[Any] | None = None,
) -> Program:
  """Lay everything out on a mesh of all devices, or of those given (which may be a topology's).

  The other arguments are settings, as in train.py; ValueError or TypeError where one cannot be.
  """
  over = sharding.make_mesh(**mesh, devices=devices)
  sharding.check_batch(over, batch_size, accumulate)
  tx = optimizer.make(**{'steps': steps, **optimizer_settings})
  average = state.Ema(**ema)
  abstract = nnx.eval_shape(lambda: system.build(**model, rngs=parameters.Keys(jax.random.key(0))))
  graph, params = parameters.flatten(abstract)

  def fresh(key, given={}):
    _, params = parameters.flatten(system.build(**model, rngs=parameters.Keys(key)))
    return begin({**params, **given})  # what is not used is never drawn

  def begin(params):
    chosen, frozen = parameters.split_trainable(params, trainable)
    return state.create(chosen, tx, ema=average.on), frozen

  shapes, frozen = jax.eval_shape(begin, params)
  # Runs once: on a CPU half a minute of optimising hundreds of random draws is not worth it.
  quick = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
  everywhere = sharding.replicated(over)
  layout, updated = sharding.layouts(shapes, over, mesh.get('sharding', sharding.DEFAULT))
  compute = functools.partial(objective, loss=system.loss, graph=graph)
  step = functools.partial(
    train_step,
    compute=compute,
    tx=tx,
    ema=average,
    seed=seed,
    num_timesteps=abstract.schedule.num_steps,
    accumulate=accumulate,
    mesh=over,
    held={name: s.spec for name, s in layout.params.items()},
    updated={name: s.spec for name, s in updated.items()},
    dtypes=parameters.compute_dtypes(abstract),
  )
  return Program(
    system=system,
    mesh=over,
    graph=graph,
    now=sharding.with_sharding(shapes, layout),
    frozen=sharding.with_sharding(frozen, jax.tree.map(lambda _: everywhere, frozen)),
    init=jax.jit(
      fresh,
      out_shardings=(layout, everywhere),
      donate_argnames='given',
      compiler_options=quick,
    ),
    step=compiled(step, layout, over),
    compute=compute,
    accumulate=accumulate,
  )


def compiled(step: Callable, layout: TrainState, mesh: Mesh) -> Callable:
  """The step of one device as that of all, each with its parts of the state and the batch."""
  everywhere, examples = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  specs = jax.tree.map(lambda s: s.spec, layout)
  return jax.jit(
    jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(specs, everywhere.spec, examples.spec),
      out_specs=(specs, everywhere.spec),
      check_vma=False,  # what comes out of a gather is the same everywhere, unknown to the types
    ),
    in_shardings=(layout, everywhere, examples),
    out_shardings=(layout, everywhere),
    donate_argnums=0,
    compiler_options=compilation.compiler_options(mesh.devices.flat[0].platform),
  )


def train_step(
  now: TrainState,
  frozen: Params,
  batch: Mapping[str, Array],
  *,
  compute: Callable,
  tx: optax.GradientTransformationExtraArgs,
  ema: state.Ema,
  seed: int,
  num_timesteps: int,
  accumulate: int,
  mesh: Mesh,
  held: sharding.Specs,
  updated: sharding.Specs,
  dtypes: Mapping[str, Any],
) -> tuple[TrainState, dict[str, Array]]:
  """One step of one device, inside shard_map; every random number is keyed by (seed, step, id).

  The device has its parts of the state and its examples of the batch. It computes with whole
  parameters, gathered once, and updates its part of them. Between devices nothing is sent but the
  buckets and a few sums: no layer knows that there are others. `held` and `updated` are the
  parameters' layouts between two steps and while the optimizer is at work. A step whose loss or
  gradient is not finite changes nothing but the counts.
  """
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), now.step)
  whole = sharding.gather(now.params, held, mesh, dtypes)
  value, aux, grads = gradients(compute, whole, frozen, batch, key, accumulate)
  grads = sharding.mean(grads, updated, mesh)
  grad_norm = sharding.norm(grads, updated, mesh)

  sums, counts = state.timestep_buckets(aux['per_example'], aux['t'], num_timesteps)
  sent = (value, sums, counts, batch['corrupt'].sum())
  value, sums, counts, corrupt = sharding.total(sent, mesh)
  value /= mesh.size
  finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)

  def update(old):
    parts, average, opt_state = old
    updates, opt_state = tx.update(grads, opt_state, parts, grad_norm=grad_norm)
    parts = cast(Params, optax.apply_updates(parts, updates))
    return parts, ema.update(average, parts, now.step - now.counts['skipped']), opt_state

  moved = {name: updated[name] for name in held if held[name] != updated[name]}
  parts = {**now.params, **sharding.own({name: now.params[name] for name in moved}, moved, mesh)}
  parts, average, opt_state = state.guarded(finite, update, (parts, now.ema, now.opt_state))
  params = {**parts, **sharding.gather({name: parts[name] for name in moved}, moved, mesh)}
  new = dataclasses.replace(now, params=params, ema=average, opt_state=opt_state)
  new = state.counted(new, finite, corrupt)
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
  return loss(parameters.merge(graph, {**params, **frozen}), batch, key)


def gradients(
  compute: Callable,
  params: Params,
  frozen: Params,
  batch: Mapping[str, Array],
  key: Key[Array, ''],
  accumulate: int,
) -> tuple[Float[Array, ''], dict[str, Array], Params]:
  """Loss, its parts by example, and the gradient: means over this device's part of the batch.

  Taken in equal parts one after the other, the gradients are added up whole, in float32, and sent
  once a step.
  """
  grad = jax.value_and_grad(compute, has_aux=True)
  if accumulate == 1:
    (value, aux), grads = grad(params, frozen, batch, key)
    return value, aux, grads

  def split(rows):  # example i to part i % accumulate
    return rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1)

  def add(total, part):
    (value, aux), grads = grad(params, frozen, part, key)
    return jax.tree.map(jnp.add, total, (value, grads)), aux

  zeros = (jnp.zeros(()), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
  total, aux = jax.lax.scan(add, zeros, jax.tree.map(split, dict(batch)))
  value, grads = jax.tree.map(lambda x: x / accumulate, total)
  return value, jax.tree.map(lambda x: x.reshape(-1), aux), grads
