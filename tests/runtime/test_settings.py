import pytest

from exedit.runtime import settings
from exedit.runtime.errors import UserError


def function(a, *, width=1, height=2, **others):
  pass


class Net:
  def __init__(self, *, width, height=3):
    pass


@pytest.mark.parametrize('taker', [function, Net])
def test_check_names_the_nearest_key_or_all(taker):
  settings.check(dict(width=2, height=1), taker, 'config.x')
  with pytest.raises(UserError, match=r"config\.x\.widht is not a setting: did you mean 'width'"):
    settings.check(dict(widht=3), taker, 'config.x')
  with pytest.raises(UserError, match='config.x.zzz is not a setting; there are: .*width, height'):
    settings.check(dict(zzz=3), taker, 'config.x')


def test_check_complete_names_what_is_missing():
  settings.check_complete(dict(width=1), Net, 'config')
  with pytest.raises(UserError, match='config.width is not set, and it has no default'):
    settings.check_complete(dict(height=1), Net, 'config')


def build(net):
  return Net(**net)


def test_a_wrong_key_deep_in_a_group_is_named_with_its_path():
  config = dict(seed=0, model=dict(net=dict(width=1, heigth=3)))
  with pytest.raises(UserError, match=r'config\.model\.net\.heigth is not a setting'):
    with settings.fixable(config):
      build(config['model']['net'])


def test_a_wrong_value_is_its_own_line():
  with pytest.raises(UserError, match='^two lines$'):
    with settings.fixable({}):
      raise ValueError('two\n  lines')


def test_other_type_errors_stay_what_they_are():
  with pytest.raises(TypeError, match='heigth'):
    with settings.fixable(dict(seed=0)):
      build(dict(width=1, heigth=3))
  with pytest.raises(TypeError, match='unsupported'):
    with settings.fixable({}):
      _ = 1 + 'a'


def test_differences_are_named_by_path():
  old, new = dict(a=1, b=dict(c=2, d=3)), dict(a=1, b=dict(c=4, e=5))
  assert settings.differences(old, new) == ['b.c 2 -> 4', 'b.d 3 -> None', 'b.e None -> 5']


@pytest.mark.parametrize(
  'kind, config, words',
  [
    ('training', dict(bench='coco_ee', data={}), 'of a benchmark, which exedit.evaluate takes'),
    ('training', dict(edits=3), 'of no training: name one of a training, such as configs/pbe.py'),
    ('training', None, 'get_config.. of the config file returned NoneType'),
    (
      'benchmark',
      dict(system='toy'),
      'of a training, which exedit.train takes: name one of a bench',
    ),
  ],
)
def test_a_config_of_another_kind_is_said(kind, config, words):
  with pytest.raises(UserError, match=words):
    getattr(settings, kind)(config)
