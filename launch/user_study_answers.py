"""The answers of a user study: checks them against the key of the study and summarises them."""

import glob
import json
import os
from collections.abc import Sequence

import numpy as np

from exedit.runtime.errors import DataError

FORMAT = 'exedit-user-study-answers-1'
KEY_FORMAT = 'exedit-user-study-key-1'


def read_key(path: str) -> dict:
  """Reads the key of a study; DataError for a file that is not one."""
  key = _read_json(path)
  if not isinstance(key, dict) or key.get('format') != KEY_FORMAT:
    raise DataError(f'{path} is not the key of a user study')
  try:
    systems = [sorted(dict(edit['systems']).values()) for edit in key['edits']]
    good = bool(systems) and all(names == sorted(key['systems']) for names in systems)
    good = good and isinstance(key['study'], str) and bool(key['questions'])
  except (KeyError, TypeError, ValueError, AttributeError):
    good = False
  if not good:
    raise DataError(f'{path} is damaged: build the study again with the same settings')
  return key


def find_key(paths: Sequence[str]) -> str:
  """Finds the key of the answers' study in this folder, beside the answers, or one folder above."""
  studies = {_study(path) for path in paths} - {None}
  if not studies:
    raise DataError(f'no answers of a user study in {", ".join(paths[:3]) or "the files given"}')
  beside = {os.path.dirname(path) or '.' for path in paths}
  found = {}
  for folder in ['.', *beside, *(os.path.join(folder, os.pardir) for folder in beside)]:
    for path in glob.glob(os.path.join(glob.escape(folder), '*.key.json')):
      if _study(path) in studies:
        found[os.path.realpath(path)] = os.path.normpath(path)
  if len(found) != 1:
    raise DataError(
      f'{len(found)} keys of this study were found: name the .key.json that `build` wrote by --key'
    )
  return next(iter(found.values()))


def _study(path):
  """The study that a file belongs to; None for any other file."""
  try:
    study = _read_json(path)['study']
  except (DataError, KeyError, TypeError, IndexError):
    return None
  return study if isinstance(study, str) else None


def _read_json(path):
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path} is not JSON ({error})') from error


def read_answers(path: str, key: dict) -> dict:
  """Reads one participant's file and checks it against the key.

  Returns dict(participant, saved, ranks, path); ranks is {(question, edit): [systems, best first]}.

  Raises:
    DataError: for a file that is damaged or belongs to another study.
  """
  file = _read_json(path)
  if not isinstance(file, dict) or file.get('format') != FORMAT:
    raise DataError(f'{path} contains no answers of a user study')
  if file.get('study') != key['study']:
    raise DataError(f'{path} is of study {file.get("study")}, the key of {key["study"]}')
  participant, rows = file.get('participant'), file.get('answers')
  if not isinstance(participant, str) or not participant or not isinstance(rows, list):
    raise DataError(f'{path} is damaged: it names no participant or has no answers')
  tokens, ranks = {edit['edit']: edit['systems'] for edit in key['edits']}, {}
  for number, row in enumerate(rows, 1):
    try:
      question, edit, given = row['question'], row['edit'], row['ranks']
      good = question in key['questions'] and sorted(given) == sorted(tokens[edit])
    except (TypeError, KeyError):
      good, question, edit, given = False, None, None, []
    if not good:
      what = 'does not rank each result of an edit of the study once'
      raise DataError(f'{path} is damaged: answer {number} {what}')
    if (question, edit) in ranks:
      raise DataError(f'{path} is damaged: answer {number} repeats the question of an earlier one')
    ranks[question, edit] = [tokens[edit][token] for token in given]
  return dict(participant=participant, saved=str(file.get('saved', '')), ranks=ranks, path=path)


def gather(paths: Sequence[str], key: dict) -> tuple[list[dict], list[str]]:
  """Reads the answers of all participants: (usable answers, one line for each complaint).

  Of two files by the same participant, the one with more answers counts, then the newer one.
  """
  best, lines = {}, []
  for path in paths:
    try:
      answers = read_answers(path, key)
    except DataError as error:
      lines.append(f'left out: {error}')
      continue
    other = best.setdefault(answers['participant'], answers)
    if other is answers:
      continue
    rank = lambda a: (len(a['ranks']), a['saved'])
    kept, dropped = (answers, other) if rank(answers) > rank(other) else (other, answers)
    best[kept['participant']] = kept
    lines.append(
      f'left out: {dropped["path"]} is of participant {kept["participant"]!r}, as is '
      f'{kept["path"]}, which has more answers or is newer'
    )
  wanted = len(key['questions']) * len(key['edits'])
  for answers in best.values():
    if not answers['ranks']:
      lines.append(f'left out: {answers["path"]} contains no answer yet')
    elif len(answers['ranks']) < wanted:
      lines.append(f'incomplete: {answers["path"]} answers {len(answers["ranks"])} of {wanted}')
  return [answers for answers in best.values() if answers['ranks']], lines


def summarise(answers: Sequence[dict], key: dict, resamples: int = 10000) -> list[dict]:
  """Each system's mean rank (1 is best) and share of first ranks, by question, with 95 % intervals.

  Returns rows dict(question, system, mean_rank, mean_rank_interval, firsts, firsts_interval, n,
  participants, edits); n is the number of rankings.
  """
  rows, count = [], len(key['systems'])
  for question in key['questions']:
    ranks = _ranks(answers, key, question)
    there = ~np.isnan(ranks[..., 0])
    if not there.any():
      continue
    values = np.concatenate([ranks, ranks == 1], -1)  # [participants edits 2*systems]
    means = values[there].mean(0).tolist()
    intervals = _intervals(values, there, resamples).T.tolist()
    seen = dict(n=int(there.sum()), participants=int(there.any(1).sum()))
    seen |= dict(edits=int(there.any(0).sum()))
    for s, system in enumerate(key['systems']):
      row = dict(question=question, system=system)
      row |= dict(mean_rank=means[s], mean_rank_interval=intervals[s])
      row |= dict(firsts=means[count + s], firsts_interval=intervals[count + s])
      rows.append(row | seen)
  return rows


def _ranks(answers, key, question):
  """The ranks to one question, [participants edits systems], NaN where there is no answer."""
  edits = [edit['edit'] for edit in key['edits']]
  ranks = np.full((len(answers), len(edits), len(key['systems'])), np.nan)
  for p, answer in enumerate(answers):
    for e, edit in enumerate(edits):
      if order := answer['ranks'].get((question, edit)):
        ranks[p, e] = [order.index(system) + 1 for system in key['systems']]
  return ranks


def _intervals(values: np.ndarray, there: np.ndarray, resamples: int) -> np.ndarray:
  """The 2.5 % and 97.5 % points [2 v] of the mean over [p e v], resampling both p and e."""
  values, there = values[there.any(1)][:, there.any(0)], there[there.any(1)][:, there.any(0)]
  people, edits, width = values.shape
  rng, means = np.random.default_rng(0), []
  known = np.where(there[..., None], values, 0).reshape(people, -1)
  for start in range(0, resamples, 250):
    count = min(250, resamples - start)
    p = rng.multinomial(people, np.full(people, 1 / people), count).astype(float)  # [b p]
    e = rng.multinomial(edits, np.full(edits, 1 / edits), count).astype(float)  # [b e]
    total = ((p @ known).reshape(count, edits, width) * e[..., None]).sum(1)
    weight = ((p @ there) * e).sum(1)
    means.append(total[weight > 0] / weight[weight > 0, None])
  return np.quantile(np.concatenate(means), (0.025, 0.975), axis=0)


def table(rows: Sequence[dict], key: dict, complaints: Sequence[str]) -> str:
  """The rows as text, best mean rank first, and the complaints below."""
  systems = len(key['systems'])
  wide = max(12, *(len(name) + 2 for name in key['systems']))
  people = max((row['participants'] for row in rows), default=0)
  out = [
    f'{key["title"]} (study {key["study"]}): {systems} systems, {len(key["edits"])} edits, '
    f'{people} participants',
    f'chance: mean rank {(systems + 1) / 2:g}, share of firsts {1 / systems:.3f}',
  ]
  for question in key['questions']:
    ours = sorted((r for r in rows if r['question'] == question), key=lambda r: r['mean_rank'])
    if ours:
      out += ['', f'{question:<{wide}}{"mean rank [95 %]":<24}{"firsts [95 %]":<26}n']
    for row in ours:
      (a, b), (c, d) = row['mean_rank_interval'], row['firsts_interval']
      rank, firsts = f'{row["mean_rank"]:.2f} [{a:.2f}, {b:.2f}]', f'{row["firsts"]:.3f}'
      out.append(f'{row["system"]:<{wide}}{rank:<24}{f"{firsts} [{c:.3f}, {d:.3f}]":<26}{row["n"]}')
  return '\n'.join([*out, *([''] if complaints else []), *complaints])
