r"""Loads a server of the page with many clients, and counts what was lost.

  python -m benchmarks.page_load                             # 50 clients, two minutes, weights/tiny
  python -m benchmarks.page_load --clients=10 --seconds=20

It starts `exedit.demo` on this machine, lets each client upload, order, follow, fetch and cancel,
and fails if a finished result is gone, an answer is an error other than "busy", or the memory of
the server grows by more than --most_growth megabytes after a quarter of the time.
"""

import collections
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from exedit.runtime import doors
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError

FLAGS = (
  Flag('clients', 50, 'clients at the same time', least=1),
  Flag('seconds', 120.0, 'how long they ask', least=1.0),
  Flag('weights', 'weights/tiny', 'weights to serve'),
  Flag('steps', 4, 'steps of an edit', least=1),
  Flag('most_growth', 300, 'megabytes by which the server may grow', least=1),
)
PHOTO = 'docs/example/image.png', 'docs/example/mask.png', 'docs/example/exemplar.png'


class Client:
  """One session; `ask` returns the status and the body of an answer."""

  def __init__(self, port: int):
    self.port, self.cookie = port, ''

  def ask(
    self, method: str, path: str, body: bytes | None = None, **headers: str
  ) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection('localhost', self.port, timeout=120)
    try:
      headers |= {'Cookie': self.cookie} if self.cookie else {}
      connection.request(method, path, body, headers)
      answer = connection.getresponse()
      if given := answer.getheader('Set-Cookie'):
        self.cookie = given.partition(';')[0]
      return answer.status, answer.read()
    finally:
      connection.close()


def form(job: dict[str, Any], mask: bytes) -> tuple[bytes, str]:
  """A multipart body with a job and its mask, and its type."""
  edge = 'exedit-edge'
  parts = [
    f'--{edge}\r\nContent-Disposition: form-data; name="job"\r\n\r\n{json.dumps(job)}\r\n'.encode(),
    f'--{edge}\r\nContent-Disposition: form-data; name="mask"; filename="m.png"\r\n\r\n'.encode(),
    mask,
    f'\r\n--{edge}--\r\n'.encode(),
  ]
  return b''.join(parts), f'multipart/form-data; boundary={edge}'


class Load:
  """What all clients count together."""

  def __init__(self, port: int, steps: int, until: float):
    self.port, self.steps, self.until = port, steps, until
    self.counts: collections.Counter[str] = collections.Counter()
    self.bad: list[str] = []
    self.kept: list[tuple[Client, str, bytes]] = []

  def client(self, number: int) -> None:
    """Asks until the time is over; faults are counted, not raised."""
    rng = random.Random(number)
    try:
      self._ask(Client(self.port), rng)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
      self.bad.append(f'client {number}: {type(error).__name__}: {error}')

  def _ask(self, client: Client, rng: random.Random) -> None:
    photo, mask, exemplar = (open(path, 'rb').read() for path in PHOTO)
    pictures = [self._upload(client, data) for data in (photo, exemplar)]
    while time.monotonic() < self.until:
      region = dict(mask='mask', exemplar=dict(picture=pictures[1]))
      job = dict(
        picture=pictures[0], regions=[region], seeds=[rng.randrange(1000)],
        settings=dict(steps=self.steps, sampler='ddim'),
      )  # fmt: skip
      body, kind = form(job, mask)
      status, answer = client.ask('POST', '/api/jobs', body, **{'Content-Type': kind})
      if status == 503:
        self.counts['busy'] += 1
        time.sleep(1)
        continue
      if status != 201:
        self.bad.append(f'POST /api/jobs: {status} {answer[:200]!r}')
        return
      self._follow(client, json.loads(answer)['id'], rng)

  def _follow(self, client: Client, name: str, rng: random.Random) -> None:
    if rng.random() < 0.1:
      client.ask('DELETE', f'/api/jobs/{name}')
    _, told = client.ask('GET', f'/api/jobs/{name}/events')
    last = re.findall(rb'event: (\w+)', told)[-1:]
    self.counts[last[0].decode() if last else 'no end'] += 1
    for result in re.findall(rb'event: candidate\ndata: .*?"result": "([\w-]+)"', told):
      status, made = client.ask('GET', f'/api/results/{result.decode()}')
      if status != 200 or not made.startswith(b'\x89PNG'):
        self.bad.append(f'result {result.decode()}: {status}')
      else:
        self.kept.append((client, result.decode(), made))

  def _upload(self, client: Client, data: bytes) -> str:
    status, answer = client.ask('POST', '/api/pictures', data)
    if status != 201:
      raise ValueError(f'an upload: {status} {answer[:200]!r}')
    return json.loads(answer)['id']

  def lost(self) -> int:
    """The number of results that are no longer what they were."""
    return sum(
      client.ask('GET', f'/api/results/{name}') != (200, made) for client, name, made in self.kept
    )


def memory(process: int) -> int:
  """Megabytes of a process."""
  with open(f'/proc/{process}/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') >> 20


def main(clients: int, seconds: float, weights: str, steps: int, most_growth: int) -> None:
  """Starts a server and loads it."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, '-m', 'exedit.demo', f'--weights={weights}', '--port=0']
    command.append(f'--folder={folder}/page')
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
      assert server.stdout is not None
      found = re.search(r':(\d+)/', server.stdout.readline())
      if found is None:
        raise UserError('the server does not start')
      load_server(int(found[1]), server.pid, clients, seconds, steps, most_growth)
    finally:
      server.terminate()
      server.wait()


def load_server(
  port: int, process: int, clients: int, seconds: float, steps: int, most_growth: int
) -> None:
  """Loads the server at this port; UserError for what it lost."""
  while Client(port).ask('GET', '/readyz')[0] != 200:
    time.sleep(0.5)
  start = time.monotonic()
  load = Load(port, steps, start + seconds)
  threads = [threading.Thread(target=load.client, args=[n]) for n in range(clients)]
  for thread in threads:
    thread.start()
  time.sleep(seconds / 4)
  before = memory(process)
  for thread in threads:
    thread.join()
  grown, lost = memory(process) - before, load.lost()
  said = ', '.join(f'{n} {what}' for what, n in sorted(load.counts.items()))
  took = time.monotonic() - start
  print(f'{clients} clients, {took:.0f} s: {said}; {len(load.kept)} results, {lost} lost')
  print(f'memory {before} MB after a quarter, {grown:+d} MB at the end')
  for line in load.bad[:10]:
    print(line)
  if load.bad or lost or load.counts['failed'] or grown > most_growth:
    raise UserError(f'{len(load.bad)} faults, {lost} lost results, {grown} MB more memory')


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
