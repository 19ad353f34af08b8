"""launch/page.sh, the container of the page, and the lists of what it needs."""

import os
import re
import subprocess

import yaml

from tests import ROOT
from tests.launch.test_launchers import stand_in

ADDRESS = 'http://127.0.0.1:7860/'


def test_the_script_installs_starts_and_opens_the_page(tmp_path):
  python = f"""case "$*" in
    *version_info*) ;;
    -VV) echo 'Python 3.98.1' ;;
    '-m exedit.demo '*) echo "$*" >>{tmp_path}/asked; echo 'open {ADDRESS}' ;;
    *) echo "$*" >>{tmp_path}/asked ;;
  esac"""
  stand_in(tmp_path / 'venv' / 'bin', 'python', python)
  stand_in(tmp_path / 'bin', 'python3', python)
  stand_in(tmp_path / 'bin', 'xdg-open', f'echo "$1" >>{tmp_path}/opened')
  env = dict(os.environ, PATH=f'{tmp_path}/bin:/usr/bin:/bin', VENV='venv', JAX='cuda13')
  os.symlink(ROOT / 'launch', tmp_path / 'launch')
  for name in ('requirements.txt', 'requirements-demo.txt'):
    os.symlink(ROOT / name, tmp_path / name)
  script = (ROOT / 'launch/page.sh').read_text().replace('"$(dirname "$0")/.."', str(tmp_path))
  done = subprocess.run(
    ['bash', '-c', script, 'page.sh', '--port=1'], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert f'open {ADDRESS}\n' in done.stdout
  asked = (tmp_path / 'asked').read_text().splitlines()
  assert any('-r requirements.txt -r requirements-demo.txt' in line for line in asked)
  assert asked[-2:] == [asked[-2], '-m exedit.demo --port=1'] and 'jax[cuda13]' in asked[-2]
  assert (tmp_path / 'opened').read_text() == f'{ADDRESS}\n'


def test_the_services_name_targets_of_the_dockerfile_and_flags_of_the_door():
  text = (ROOT / 'launch/Dockerfile').read_text()
  targets = re.findall(r'^FROM \S+ AS (\w+)', text, re.M)
  services = yaml.safe_load((ROOT / 'launch/compose.yaml').read_text())['services']
  assert {*services} == {'page', 'page-gpu'} and targets[-1] == 'train'  # the default
  for service in services.values():
    assert service['build']['target'] in targets
    assert service['ports'] == ['127.0.0.1:7860:7860'] and 'EXEDIT_TOKEN' in service['environment']
  for path in re.findall(r'^COPY (\S+)', text, re.M):
    assert (ROOT / path).exists(), path


def test_the_tests_install_what_the_page_needs():
  listed = lambda name: (
    {line.split('#')[0].strip() for line in (ROOT / name).read_text().splitlines()} - {''}
  )
  assert listed('requirements-demo.txt') < listed('requirements-test.txt')
