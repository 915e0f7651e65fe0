"""Pretrained language models by family: loading, tokens, logits, decoding."""

from kif_lightning.backbones.decoder import DecoderBackbone
from kif_lightning.backbones.loading import bundled_folder
from kif_lightning.backbones.seq2seq import Seq2SeqBackbone

__all__ = ["DecoderBackbone", "Seq2SeqBackbone", "bundled_folder"]
