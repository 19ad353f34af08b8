"""The server that the modules of this folder share with their `weights`."""

import pytest

from tests.page.serving import serving


@pytest.fixture(scope='module')
def server(weights, tmp_path_factory):
  """Makes clients of a running server; see `serving`."""
  with serving(weights, tmp_path_factory.mktemp('data') / 'page') as found:
    yield found
