"""One end for processes that share a list: what one cannot make, all say, when all are done."""

import sys
import time
from typing import Any

import jax

from exedit.runtime.errors import UserError, explain, one_line

PATIENCE = 5.0  # seconds until the one that failed says that it waits for the others
KEY = 'exedit/ended/'


def end(error: Exception | None) -> None:
  """Wait until every process has made its share; then leave, with `error` or the others' errors.

  JAX's key-value store is asked, again and again: shares may differ by hours, and a collective on
  CPUs waits for half a minute at most. A process that was killed is noticed by JAX's heartbeat.

  Raises:
    error: this process's own, if there is one.
    UserError: where other processes failed.
  """
  if jax.process_count() == 1:
    if error is not None:
      raise error
    return
  said = _exchanged('' if error is None else _words(error))
  if error is not None:
    raise error
  wrong = [f'process {i}: {words}' for i, words in sorted(said.items()) if words]
  if wrong:
    raise UserError(f'{"; ".join(wrong)} (process {jax.process_index()} has made its share)')


def _words(error):
  return explain(error) or f'{type(error).__name__}: {one_line(error)}'


def _exchanged(words: str) -> dict[int, str]:
  """What each process says, once all have said it."""
  from jax._src import distributed  # no public name reaches the store

  client: Any = distributed.global_state.client
  client.key_value_set(f'{KEY}{jax.process_index()}', words)
  begin, told = time.monotonic(), not words
  while True:
    said = {int(key.rsplit('/', 1)[1]): text for key, text in client.key_value_dir_get(KEY)}
    if len(said) == jax.process_count():
      return said
    if not told and time.monotonic() > begin + PATIENCE:
      told = True
      missing = jax.process_count() - len(said)
      print(f'{words} (waiting for {missing} other processes)', file=sys.stderr)
    time.sleep(0.1)
