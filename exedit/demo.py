r"""A web page to edit photos: paint a hole, drop an exemplar, choose among results.

  python -m exedit.demo
  python -m exedit.demo --weights=Fantasy-Studio/Paint-by-Example --weights=stable-diffusion-v1-4
  python -m exedit.demo --host=0.0.0.0 --token=SECRET --root_path=/edit

It is for this machine alone, unless --host says otherwise; then --token is needed. Once the weights
are here it asks nothing of the network. Pictures, jobs and results stay in --folder, so that they
survive a restart.
"""

import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exedit.editing.settings import CONCEPT
from exedit.page import LOOPBACK
from exedit.runtime import caches, doors
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError

PACKAGES = ('starlette', 'uvicorn', 'multipart')
FLAGS = (
  Flag('weights', [], 'weights to serve, as of exedit.sample; may be given several times', list,
       shown='weights/tiny'),
  *CONCEPT,
  Flag('precision', None, 'the type to compute in', ['float32', 'bfloat16'],
       shown="the weights' own"),
  Flag('clip', None, "CLIP's weights, to rank results by their likeness to exemplars",
       str),
  Flag('host', '127.0.0.1', 'address to listen at; another one needs --token'),
  Flag('port', 7860, 'port to listen at; 0: any that is free', least=0, most=65535),
  Flag('root_path', '', 'the path before all others, behind a proxy, such as /edit'),
  Flag('token', None, 'what a client must know; "auto" draws one', str),
  Flag('folder', None, 'the folder of pictures and results; "temporary": none stay', str,
       shown='in the cache folder of the user'),
  Flag('keep_days', 30.0, 'days after which an unused session is removed', least=0.0),
  Flag('max_megabytes', 64, 'the largest upload', least=1, most=4096),
  Flag('max_megapixels', None, 'the largest picture, in millions of pixels', float, 1, 4000,
       'what a quarter of the memory can edit'),
  Flag('max_seconds', 3600.0, 'the longest time for one job', least=1.0),
)  # fmt: skip


def main(**given: Any) -> None:
  """Serves the page with the given flags."""
  host, token, root = given['host'], given['token'], given['root_path'].rstrip('/')
  if token == '':
    raise UserError('--token is empty: give a word that nobody can guess, or --token=auto')
  if host not in LOOPBACK and token is None:
    raise UserError(
      f'--host={host} lets other machines in, so --token is needed: give one, or --token=auto'
    )
  if root and not (root.startswith('/') and root.isascii() and root.isprintable()):
    raise UserError(f'--root_path={root!r}: it must begin with /, such as /edit')
  if token == 'auto':
    token = secrets.token_urlsafe(24)
  require_packages()
  check_port(host, given['port'])
  with tempfile.TemporaryDirectory(prefix='exedit-page-') as temporary:
    folder = given['folder'] or str(caches.folder('page'))
    folder = os.path.join(temporary, 'page') if folder == 'temporary' else folder
    start(given, host, token or '', root, folder)


def start(given: dict[str, Any], host: str, token: str, root: str, folder: str) -> None:
  """Opens the weights and the data folder, and serves."""
  from exedit.page import editor, ranking, server
  from exedit.runtime import compilation, decode

  compilation.cache_compiled()
  decode.allow(given['max_megapixels'])
  weights = given['weights'] or [tiny()]
  how = dict(concept=given['concept'], force=given['force'] or False, precision=given['precision'])
  editors = editor.open_editors(weights, **how)
  page = server.make_page(
    editors, folder, most=given['max_megabytes'] << 20, seconds=given['max_seconds'],
    token=bool(token), keep_days=given['keep_days'],
    ranking=ranking.Ranking(given['clip']) if given['clip'] else None,
  )  # fmt: skip
  app = server.make_app(page, token=token, root=root)
  shown = f'[{host}]' if ':' in host else 'localhost' if host in ('0.0.0.0', '::') else host
  query = f'?token={token}' if token else ''
  tell = lambda port: print(f'open http://{shown}:{port}{root}/{query}', flush=True)
  server.serve(app, host, given['port'], tell)


def tiny() -> str:
  """The weights of the checkout, which edit drawn scenes."""
  beside = Path(__file__).parents[1] / 'weights' / 'tiny'
  return 'weights/tiny' if os.path.exists('weights/tiny') else str(beside)


def require_packages() -> None:
  """UserError unless the packages of requirements-demo.txt are installed."""
  from importlib.util import find_spec

  if missing := [name for name in PACKAGES if find_spec(name) is None]:
    raise UserError(
      f'{", ".join(missing)} is missing: install it with pip install -r requirements-demo.txt'
    )


def check_port(host: str, port: int) -> None:
  """UserError unless this address can be listened at."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  with socket.socket(family) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind((host, port))
    except OSError as error:
      raise UserError(
        f'cannot listen at {host}:{port} ({error.strerror}): name another --port or --host'
      ) from None


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
