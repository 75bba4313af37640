"""Architectures of transformers, from tiny configurations: nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from architectures.architecture import Architecture, Inputs, images, noise
from architectures.packages import package

_TEXT: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = {**_TEXT, "intermediate_size": 64, "max_position_embeddings": 64}
_DECODER = {**_BERT, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0, "eos_token_id": 1}
_PATCHES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False,
    "decoder_start_token_id": 0,
}  # fmt: skip


def _net(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        package("torchvision")
        library = package("transformers")
        return getattr(library, model)(getattr(library, config)(**options))

    return build


def _words(batch: int, length: int = 12) -> Tensor:
    return torch.randint(2, 99, (batch, length))


def ids(batch: int) -> tuple[Tensor]:
    return (_words(batch),)


def masked(batch: int) -> dict[str, Tensor]:
    """Keyword inputs whose second half is padding in some samples."""
    lengths = torch.randint(6, 13, (batch, 1))
    return {"input_ids": _words(batch), "attention_mask": (torch.arange(12) < lengths).long()}


def _pair(batch: int) -> dict[str, Tensor]:
    return {"input_ids": _words(batch), "decoder_input_ids": _words(batch, 9)}


def _clip(batch: int) -> dict[str, Tensor]:
    return {"input_ids": _words(batch), "pixel_values": torch.randn(batch, 3, 32, 32)}


_CLIP = {"text_config": {**_BERT, "eos_token_id": 98}, "vision_config": _PATCHES, "projection_dim": 24}
_SPEECH: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (24, 24, 24), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 20, "apply_spec_augment": False,
}  # fmt: skip
_WHISPER: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 16,
    "max_source_positions": 20, "max_target_positions": 20, "use_cache": False, "pad_token_id": 0,
    "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip


class WhisperEncoder(nn.Module):
    """The encoder alone, as it is deployed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _net("WhisperModel", "WhisperConfig", **_WHISPER)().encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).last_hidden_state


def _whisper(batch: int) -> dict[str, Tensor]:
    return {"input_features": torch.randn(batch, 16, 40), "decoder_input_ids": _words(batch, 9)}


_ROWS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "minilm_encoder": (_net("BertModel", "BertConfig", **_BERT), masked),
    "bert": (_net("BertForMaskedLM", "BertConfig", **_BERT), ids),
    "bert_attention_mask": (_net("BertForSequenceClassification", "BertConfig", **_BERT), masked),
    "roberta": (_net("RobertaForSequenceClassification", "RobertaConfig", **_BERT), masked),
    "distilbert": (_net("DistilBertForSequenceClassification", "DistilBertConfig", vocab_size=99, dim=32,
                        n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64), masked),
    "electra": (_net("ElectraForSequenceClassification", "ElectraConfig", embedding_size=32, **_BERT), masked),
    "albert": (_net("AlbertForSequenceClassification", "AlbertConfig", embedding_size=16, **_BERT), masked),
    "mpnet": (_net("MPNetForSequenceClassification", "MPNetConfig", **_BERT), masked),
    "deberta_v2": (_net("DebertaV2ForSequenceClassification", "DebertaV2Config", relative_attention=True,
                        position_buckets=8, pos_att_type=["p2c", "c2p"], **_BERT), masked),
    "modernbert": (_net("ModernBertForSequenceClassification", "ModernBertConfig", **_BERT, local_attention=8,
                        pad_token_id=0, bos_token_id=1, eos_token_id=1, cls_token_id=1, sep_token_id=1), masked),
    "gpt2": (_net("GPT2LMHeadModel", "GPT2Config", vocab_size=99, n_positions=32, n_embd=32, n_layer=2, n_head=4,
                  use_cache=False), ids),
    "llama": (_net("LlamaForCausalLM", "LlamaConfig", **_DECODER), ids),
    "llama_attention_mask": (_net("LlamaForCausalLM", "LlamaConfig", **_DECODER), masked),
    "qwen2": (_net("Qwen2ForCausalLM", "Qwen2Config", **_DECODER), ids),
    "qwen3": (_net("Qwen3ForCausalLM", "Qwen3Config", head_dim=8, **_DECODER), ids),
    "mistral": (_net("MistralForCausalLM", "MistralConfig", sliding_window=8, **_DECODER), ids),
    "gemma": (_net("GemmaForCausalLM", "GemmaConfig", head_dim=8, **_DECODER), ids),
    "phi": (_net("PhiForCausalLM", "PhiConfig", **_DECODER), ids),
    "gpt_neox": (_net("GPTNeoXForCausalLM", "GPTNeoXConfig", **_BERT, use_cache=False), ids),
    "opt": (_net("OPTForCausalLM", "OPTConfig", vocab_size=99, hidden_size=32, num_hidden_layers=2, ffn_dim=64,
                 num_attention_heads=4, max_position_embeddings=32, word_embed_proj_dim=32, use_cache=False), masked),
    "t5_encoder": (_net("T5EncoderModel", "T5Config", **_T5), masked),
    "t5_seq2seq": (_net("T5ForConditionalGeneration", "T5Config", **_T5), _pair),
    "bart_seq2seq": (_net("BartModel", "BartConfig", vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1,
                          encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
                          max_position_embeddings=32, use_cache=False), _pair),
    "whisper_encoder": (WhisperEncoder, noise(16, 40)),
    "whisper_seq2seq": (_net("WhisperForConditionalGeneration", "WhisperConfig", **_WHISPER), _whisper),
    "wav2vec2_ctc": (_net("Wav2Vec2ForCTC", "Wav2Vec2Config", **_SPEECH), noise(800)),
    "hubert": (_net("HubertModel", "HubertConfig", **_SPEECH), noise(800)),
    "vit": (_net("ViTForImageClassification", "ViTConfig", **_PATCHES), images(32)),
    "dinov2": (_net("Dinov2ForImageClassification", "Dinov2Config", **_PATCHES), images(32)),
    "clip_vision": (_net("CLIPVisionModel", "CLIPVisionConfig", **_PATCHES), images(32)),
    "clip": (_net("CLIPModel", "CLIPConfig", **_CLIP), _clip),
    "siglip_vision": (_net("SiglipVisionModel", "SiglipVisionConfig", **_PATCHES), images(32)),
    "segformer": (_net("SegformerForSemanticSegmentation", "SegformerConfig", num_encoder_blocks=2, depths=[1, 1],
                       sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4, 2],
                       num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=32), images(32)),
    "swin": (_net("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=2, embed_dim=16, depths=[2, 2],
                  num_heads=[2, 4], window_size=4), images(32)),
    "resnet": (_net("ResNetForImageClassification", "ResNetConfig", embedding_size=16, hidden_sizes=[32, 64],
                    depths=[1, 1]), images(32)),
    "time_series_patch": (_net("PatchTSTForPrediction", "PatchTSTConfig", num_input_channels=3, context_length=32,
                               patch_length=8, patch_stride=8, prediction_length=8, d_model=32, ffn_dim=64,
                               num_hidden_layers=2, num_attention_heads=4), noise(32, 3)),
    "mamba": (_net("MambaForCausalLM", "MambaConfig", vocab_size=99, hidden_size=32, state_size=8,
                   num_hidden_layers=2, use_cache=False), ids),
}  # fmt: skip
_CONVOLUTIONAL = {"resnet"}
NETS = {
    f"transformers.{name}": Architecture(
        build, inputs, "conv" if name in _CONVOLUTIONAL else "attention", "transformers"
    )
    for name, (build, inputs) in _ROWS.items()
}
