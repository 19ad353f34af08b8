"""Who may ask what: hosts, origins, the token, sessions, and limits of size and time of a request.

Without a token the server is for this machine only, so the request must name this machine as its
host: a foreign site whose name points here is refused. A request that changes something must come
from the page itself, or carry the token. A session is a signed cookie.
"""

import asyncio
import hashlib
import hmac
import secrets
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exedit.page import LOOPBACK
from exedit.runtime.errors import UserError

SAFE = ('GET', 'HEAD', 'OPTIONS')
OPEN = ('/healthz', '/readyz')  # for supervisors, which have no token
LINKED = '/v1/results/'  # such links carry a key of their own
KEEP = 30 * 86400  # seconds that a browser keeps its session
CHUNK_SECONDS = 30.0  # for the next part of an upload, and for a client to take one of an answer
SLOWEST = 16384  # bytes a second of an upload, beyond CHUNK_SECONDS
POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
  "connect-src 'self'; font-src 'self'; manifest-src 'self'; worker-src 'self'; "
  "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
  'Content-Security-Policy': POLICY,
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
}
LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>exedit</title>
<body><h1>exedit</h1><form method="get"><label>Token
<input name="token" type="password" autocomplete="current-password" autofocus></label>
<button>Open</button></form></body></html>
"""


# A link on another site brings no SameSite cookie along; the same request by this page does.
RETURN = '<!doctype html><meta http-equiv="refresh" content="0;url={}/"><title>exedit</title>\n'


class Refused(UserError):
  """A request that is not allowed; `code` is the status of HTTP."""

  def __init__(self, code: int, line: str):
    super().__init__(line)
    self.code = code


class Guard:
  """The outermost layer of the server; it puts the name of the session into `state`.

  secret: signs cookies. token: what a client must know; '' if the server is for this machine only.
  root: the path before all others, such as '/edit'. most: bytes of a request.
  """

  def __init__(self, app: ASGIApp, *, secret: str, token: str, root: str, most: int):
    self.app, self.token, self.root, self.most = app, token, root.rstrip('/'), most
    self._key = hashlib.sha256(f'{secret} {token}'.encode()).digest()
    self.cookie = f'exedit-{hashlib.sha256(secret.encode()).hexdigest()[:8]}'

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      if scope['type'] == 'lifespan':
        await self.app(scope, receive, send)
      return
    path = scope['path']
    inside = path == self.root or path.startswith(f'{self.root}/')
    scope['path'] = path if inside else self.root + path  # a proxy may have cut the root off
    scope['root_path'] = self.root
    route, headers = scope['path'][len(self.root) :], Headers(scope=scope)
    limited = _Limits(receive, send, headers, self.most)
    send = self._answer(scope, limited.send)
    try:
      refusal = self._enter(scope, route, headers)
      if refusal is None:
        limited.check_length()
        await self.app(scope, limited.receive, send)
        return
    except Refused as error:
      refusal = refuse(route, error.code, str(error))
    await refusal(scope, receive, send)

  def _enter(self, scope: Scope, route: str, headers: Headers) -> Response | None:
    """Checks the request and finds its session; returns the answer if it may not go on."""
    if route == '':  # without the last slash the page's relative links would miss the root
      query = scope['query_string'].decode('latin-1')
      return RedirectResponse(f'{self.root}/{f"?{query}" if query else ""}', 308)
    if route in OPEN or route.startswith(LINKED):
      return None
    bearer = self._bearer(headers)
    if not self.token and _hostname(headers.get('host', '')) not in LOOPBACK:
      name = headers.get('host', '')
      raise Refused(403, f'this server is for this machine, not for {name!r:.80}: give a --token')
    if scope['method'] not in SAFE and not bearer:
      _check_origin(headers)
    cookie = self._cookie(headers)
    asked = parse_qs(scope['query_string'].decode('latin-1')).get('token', [''])[0]
    foreign = headers.get('sec-fetch-site') == 'cross-site'
    if route == '/' and foreign and not (cookie or bearer or asked):
      return HTMLResponse(RETURN.format(self.root))
    state = scope.setdefault('state', {})
    if bearer:
      state['session'] = self._name(f'bearer {self.token}')
    elif cookie:
      if route == '/' and asked:
        return RedirectResponse(f'{self.root}/', 303)
      state['session'] = self._name(cookie)
    elif not self.token:
      self._new_session(state)
      if foreign:  # the browser may have another one, which it does not send
        del state['cookie']
    else:
      return self._login(scope, route, state, asked)
    return None

  def _login(self, scope: Scope, route: str, state: dict[str, Any], given: str) -> Response | None:
    """What a client without a session sees if there is a token; given: by the address."""
    if route == '/' and scope['method'] == 'GET':
      if given and self._is_token(given):
        self._new_session(state)
        return RedirectResponse(f'{self.root}/', 303)
      return HTMLResponse(LOGIN, 401)
    raise Refused(401, 'the token is missing or wrong: send Authorization: Bearer TOKEN')

  def _new_session(self, state: dict[str, Any]) -> None:
    value = secrets.token_urlsafe(24)
    value = f'{value}.{self._sign(value)}'
    state['session'], state['cookie'] = self._name(value), value

  def _cookie(self, headers: Headers) -> str | None:
    """The cookie of the request if we have signed it."""
    found = cookie_parser(headers.get('cookie', '')).get(self.cookie, '')
    value, _, signature = found.partition('.')
    return found if same(signature, self._sign(value)) else None

  def _sign(self, value: str) -> str:
    return hmac.new(self._key, value.encode(), 'sha256').hexdigest()

  def _name(self, cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()[:32]

  def _bearer(self, headers: Headers) -> bool:
    kind, _, given = headers.get('authorization', '').partition(' ')
    if kind.lower() != 'bearer' or not self.token:  # without a token, any key of a client will do
      return False
    if not self._is_token(given.strip()):
      raise Refused(401, 'the token is wrong')
    return True

  def _is_token(self, given: str) -> bool:
    return same(given, self.token)

  def _answer(self, scope: Scope, send: Send) -> Send:
    """Adds the headers of every answer, and the cookie of a new session."""

    async def wrapped(message: Message) -> None:
      if message['type'] == 'http.response.start':
        headers = MutableHeaders(scope=message)
        for name, value in HEADERS.items():
          headers.setdefault(name, value)
        headers.setdefault('Cache-Control', 'no-store')
        if value := scope.get('state', {}).get('cookie'):
          safe = '; Secure' if scope.get('scheme') == 'https' else ''
          headers.append(
            'Set-Cookie',
            f'{self.cookie}={value}; Path={self.root or "/"}; Max-Age={KEEP}; HttpOnly; '
            f'SameSite=Strict{safe}',
          )
      await send(message)

    return wrapped


class _Limits:
  """`receive` and `send` of a request that may neither be too large nor take too long."""

  def __init__(self, receive: Receive, send: Send, headers: Headers, most: int):
    self._receive, self._send, self._headers, self.most = receive, send, headers, most
    self._bytes, self._began, self._whole = 0, None, False

  def check_length(self) -> None:
    """Refuses by the stated length, before anything is read."""
    stated = self._headers.get('content-length', '')
    if stated.isdigit() and int(stated) > self.most:
      raise Refused(413, f'the upload has {int(stated)} bytes, and {self.most} are allowed')

  async def receive(self) -> Message:
    if self._whole:  # it waits for the client to go away
      return await self._receive()
    loop = asyncio.get_running_loop()
    self._began = loop.time() if self._began is None else self._began
    left = self._began + CHUNK_SECONDS + self._bytes / SLOWEST - loop.time()
    try:
      async with asyncio.timeout(min(CHUNK_SECONDS, left)):
        message = await self._receive()
    except TimeoutError:
      raise Refused(408, 'the upload is too slow, or has stopped: send it again') from None
    self._bytes += len(message.get('body', b''))
    self._whole = not message.get('more_body', False)
    if self._bytes > self.most:
      raise Refused(413, f'the upload has more than the {self.most} bytes allowed')
    return message

  async def send(self, message: Message) -> None:
    try:
      async with asyncio.timeout(CHUNK_SECONDS):
        await self._send(message)
    except TimeoutError:
      raise OSError('the client does not take its answer') from None


def _hostname(host: str) -> str:
  try:
    return urlsplit(f'//{host}').hostname or ''
  except ValueError:
    return ''


def _check_origin(headers: Headers) -> None:
  """Refuses what another site makes a browser send."""
  site, origin = headers.get('sec-fetch-site'), headers.get('origin')
  if site is not None:
    same = site in ('same-origin', 'none')
  else:
    same = origin is None or urlsplit(origin).netloc == headers.get('host')
  if not same:
    raise Refused(403, 'this request comes from another site: use the page of this server')


def refuse(route: str, code: int, line: str, **headers: str) -> Response:
  """The answer with this sentence, in the shape that clients of the route know."""
  error: Any = line
  if route.startswith('/v1/'):
    kind = 'invalid_request_error' if code < 500 else 'server_error'
    error = dict(message=line, type=kind, param=None, code=None)
  if code in (408, 413):  # the rest of the upload is not read
    headers['Connection'] = 'close'
  return JSONResponse(dict(error=error), code, headers=headers)


def same(given: str, secret: str) -> bool:
  """Whether a client knows the secret; the time does not tell how much of it."""
  return hmac.compare_digest(given.encode(), secret.encode())


def key_of(secret: str, name: str) -> str:
  """The key that a link to a result carries, for programs without a session."""
  return hmac.new(secret.encode(), f'result {name}'.encode(), 'sha256').hexdigest()
