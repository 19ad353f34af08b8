import pytest

from exedit.runtime import settings
from exedit.runtime.errors import UserError


def function(a, *, width=1, height=2, **others):
  pass


def test_check_names_the_nearest_key():
  settings.check(dict(a=1, width=2), function, 'config.x')
  with pytest.raises(UserError, match=r"config\.x\.widht is not a setting: did you mean 'width'"):
    settings.check(dict(widht=3), function, 'config.x')


def test_check_names_all_keys_where_none_is_near():
  with pytest.raises(UserError, match='config.x.zzz is not a setting; there are: a, width, height'):
    settings.check(dict(zzz=3), function, 'config.x')
  settings.check(dict(count=3), function, 'config.x', also=['count'])


def test_check_complete_names_what_is_missing():
  def needs(*, steps, seed=0):
    pass

  settings.check_complete(dict(steps=1), needs, 'config')
  with pytest.raises(UserError, match='config.steps is not set, and it has no default'):
    settings.check_complete(dict(seed=1), needs, 'config')


class Net:
  def __init__(self, *, channels=3):
    pass


def build(net):
  return Net(**net)


def test_a_wrong_key_deep_in_a_group_is_named_with_its_path():
  config = dict(seed=0, model=dict(net=dict(chanels=3)))
  words = r"config\.model\.net\.chanels is not a setting: did you mean 'channels'\?"
  with pytest.raises(UserError, match=words):
    with settings.mendable(config):
      build(config['model']['net'])


def test_a_wrong_value_is_its_own_line():
  with pytest.raises(UserError, match='^two lines$'):
    with settings.mendable({}):
      raise ValueError('two\n  lines')


def test_other_type_errors_stay_what_they_are():
  with pytest.raises(TypeError, match='chanels'):
    with settings.mendable(dict(seed=0)):
      build(dict(chanels=3))
  with pytest.raises(TypeError, match='unsupported'):
    with settings.mendable({}):
      _ = 1 + 'a'
