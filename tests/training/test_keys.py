"""The keys of a config in `train --help`: each with its value and a meaning."""

import pytest

from configs import autoencoder, clip, pbe, sd
from exedit.training import keys


@pytest.mark.parametrize('variant', ['full', 'tiny'])
@pytest.mark.parametrize('recipe', [pbe, autoencoder, sd, clip])
def test_every_key_of_the_recipe_has_a_value_and_a_meaning(recipe, variant):
  config = recipe.get_config(variant)
  rows = [*keys.rows(config.to_dict())]
  assert not [path for path, _, text in rows if not text]
  values = {path: value for path, value, _ in rows}
  assert values['optimizer.lr'] == str(config.optimizer.lr) and values['init_from'] == 'None'
  assert values['data.size'] == str(config.data.size)
  assert recipe is clip or variant == 'tiny' or values['synthetic'] == '{}'


def test_the_listing_is_of_the_config_that_is_given():
  assert '--config.steps=300000' in keys.listing()
  said = keys.listing(pbe.get_config('tiny'))
  assert '--config.steps=1800             ' in said and '--config.synthetic.scenes=20000' in said
  assert 'learning rate after the warm-up' in said


def test_the_keys_of_another_system_are_listed_too():
  rows = [*keys.rows(dict(system='other', model=dict(size=3), edit=dict(steps=2)))]
  assert [(path, value) for path, value, _ in rows] == [
    ('system', 'other'), ('model.size', '3'), ('edit.steps', '2'),
  ]  # fmt: skip
