"""The door of the page: what it refuses before anything is loaded, and what it starts."""

import itertools
import re
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from exedit import demo
from tests import ROOT, pictures, small
from tests.page import serving
from tests.refusals import refusal


@pytest.mark.parametrize(
  'flags, why',
  [
    (['--host=0.0.0.0'], '--host=0.0.0.0 lets other machines in, so --token is needed'),
    (['--token='], '--token is empty'),
    (['--root_path=edit'], "--root_path='edit': it must begin with /"),
    (['--port=70000'], 'it must be a whole number from 0 to 65535'),
    (['--tokn=a'], '--tokn is not a flag: did you mean --token?'),
    (['--port=0', '--folder=temporary', '--weights=nothing'], 'nothing'),
  ],
)
def test_a_wrong_flag_is_one_line(capsys, flags, why):
  assert why in refusal(capsys, demo.run, ['demo', *flags])


def test_a_port_that_is_taken_is_one_line(capsys):
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    told = refusal(capsys, demo.run, ['demo', f'--port={port}'])
  assert told.startswith(f'error: cannot listen at 127.0.0.1:{port} (')


def test_without_the_packages_the_line_says_how_to_install_them(capsys, monkeypatch):
  monkeypatch.setattr(demo, 'PACKAGES', ('starlette', 'not_here'))
  told = refusal(capsys, demo.run, ['demo', '--port=0'])
  assert told == 'error: not_here is missing: install it with pip install -r requirements-demo.txt'


class Running:
  """The command in a process of its own."""

  def __init__(self, weights, folder):
    command = [sys.executable, '-m', 'exedit.demo', f'--weights={weights}', '--port=0']
    self.process = subprocess.Popen(
      [*command, f'--folder={folder}', '--root_path=/edit'], cwd=ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    line = self.process.stdout.readline()
    found = re.fullmatch(r'open (http://127\.0\.0\.1:\d+)/edit/\n', line)
    self.client = httpx2.Client(base_url=f'{found[1]}/edit', timeout=120)

  def end(self, number) -> str:
    """Ends the process by a signal; returns what it printed as errors."""
    self.process.send_signal(number)
    return self.process.communicate(timeout=60)[1]


def test_a_killed_server_has_lost_nothing_and_ctrl_c_ends_it(tmp_path):
  weights = small.export(tmp_path / 'small')
  files = pictures.write(tmp_path, 36, 50, 10, 17, 27, 41)
  first = Running(weights, tmp_path / 'data')
  photo, exemplar = (
    serving.upload(first.client, open(files[name], 'rb').read())['id']
    for name in ('image', 'exemplar')
  )
  region = dict(mask='hole', exemplar=dict(picture=exemplar))
  job = dict(picture=photo, regions=[region], seeds=[*range(16)])
  name = serving.order(first.client, job, hole=open(files['mask'], 'rb').read()).json()['id']
  with first.client.stream('GET', f'/api/jobs/{name}/events') as stream:
    [result] = itertools.islice(
      (found[1] for line in stream.iter_lines() if (found := re.search('"result": "(.+?)"', line))),
      1,
    )
  made = first.client.get(f'/api/results/{result}').content
  first.end(signal.SIGKILL)
  second = Running(weights, tmp_path / 'data')
  second.client.cookies = first.client.cookies
  assert second.client.get(f'/api/results/{result}').content == made
  assert serving.events(second.client, name)[-1][0] == 'done'
  assert (
    len({c['result'] for c in second.client.get(f'/api/jobs/{name}').json()['candidates']}) == 16
  )
  assert 'stopped' in second.end(signal.SIGINT) and second.process.returncode == 130
