"""Forms: what an edit takes, known without JAX (tests/runtime/test_doors.py proves that)."""

from exedit import latent_diffusion, systems
from exedit.editing import settings


def test_forms_without_jax_are_the_systems_own():
  found = systems.all_systems()
  assert systems.forms().keys() == found.keys()
  for name, form in systems.forms().items():
    assert (form.inputs, form.settings) == (found[name].inputs, found[name].settings)
  assert {*settings.SAMPLERS} == {*latent_diffusion.SAMPLERS}
