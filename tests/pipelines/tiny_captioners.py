"""Captioners of a few thousand random weights, native ones and VC-GPT; tokenizers built in code, nothing downloaded.

Weights are drawn wide, so that different pictures get different texts; with the usual standard deviation of 0.02 every
picture gets the same one and a test could not tell them apart.
"""

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
    Pix2StructImageProcessorPil,
    Pix2StructProcessor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_vlp import VcGptConfig, VcGptForConditionalGeneration, VcGptProcessor

WORDS = "a the photo picture of red green blue small large circle square triangle cross above below left right".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]"]
SIZE = {"height": 16, "width": 16}
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def picture(seed: int, size: int = 20) -> Image.Image:
    """A noise picture, the same for the same seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def bert_like_tokenizer() -> PreTrainedTokenizerFast:
    """Words between blanks, `[CLS] text [SEP]`."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    tokens = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[BOS]", "eos": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{k}_token": v for k, v in tokens.items()})


def gpt_like_tokenizer() -> PreTrainedTokenizerFast:
    """Neither a padding token nor special tokens around a text, as GPT-2's."""
    vocabulary = {word: index for index, word in enumerate(["<|endoftext|>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)


def widen(model, scale: float = 0.6, seed: int = 0):
    """Redraw all matrices; see the top of the file."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, scale, generator=generator)
    return model.eval()


def save_blip(directory):
    """With a processor that takes pictures and text."""
    torch.manual_seed(0)
    tokenizer = bert_like_tokenizer()
    ids = {"bos_token_id": 4, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = {**TINY, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "encoder_hidden_size": 32}
    vision = {**TINY, "image_size": 16, "patch_size": 8}
    model = widen(BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)))
    model.save_pretrained(directory)
    BlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer).save_pretrained(directory)
    return directory


def save_vision_encoder_decoder(directory):
    """ViT and GPT-2, with an image processor and a tokenizer, without a processor."""
    torch.manual_seed(0)
    tokenizer = gpt_like_tokenizer()
    encoder = ViTModel(ViTConfig(**TINY, image_size=16, patch_size=8), add_pooling_layer=False)
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=32,
            n_layer=1,
            n_head=2,
            n_positions=24,
            bos_token_id=0,
            eos_token_id=0,
            add_cross_attention=True,
            is_decoder=True,
        )
    )
    model = widen(VisionEncoderDecoderModel(encoder=encoder, decoder=decoder))
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 0
    model.config.pad_token_id = model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 0
    model.save_pretrained(directory)
    ViTImageProcessorPil(size=SIZE).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_git(directory):
    """Text and visual tokens in one decoder."""
    torch.manual_seed(0)
    tokenizer = bert_like_tokenizer()
    config = GitConfig(
        **TINY,
        vocab_size=len(tokenizer),
        max_position_embeddings=24,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        vision_config={**TINY, "image_size": 16, "patch_size": 8},
    )
    widen(GitForCausalLM(config)).save_pretrained(directory)
    GitProcessor(CLIPImageProcessorPil(size=SIZE, crop_size=SIZE), tokenizer).save_pretrained(directory)
    return directory


def save_pix2struct(directory):
    """Pictures as flattened patches of variable size, text from an encoder-decoder."""
    torch.manual_seed(0)
    tokenizer = bert_like_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "d_kv": 16,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 3,
    }
    vision = {
        "hidden_size": 32,
        "patch_embed_hidden_size": 4 * 4 * 3,
        "d_ff": 32,
        "d_kv": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = widen(Pix2StructForConditionalGeneration(Pix2StructConfig(text_config=text, vision_config=vision)))
    model.save_pretrained(directory)
    images = Pix2StructImageProcessorPil(patch_size={"height": 4, "width": 4}, max_patches=16)
    Pix2StructProcessor(images, tokenizer).save_pretrained(directory)
    return directory


def save_blip2(directory):
    """Text with a placeholder for each visual token, which only the processor can write."""
    torch.manual_seed(0)
    tokenizer = bert_like_tokenizer()
    processor = Blip2Processor(BlipImageProcessorPil(size=SIZE), tokenizer, num_query_tokens=3)
    config = Blip2Config(
        vision_config={**TINY, "image_size": 16, "patch_size": 8},
        qformer_config={**TINY, "encoder_hidden_size": 32, "vocab_size": 10},
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 40,
            "bos_token_id": 4,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    widen(Blip2ForConditionalGeneration(config), 0.4).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def save_vc_gpt(directory):
    """Ours, with a byte-level tokenizer of letters."""
    torch.manual_seed(0)
    end, letters = "<|endoftext|>", "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {piece: index for index, piece in enumerate([*letters, "Ġ", *(f"Ġ{x}" for x in letters), end])}
    merges = [("Ġ", letter) for letter in letters]
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges, bos_token=end, eos_token=end, unk_token=end)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"), vocabulary[end])
    config = VcGptConfig(
        vision_config=CLIPVisionConfig(**TINY, image_size=16, patch_size=8),
        text_config=GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=24, **ids),
        num_fusion_layers=1,
        fusion_num_heads=2,
        pad_token_id=vocabulary[end],
        **ids,
    )
    widen(VcGptForConditionalGeneration(config), 0.4).save_pretrained(directory)
    VcGptProcessor(CLIPImageProcessorPil(size=SIZE, crop_size=SIZE), tokenizer).save_pretrained(directory)
    return directory


CAPTIONERS = {
    "vc_gpt": save_vc_gpt,
    "blip": save_blip,
    "vision_encoder_decoder": save_vision_encoder_decoder,
    "blip2": save_blip2,
    "git": save_git,
    "pix2struct": save_pix2struct,
}
