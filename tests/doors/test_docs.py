"""The commands, Python lines, links and paths of README, CONTRIBUTING and docs are right."""

import functools
import itertools
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from exedit import systems
from exedit.editing import edit_files
from exedit.evaluation import synthetic_bench
from exedit.input_pipeline import loader
from exedit.runtime import doors
from tests import ROOT, measure, runs

PAGES = sorted([ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')])
FOLDERS = 'exedit|input_pipeline|configs|launch|benchmarks|tests|docs|weights/tiny'
NOT_YET = {'configs/fill.py', 'exedit/fill.py'}

# Commands that no test runs as they are written, because they need what a test machine does not
# have. Other tests run the same programs on small inputs. Their flags are checked here.
NOT_RUN_HERE = {
  r'^pip install': 'installs packages; .ci/run does so in fresh environments',
  r'^tfds build': 'downloads published data sets; tests/input_pipeline/test_tfds_data.py',
  r'^git ': 'changes the checkout',
  r'^launch/(demo|test|ablation|tiny_world)\.sh': 'takes minutes to hours; .ci/run, tests/launch',
  r'^launch/(tpu_vm|gke|slurm|multi_gpu)\.sh': 'needs a cluster; tests/launch uses --dry-run',
  r'^launch/page\.sh|python -m exedit\.demo': 'serves until Ctrl-C; tests/page',
  r'^docker ': 'needs Docker',
  r'^python -m pytest': 'runs tests within a test',
  r'Fantasy-Studio|CompVis/|stable-diffusion-v1-5/|openai/': 'downloads published weights',
  r'weights/blended': 'joins published weights; tests/systems/test_blended_diffusion.py',
  r'python -m launch.prepare_open_images': 'needs Beam and Open Images; launch/test.sh --prepare',
  r'python -m exedit.plan': 'needs libtpu and minutes; launch/test.sh --plan',
  r'python -m (benchmarks|tests\.fuzz|tests\.parity)': 'measures for minutes',
  r'python -m exedit\.(train|encode)': 'trains or encodes for minutes; tests/doors/test_train.py',
  r'python -m exedit\.gmm': 'needs the published mixture; tests/doors/test_gmm.py',
  r'python -m exedit\.convert': 'needs weights that are not here; tests/doors/test_convert.py',
  r'python -m exedit\.evaluate': 'makes hundreds of edits; tests/doors/test_evaluate.py',
  r'python -m exedit\.sample .*--(edits|replay)': 'needs a list; tests/doors/test_sample.py',
  r'python -m exedit\.sample .*/tmp/(fill|sd)': 'the example system, see below; tests/systems',
  r'python -m input_pipeline\.': 'draws 20,000 scenes or needs a benchmark; tests/input_pipeline',
  r'python -m launch\.': 'needs a benchmark and results; tests/launch',
  r'python -m tests\.measure': 'test_the_measured_structure_holds calls it',
}

HELP = """
import io, json, os, runpy, sys, tempfile
import absl.app, cv2, flax.nnx, grain, jax, ml_collections, optax, orbax.checkpoint, PIL.Image, tqdm
sys.path.insert(0, os.getcwd())
programs = json.loads(sys.argv[1])
files = [tempfile.TemporaryFile() for _ in programs]
for words, file in zip(programs, files):
  if not os.fork():
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.argv = [*words, '--help']
    runpy.run_module(words[0], run_name='__main__', alter_sys=True)
    os._exit(0)
for file in files:
  os.wait()
for file in files:
  file.seek(0)
print(json.dumps([file.read().decode() for file in files]))
"""  # one process imports the libraries once and forks for each program


def name_of(page: Path) -> str:
  return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
  return re.findall(rf'```{language}\n(.*?)```', page.read_text(), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
  """The words of each command in the bash blocks, and of each program named in a sentence."""
  text = '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ')
  prose = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
  text += '\n' + '\n'.join(re.findall(r'`((?:python -m|launch/\w+\.sh) ?[^`]*)`', prose))
  split = (shlex.split(line, comments=True) for line in text.splitlines())
  bare = [list(itertools.dropwhile(re.compile(r'[A-Z_]+=').match, words)) for words in split]
  return [words for words in bare if words and '...' not in words[-1]]


ALL = [(name_of(page), words) for page in PAGES for words in commands(page)]


def program(words: list[str]) -> tuple[str, ...]:
  """The module of `python -m module`, with its subcommand if it has one."""
  return tuple(words[2:3] + [w for w in words[3:4] if re.fullmatch(r'[a-z_]+', w)])


@functools.cache
def helps() -> dict[tuple[str, ...], str]:
  """What each program prints for --help."""
  asked = sorted({program(words) for _, words in ALL if words[:2] == ['python', '-m']})
  asked = [words for words in asked if words[0] not in ('pytest', 'tests.measure')]
  code = [sys.executable, '-c', HELP, json.dumps(asked)]
  done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True)
  printed = json.loads(done.stdout.splitlines()[-1])
  return dict(zip(asked, printed))


def flags_of(words: list[str]) -> dict[str, list[str]]:
  """The flags of a program: {name: allowed words, if they are listed}."""
  found = {}
  for line in helps()[program(words)].splitlines():
    match = re.match(r' +(?:-\w, )?--(\[no\])?(\w+)(?:=(\S+)|(?=[:\s,]|$))', line)
    if match:
      found[match[2]] = match[3].split('|') if '|' in (match[3] or '') else []
      if match[1]:
        found['no' + match[2]] = []
  return found


@pytest.mark.parametrize('page, words', ALL, ids=lambda x: x if isinstance(x, str) else ' '.join(x))
def test_a_command_is_run_or_listed_and_its_flags_exist(page, words, monkeypatch):
  line = ' '.join(words)
  assert line in RUN or any(re.search(p, line) for p in NOT_RUN_HERE), f'{page}: who runs {line}?'
  if words[0].startswith('launch/'):
    script = (ROOT / words[0]).read_text() + (ROOT / 'launch/arguments.sh').read_text()
    for word in (w for w in words[1:] if w.startswith('--')):
      name = re.match(r'--([\w-]+)', word)[1].replace('-', '_')
      assert re.search(rf'\b{name}\b', script.replace('-', '_')), f'{page}: {word} of {words[0]}'
  elif words[:2] == ['pip', 'install']:
    assert all((ROOT / words[i + 1]).exists() for i, w in enumerate(words) if w == '-r'), page
  elif words[:2] == ['python', '-m'] and words[2] not in ('pytest', 'tests.measure'):
    known = flags_of(words)
    assert known, f'{words[2]} --help prints no flags:\n{helps()[program(words)][-500:]}'
    for word in (w for w in words[3:] if w.startswith('--') and not w.startswith('--config')):
      name, _, value = word[2:].partition('=')
      assert name in known, f'{page}: {words[2]} has no flag --{name}'
      assert not known[name] or value in known[name], f'{page}: {word}'
    if any(w.startswith('--config') for w in words):
      check_config([w for w in words if w.startswith('--config')], monkeypatch)


def check_config(words, monkeypatch):
  """The config file, its variant and the keys exist, and the values have the right types."""
  if any('configs/fill.py' in word for word in words):
    return  # the example of CONTRIBUTING.md, which has a test of its own
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(
    sys, 'argv', ['program', *map(doors.python_name, words)]
  )  # config_flags finds the keys there
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  values(sys.argv)
  assert values.config


# What is small is run.


def run(words, tmp_path):
  line = ['--output=' + str(tmp_path / 'out.png') if w == '--output=out.png' else w for w in words]
  done = subprocess.run([sys.executable, *line[1:]], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


RUN = {' '.join(words) for _, words in ALL if '--image=docs/example/image.png' in words}


@pytest.mark.parametrize('line', sorted(RUN))
def test_a_small_command_runs(line, tmp_path):
  run(shlex.split(line), tmp_path)
  assert (tmp_path / 'out.png').exists()


def test_the_eight_lines(tmp_path, monkeypatch):
  [code] = blocks(ROOT / 'README.md', 'python')
  monkeypatch.chdir(ROOT)
  exec(code.replace("'out.png'", repr(str(tmp_path / 'out.png'))), {})
  pixels = lambda path: np.asarray(Image.open(path))
  result = pixels(tmp_path / 'out.png')
  source, mask = (pixels(ROOT / 'docs/example' / f'{name}.png') for name in ('image', 'mask'))
  np.testing.assert_array_equal(result[mask == 0], source[mask == 0])
  assert np.any(result[mask > 0] != source[mask > 0])


def test_the_python_lines_of_the_editing_page(monkeypatch):
  [code] = blocks(ROOT / 'docs/editing.md', 'python')
  monkeypatch.chdir(ROOT)
  names = {}
  key = 'key=jax.random.key(0)'
  exec(code.replace(key, f"{key}, steps=2, sampler='ddim'"), names)
  assert names['raw'].shape == names['photo'].shape == names['source'].shape


def test_the_shard_of_the_data_page_is_read(tmp_path, monkeypatch):
  [code] = blocks(ROOT / 'docs/data.md', 'python')
  monkeypatch.chdir(tmp_path)
  Image.new('RGB', (64, 64), (200, 0, 0)).save('a.jpg')
  exec(code, {})
  batch = next(loader.batches('data/mine', 'train', 1, size=32, exemplar_size=32))
  assert not batch['corrupt'][0] and batch['image'][0, ..., 0].mean() > 150


@pytest.fixture(scope='module')
def example_run(tmp_path_factory):
  """The workdir of the example system of CONTRIBUTING.md: two steps, a restart, a third step."""
  folder = tmp_path_factory.mktemp('example')
  code, settings = blocks(ROOT / 'CONTRIBUTING.md', 'python')
  fill, configs = {'__name__': 'fill'}, {}
  exec(code, fill)
  exec(settings, configs)
  config = configs['get_config']()
  config.update(steps=2, batch_size=4, log_every=1, edit_every=2, compile_cache=False)
  config.update(data=dict(root=str(folder / 'data')), optimizer=dict(warmup=1))
  config.update(synthetic=dict(scenes=16, val_scenes=8, shards=1))
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(systems._registered, 'fill', fill['SYSTEM'])
    for config.steps in (2, 3):
      assert runs.train(folder / 'run', **config.to_dict()).step == config.steps
    yield folder / 'run'


def test_the_example_system_trains_and_resumes(example_run):
  assert (example_run / 'samples' / '2.png').exists()


def test_the_example_system_edits(example_run, tmp_path):
  inputs = {name: str(ROOT / 'docs/example' / f'{name}.png') for name in ('image', 'mask')}
  output = str(tmp_path / 'out.png')
  assert edit_files.edit_once(str(example_run), output, **inputs) == [output]
  assert Path(output).exists()


# Links, paths, sizes.


def anchor(title: str) -> str:
  """The anchor that GitHub makes for a title."""
  return re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_and_paths_exist(page):
  text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if target.startswith('http'):
      continue
    path, _, part = target.partition('#')
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), target
    if part:
      titles = re.findall(r'^#+ (.*)$', file.read_text(), re.MULTILINE)
      assert part in map(anchor, titles), target
  for path in re.findall(rf'`((?:{FOLDERS})/[\w./-]*)`', text):
    assert path in NOT_YET or (ROOT / path).exists(), path
  for name in re.findall(r'`((?:exedit|input_pipeline|tests)\.[\w.]+)`', text):
    assert pkgutil.resolve_name(name), name


def test_the_measured_structure_holds():
  for row in measure.measure():
    if row.what not in ('source lines', 'test lines'):  # their targets are not reached yet
      assert row.most is None or row.count <= row.most, row


# The weights that ship.


def test_the_shipped_weights_are_small_and_say_where_they_come_from():
  folder = ROOT / 'weights' / 'tiny'
  assert (folder / 'model.safetensors').stat().st_size <= 8e6
  config = json.loads((folder / 'config.json').read_text())
  assert {'seed', 'steps', 'model', 'data', 'exported'} <= set(config)
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[-1])['step'] == config['exported']['step'] == config['steps']


def test_the_shipped_weights_show_the_exemplar(tmp_path):
  weights = str(ROOT / 'weights' / 'tiny')
  results = synthetic_bench.evaluate(weights, str(tmp_path), edits=64, seed=5)
  assert results['own']['identification'] >= 0.4
  assert results['shuffled']['identification'] <= 0.25
  assert results['own']['untouched'] == 64
