"""The browser, the server and the weights of these tests; `launch/test.sh --browser` runs them."""

import os

import pytest

from tests import small


@pytest.fixture(scope='session')
def browser():
  from playwright.sync_api import sync_playwright

  path = os.environ.get('EXEDIT_CHROMIUM') or pytest.skip(
    'launch/test.sh --browser finds a Chromium'
  )
  # No name of a host is found, so a request to another one fails.
  flags = ['--no-sandbox', '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1']
  with sync_playwright() as playwright:
    yield playwright.chromium.launch(executable_path=path, args=flags)


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
  return small.export(tmp_path_factory.mktemp('weights') / 'small')


@pytest.fixture(scope='session')
def server(browser, weights, tmp_path_factory):
  from tests.browser import browsing

  found = browsing.Server(weights, tmp_path_factory.mktemp('data') / 'page')
  yield found
  found.stop()


@pytest.fixture
def page(browser, server):
  from tests.browser import browsing

  with browsing.visiting(browser, server) as found:
    yield found
