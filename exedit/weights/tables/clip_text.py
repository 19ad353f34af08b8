"""CLIPText <-> transformers' CLIPTextModel, with or without its `text_model.` level."""

from exedit.weights.tables import clip
from exedit.weights.translate import SAME, Row, norm, under

# transformers 5 writes no `text_model.`; earlier versions and LDM's checkpoints did.
TABLE: list[Row] = under(
  '[text_model.|]',
  '',
  [
    ('embeddings.token_embedding.weight', 'token_embedding', SAME),
    ('embeddings.position_embedding.weight', 'position_embedding', SAME),
    ('embeddings.position_ids', None, SAME),  # 0, 1, 2, ...: a buffer of old files
    *under('encoder.layers.{i}.', 'layers.{i}.', clip.LAYER),
    *norm('final_layer_norm', 'final_norm'),
  ],
)
