"""What participants of a user study sent back: checked against its key, summarised as a table."""

import csv
import glob
import io
import json
import os

import numpy as np

from exedit.input_pipeline.errors import DataError

FORMAT = 'exedit-user-study-answers-1'
KEY_FORMAT = 'exedit-user-study-key-1'


def read_key(path: str) -> dict:
  """A study's key; DataError where it is none."""
  key = _json(path)
  if not isinstance(key, dict) or key.get('format') != KEY_FORMAT:
    raise DataError(f'{path} is not the key of a user study')
  try:
    tokens = {int(e['edit']): dict(e['systems']) for e in key['edits']}
    good = tokens and all(sorted(s.values()) == sorted(key['systems']) for s in tokens.values())
    good = good and isinstance(key['study'], str) and bool(key['questions'])
  except (KeyError, TypeError, ValueError, AttributeError):
    good = False
  if not good:
    raise DataError(f'{path} is damaged; build the study again with the same settings')
  return key


def find_key(paths: list[str]) -> str:
  """The one *.key.json here, beside the answers or above them, of the study that they name."""
  studies = {answer.get('study') for answer in map(_glance, paths)} - {None}
  if not studies:
    raise DataError(f'no answers of a user study in {", ".join(paths[:3]) or "the files given"}')
  folders = ['.', *(os.path.dirname(path) or '.' for path in paths)]
  folders += [os.path.join(folder, os.pardir) for folder in folders[1:]]
  found = {}
  for folder in folders:
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), '*.key.json'))):
      if _glance(path).get('study') in studies:
        found.setdefault(os.path.realpath(path), os.path.relpath(path))
  if len(found) != 1:
    what = 'several are' if found else 'none is'
    raise DataError(
      f'--key=... is missing, and {what} here, beside the answers or above them; name the '
      '<output>.key.json that build wrote'
    )
  return next(iter(found.values()))


def _glance(path: str) -> dict:
  try:
    found = _json(path)
  except DataError:
    return {}
  return found if isinstance(found, dict) and isinstance(found.get('study'), str) else {}


def _json(path: str):
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path} is not JSON ({" ".join(str(error).split())})') from error


def read_answers(path: str, key: dict) -> dict:
  """One participant's file, checked against the key: dict(participant, saved, ranks).

  `ranks` is {(question, edit): [systems, best first]}. DataError says what is wrong with it.
  """
  file = _json(path)
  if not isinstance(file, dict) or file.get('format') != FORMAT:
    raise DataError(f'{path} holds no answers of a user study')
  if file.get('study') != key['study']:
    raise DataError(f'{path} is of study {file.get("study")}, the key of {key["study"]}')
  participant, rows = file.get('participant'), file.get('answers')
  if not isinstance(participant, str) or not participant or not isinstance(rows, list):
    raise DataError(f'{path} is damaged: it names no participant or holds no answers')
  tokens, ranks = {e['edit']: e['systems'] for e in key['edits']}, {}
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
      raise DataError(f'{path} is damaged: answer {number} is to a question answered before')
    ranks[question, edit] = [tokens[edit][token] for token in given]
  return dict(participant=participant, saved=str(file.get('saved', '')), ranks=ranks, path=path)


def gather(paths: list[str], key: dict) -> tuple[list[dict], list[str]]:
  """(the answers that can be used, one a participant; a line for each file with a complaint)."""
  best, lines = {}, []
  for path in paths:
    try:
      answers = read_answers(path, key)
    except DataError as error:
      lines.append(f'left out: {error}')
      continue
    other = best.setdefault(answers['participant'], answers)
    if other is not answers:
      rank = lambda a: (len(a['ranks']), a['saved'])
      kept, dropped = (answers, other) if rank(answers) > rank(other) else (other, answers)
      best[answers['participant']] = kept
      lines.append(
        f'left out: {dropped["path"]} is of participant {kept["participant"]!r}, as is '
        f'{kept["path"]}, which holds more or is newer'
      )
  wanted = len(key['questions']) * len(key['edits'])
  for answers in best.values():
    if not answers['ranks']:
      lines.append(f'left out: {answers["path"]} holds no answer yet')
    elif len(answers['ranks']) < wanted:
      lines.append(f'incomplete: {answers["path"]} answers {len(answers["ranks"])} of {wanted}')
  return [a for a in best.values() if a['ranks']], lines


def summarise(answers: list[dict], key: dict, resamples=10000) -> list[dict]:
  """Mean rank (1 is best) and share of firsts of each system by question, with 95 % intervals.

  Rows are dict(question, system, mean_rank, mean_rank_interval, firsts, firsts_interval, n,
  participants, edits); n is the number of rankings.
  """
  rows, edits = [], [e['edit'] for e in key['edits']]
  for question in key['questions']:
    ranks = np.full((len(answers), len(edits), len(key['systems'])), np.nan)
    for p, answer in enumerate(answers):
      for e, edit in enumerate(edits):
        if order := answer['ranks'].get((question, edit)):
          ranks[p, e] = [order.index(system) + 1 for system in key['systems']]
    there = ~np.isnan(ranks[..., 0])
    n = int(there.sum())
    if not n:
      continue
    values = np.concatenate([ranks, ranks == 1], -1)  # [p e 2s]
    means = values[there].mean(0)
    low, high = _interval(values, there, resamples)
    for s, system in enumerate(key['systems']):
      f = s + len(key['systems'])
      rows.append(
        dict(
          question=question,
          system=system,
          mean_rank=float(means[s]),
          mean_rank_interval=[float(low[s]), float(high[s])],
          firsts=float(means[f]),
          firsts_interval=[float(low[f]), float(high[f])],
          n=n,
          participants=int(there.any(1).sum()),
          edits=int(there.any(0).sum()),
        )
      )
  return rows


def _interval(values: np.ndarray, there: np.ndarray, resamples: int) -> np.ndarray:
  """2.5 % and 97.5 % points [2 s] of the mean over [p e s] where p and e are drawn anew."""
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


def table(rows: list[dict], key: dict, lines: list[str]) -> str:
  """The rows for a person, best mean rank first."""
  systems, out = len(key['systems']), []
  wide = max(12, *(len(name) + 2 for name in key['systems']))
  people = max((row['participants'] for row in rows), default=0)
  out.append(
    f'{key["title"]} (study {key["study"]}): {systems} systems, {len(key["edits"])} edits, '
    f'{people} participants'
  )
  out.append(f'chance: mean rank {(systems + 1) / 2:g}, share of firsts {1 / systems:.3f}')
  for question in key['questions']:
    ours = sorted((r for r in rows if r['question'] == question), key=lambda r: r['mean_rank'])
    if ours:
      out += ['', f'{question:<{wide}}{"mean rank [95 %]":<24}{"firsts [95 %]":<26}n']
    for row in ours:
      (a, b), (c, d) = row['mean_rank_interval'], row['firsts_interval']
      rank, firsts = f'{row["mean_rank"]:.2f} [{a:.2f}, {b:.2f}]', f'{row["firsts"]:.3f}'
      out.append(f'{row["system"]:<{wide}}{rank:<24}{f"{firsts} [{c:.3f}, {d:.3f}]":<26}{row["n"]}')
  return '\n'.join(out + [''] * bool(lines) + lines)


def as_csv(rows: list[dict]) -> bytes:
  """The rows for a spreadsheet."""
  text = io.StringIO()
  writer = csv.writer(text)
  writer.writerow(
    'question,system,mean_rank,mean_rank_low,mean_rank_high,'
    'firsts,firsts_low,firsts_high,n,participants,edits'.split(',')
  )
  for r in rows:
    rank, firsts = r['mean_rank_interval'], r['firsts_interval']
    writer.writerow(
      [r['question'], r['system'], r['mean_rank'], *rank, r['firsts'], *firsts]
      + [r['n'], r['participants'], r['edits']]
    )
  return text.getvalue().encode()
