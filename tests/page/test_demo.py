"""The door of the page: what it refuses before anything is loaded, and what it starts."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from exedit import demo
from tests import ROOT, small
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


def test_the_command_serves_until_ctrl_c(tmp_path):
  weights = small.export(tmp_path / 'small')
  command = [sys.executable, '-m', 'exedit.demo', f'--weights={weights}', '--port=0']
  process = subprocess.Popen(
    [*command, f'--folder={tmp_path / "data"}', '--root_path=/edit'], cwd=ROOT, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  address = re.fullmatch(r'open (http://127\.0\.0\.1:\d+/edit/)\n', process.stdout.readline())[1]
  with urllib.request.urlopen(f'{address}api/about') as answer:
    assert b'"paint_by_example"' in answer.read()
  process.send_signal(signal.SIGINT)
  assert 'stopped' in process.communicate(timeout=60)[1] and process.returncode == 130
  assert (tmp_path / 'data' / 'exedit-page.json').exists()
