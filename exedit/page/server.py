"""The server: the answers behind the guard, and the loop that takes connections."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from exedit.page import api, operations, programs
from exedit.page.editor import Editor, Worker
from exedit.page.guard import Guard, Refused, refuse
from exedit.page.orders import Busy, Queue
from exedit.page.ranking import Ranking
from exedit.page.store import Missing, Store
from exedit.runtime.errors import UserError, disk_is_full, explain

STATIC = Path(__file__).with_name('static')
MOST_BYTES = 64 << 20  # of an upload
SECONDS = 3600.0  # for one job
AGAIN = {'Retry-After': '5'}  # seconds
CONNECTIONS = 1024
IDLE, HEAD_SECONDS = 30, 15.0  # seconds: between requests, and for the head of a request
LOG = logging.getLogger('exedit.page')


class Static(StaticFiles):
  """The files of the page; the browser asks each time whether they have changed."""

  def file_response(self, *args: Any, **how: Any) -> Response:
    answer = super().file_response(*args, **how)
    answer.headers['Cache-Control'] = 'no-cache'
    return answer


async def index(request: Request) -> Response:
  """The page."""
  return FileResponse(STATIC / 'index.html', headers={'Cache-Control': 'no-cache'})


def make_app(page: api.Page, *, token: str = '', root: str = '') -> ASGIApp:
  """The whole application; its worker runs between startup and shutdown."""

  @contextlib.asynccontextmanager
  async def lifespan(app):
    page.worker.start()
    try:
      yield
    finally:
      page.closing = True
      await asyncio.to_thread(page.worker.stop)
      page.store.close()

  routes = [
    Route('/', index),
    *api.ROUTES,
    *programs.ROUTES,
    *operations.ROUTES,
    Mount('/static', Static(directory=STATIC, check_dir=False)),
  ]
  handlers: Mapping[Any, Any] = {
    UserError: refused,
    HTTPException: refused,
    OSError: refused,
    ClientDisconnect: refused,
    Exception: refused,
  }
  app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
  app.state.page = page
  return Guard(app, secret=page.store.secret, token=token, root=root, most=page.most)


async def refused(request: Request, error: Exception) -> Response:
  """The answer to a request that raised an error: the sentence that the shell would print."""
  route = request.scope['path'][len(request.scope.get('root_path', '')) :]
  if isinstance(error, Refused):
    return refuse(route, error.code, str(error))
  if isinstance(error, ClientDisconnect):
    return refuse(route, 499, 'the client has gone')
  if disk_is_full(error):
    return refuse(route, 507, 'the disk of the server is full: try again later')
  if isinstance(error, Busy):
    return refuse(route, 503, str(error), **AGAIN)
  if isinstance(error, Missing):
    return refuse(route, 404, str(error))
  if isinstance(error, HTTPException):
    known = {404: 'there is nothing here', 405: 'this method is not for this address'}
    return refuse(route, error.status_code, known.get(error.status_code, str(error.detail)))
  line = explain(error)
  if isinstance(error, UserError):
    return refuse(route, 400, line or '')
  LOG.error('%s %s failed', request.method, route, exc_info=error)
  return refuse(route, 500, f'the server failed ({type(error).__name__}); its log has more')


def make_page(
  editors: Mapping[str, Editor],
  folder: str | os.PathLike,
  *,
  most: int = MOST_BYTES,
  seconds: float = SECONDS,
  token: bool = False,
  keep_days: float = 30.0,
  ranking: Ranking | None = None,
) -> api.Page:
  """The parts of a server in this data folder. most: bytes of an upload. seconds: for one job."""
  places = Store(folder)
  places.clean(keep_days)
  queue = Queue(places)
  worker = Worker(editors, queue, seconds, ranking)
  return api.Page(places, queue, worker, editors, most, token)


class Connection(H11Protocol):
  """A connection that is closed if the head of a request does not arrive in time."""

  _timer: asyncio.TimerHandle | None = None

  def connection_made(self, transport: Any) -> None:
    super().connection_made(transport)
    self._wait()

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    self._wait()

  def connection_lost(self, exc: Exception | None) -> None:
    super().connection_lost(exc)
    if self._timer is not None:
      self._timer.cancel()

  def _wait(self) -> None:
    """Starts the clock while a head is awaited, and stops it when one has come."""
    waiting = self.conn.their_state is h11.IDLE
    if waiting and self._timer is None:
      self._timer = self.loop.call_later(HEAD_SECONDS, self._late)
    elif not waiting and self._timer is not None:
      self._timer.cancel()
      self._timer = None

  def _late(self) -> None:
    if self.conn.their_state is h11.IDLE:
      self.transport.close()


class _Server(uvicorn.Server):
  """A server that tells its port when it takes connections."""

  def __init__(self, config: uvicorn.Config, told: Callable[[int], Any]):
    super().__init__(config)
    self._told = told

  async def startup(self, sockets: Any = None) -> None:
    await super().startup(sockets)
    if self.started:
      self._told(self.servers[0].sockets[0].getsockname()[1])


def serve(app: ASGIApp, host: str, port: int, told: Callable[[int], Any]) -> None:
  """Takes connections until Ctrl-C or SIGTERM. told: gets the port, which is free if it was 0."""
  config = uvicorn.Config(
    app, host=host, port=port, http=Connection, ws='none', lifespan='on', log_level='warning',
    access_log=False, server_header=False, timeout_keep_alive=IDLE, limit_concurrency=CONNECTIONS,
    timeout_graceful_shutdown=3,
  )  # fmt: skip
  _Server(config, told).run()
