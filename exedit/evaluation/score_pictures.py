"""Scores the pictures of a benchmark: results.json, the table and the page."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from exedit.evaluation import benchmark, make_edits, report, vectors
from exedit.evaluation.resources import Resources
from exedit.evaluation.scorer import Scorer
from exedit.runtime import files, processes, versions

RESULTS, FEATURES = 'results.json', 'features'
FORMAT = 'exedit bench 1'


def score(
  bench: Any,
  layout: benchmark.Layout,
  about: Mapping[str, Any],
  edits: Sequence[benchmark.Edit],
  output: str,
  made: Mapping[str, Any],
  scorer_of: Callable[..., Scorer],
  given: Resources,
  cache: str | None,
  say: Callable[[str], None],
  more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda summary: {},
) -> dict[str, Any]:
  """Score the pictures of the edits; write and return the results.

  All processes call it: they share the vectors, and process 0 computes the scores.

  Args:
    about: what `layout.open` needs to open the bench again.
    made: the entries of results.json that say what made the pictures; `pictures` is their folder if
      it is not that of `make_edits`.
    scorer_of: makes the Scorer of (folder, scored, reader).
    more: makes further entries of results.json from the summary of the scorer.
  Returns:
    The contents of results.json in process 0, {} in the others.
  """
  folder = made.get('pictures') or make_edits.folder(output)
  scored = benchmark.results(edits, folder, layout)
  if others := benchmark.strangers(edits, folder):
    words = f'{len(others)} pictures belong to no edit and are not scored, for example {others[0]}'
    say(f'{folder}: {words}')
  several = jax.process_count() > 1
  kept = cache or (os.path.join(output, FEATURES) if several else vectors.default_folder())
  reader = benchmark.Reader(bench, layout)
  scorer = scorer_of(kept, scored, reader)
  vectors.fill_together(kept, [column for plan in scorer.plans() for column in plan.columns])
  results = {}
  if not jax.process_index():
    entry = dict(about, edits=len(edits), sha256=benchmark.digest(edits))
    summary = scorer.summary()
    results = dict(format=FORMAT, benchmark=entry, **made, **given.summary())
    results |= dict(versions=versions.versions(), **summary, **more(summary))
    say(report.table(results))
    files.write_json(os.path.join(output, RESULTS), results)
    page = report.write(output, results, scored, reader)
    say(f'{page} and {RESULTS} beside it')
  processes.wait_for_others('scored')  # JAX ends the others if process 0 is still working
  return results
