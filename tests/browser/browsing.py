"""A server of the page in a process of its own, and what a person does in the browser."""

import base64
import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

from exedit.editing import edit_files
from tests import ROOT

PATIENCE = 120_000  # milliseconds for an edit on a busy machine
expect.set_options(timeout=30_000)  # for all else


class Server:
  """`python -m exedit.demo` with given weights, which may be killed and started again."""

  def __init__(self, weights, folder):
    self.weights, self.folder, self.port = weights, folder, 0
    self.start()

  def start(self):
    flags = [f'--weights={self.weights}', f'--folder={self.folder}', f'--port={self.port}']
    self.process = subprocess.Popen(
      [sys.executable, '-m', 'exedit.demo', *flags, '--root_path=/edit'], cwd=ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    self.url = self.process.stdout.readline().removeprefix('open ').strip()
    self.port = int(re.search(r':(\d+)/', self.url)[1])
    urllib.request.urlopen(f'{self.url}healthz').close()

  def kill(self):
    self.process.kill()
    self.process.wait()

  def stop(self):
    self.process.send_signal(signal.SIGINT)
    self.process.wait(timeout=60)


@contextlib.contextmanager
def visiting(browser, server, **how):
  """The page in a new session. Fails if it asked another host, or if its scripts failed."""
  context = browser.new_context(**dict(viewport=dict(width=1280, height=800)) | how)
  context.set_default_timeout(30_000)
  page = context.new_page()
  asked, errors = [], []
  page.on('request', lambda request: asked.append(request.url))
  page.on('pageerror', lambda error: errors.append(f'{error}\n{error.stack}'))
  page.goto(server.url)
  expect(page.locator('body')).to_have_attribute('data-ready', 'true', timeout=30_000)
  yield page
  context.close()
  assert not errors, errors
  foreign = [url for url in asked if not url.startswith((server.url, 'blob:', 'data:'))]
  assert not foreign, foreign


def png(array) -> bytes:
  out = io.BytesIO()
  Image.fromarray(array).save(out, 'PNG')
  return out.getvalue()


def scene(height, width) -> np.ndarray:
  """A smooth picture with an ellipse in the middle, which an object selector finds."""
  y, x = np.mgrid[:height, :width] / (height, width)[0]
  ramp = np.stack([150 + 40 * x, 140 + 50 * y, 130 + 0 * x], -1)
  inside = ((x - x.max() / 2) / x.max() * 4) ** 2 + ((y - 0.5) * 4) ** 2 < 1
  return np.where(inside[..., None], (30, 40, 200), ramp).clip(0, 255).astype(np.uint8)


def choose(page: Page, button: str, name: str, data: bytes) -> None:
  """Chooses a file through a button of the page."""
  with page.expect_file_chooser() as chooser:
    page.click(button)
  chooser.value.set_files(dict(name=name, mimeType='image/png', buffer=data))


def transfer(page: Page, data: bytes, name='exemplar.png'):
  """A DataTransfer that holds a file."""
  return page.evaluate_handle(
    """([text, name]) => {
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name, { type: 'image/png' }));
      return transfer;
    }""",
    [base64.b64encode(data).decode(), name],
  )


def drop(page: Page, use: str, data: bytes) -> None:
  """Drags a file over the page, and drops it on the zone of a use (photo, exemplar, mask)."""
  given = transfer(page, data)
  page.dispatch_event('body', 'dragenter', dict(dataTransfer=given))
  page.dispatch_event(f'[data-use={use}]', 'drop', dict(dataTransfer=given))


def open_photo(page: Page, data: bytes, name='photo.png') -> None:
  choose(page, '#empty-open' if page.locator('#empty-open').is_visible() else '#open', name, data)
  expect(page.locator('#photo-name')).to_contain_text(name)
  expect(page.locator('#undo')).to_be_disabled()


def place(page: Page, x: float, y: float, stage='#stage') -> tuple[float, float]:
  """A point of the stage, in shares of its width and height."""
  box = page.locator(stage).bounding_box()
  return box['x'] + box['width'] * x, box['y'] + box['height'] * y


def stroke(page: Page, *points: tuple[float, float], stage='#stage') -> None:
  """Draws with the mouse through points in shares of the stage."""
  page.mouse.move(*place(page, *points[0], stage))
  page.mouse.down()
  for point in points[1:]:
    page.mouse.move(*place(page, *point, stage), steps=5)
  page.mouse.up()


def share(page: Page) -> float:
  """The percentage of the photo that the page says is masked."""
  expect(page.locator('.share').first).to_contain_text('%')
  return float(page.text_content('.share').removeprefix('under ').split()[0])


def few(page: Page, candidates=1) -> None:
  """Settings of a quick run: the small weights' own."""
  page.click('[data-preset=best]')
  page.select_option('#count', str(candidates))


def run(page: Page, candidates=1) -> None:
  """Runs, and waits until all candidates are there."""
  page.click('#run')
  finished(page, candidates)


def finished(page: Page, candidates: int) -> None:
  newest = page.locator('.group-card').first
  expect(newest).to_have_class(re.compile('done'), timeout=PATIENCE)
  expect(newest.locator('[data-result]')).to_have_count(candidates)


def download(page: Page, button: str) -> bytes:
  with page.expect_download() as found:
    page.click(button)
  return open(found.value.path(), 'rb').read()


def get(page: Page, path: str) -> bytes:
  """An answer of the server to this session."""
  answer = page.request.get(page.url + path)
  assert answer.ok, answer.text()
  return answer.body()


def newest_job(page: Page) -> dict:
  return json.loads(get(page, 'api/jobs'))['jobs'][0]


def newest_mask(page: Page, region=0) -> np.ndarray:
  data = get(page, f'api/jobs/{newest_job(page)["id"]}/masks/{region}')
  return np.asarray(Image.open(io.BytesIO(data)))


def shell(page: Page, weights: str, seed: int, recipe: bytes) -> bytes:
  """The file that exedit.sample writes from what the page has sent.

  A recipe names its files and weights relative to the output, so the output lies as deep.
  """
  job = newest_job(page)
  source = Path(json.loads(recipe)['weights']['source'])
  depth = source.parts.count('..')
  base = Path(weights).parents[len(source.parts) - depth - 1]
  folder = Path(tempfile.mkdtemp(dir=base), *['deeper'] * (depth - 1))
  folder.mkdir(parents=True, exist_ok=True)
  [region] = job['request']['regions']
  sent = dict(
    image=f'api/pictures/{job["picture"]}/file', mask=f'api/jobs/{job["id"]}/masks/0',
    exemplar=f'api/pictures/{region["exemplar"]["picture"]}/file',
  )  # fmt: skip
  given = {}
  for name, entry in json.loads(recipe)['inputs'].items():
    path = folder / entry['path']
    path.write_bytes(get(page, sent[name]))
    given[name] = str(path)
  output = folder / 'shell.png'
  edit_files.edit_once(weights, str(output), **given, seed=seed, say=lambda line: None)
  return output.read_bytes()
