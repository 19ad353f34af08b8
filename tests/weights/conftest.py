"""Weights on disk, and a cache folder for the digests of them."""

import shutil

import pytest

from tests import released


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
  """A cache folder of its own for each test, because digests are stored there."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


@pytest.fixture(scope='session')
def pipeline(tmp_path_factory):
  return released.write_pipeline(tmp_path_factory.mktemp('released') / 'pipeline')


@pytest.fixture
def folder(pipeline, tmp_path):
  """A copy of the pipeline that a test may change."""
  return shutil.copytree(pipeline, tmp_path / 'pipeline')
