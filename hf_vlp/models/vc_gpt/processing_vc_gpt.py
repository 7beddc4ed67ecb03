"""Processor of VC-GPT: CLIP's image processor and GPT-2's tokenizer."""

from collections.abc import Iterable

from transformers import BatchFeature, ProcessorMixin


class VcGptProcessor(ProcessorMixin):
    """Turns pictures, prompts and captions into the inputs of a VC-GPT model.

    GPT-2 has a single special token, `<|endoftext|>`: it begins a text, ends it, and pads it. The tokenizer adds it
    nowhere by itself; this class does, which is a decision of this package as the paper does not say.

    Args:
        image_processor: a CLIP image processor.
        tokenizer: a GPT-2 tokenizer; one without padding token gets its end token.
    """

    _auto_class = "AutoProcessor"

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if tokenizer is not None and tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images=None,
        text=None,
        *,
        captions=None,
        max_length: int = 40,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: a picture or a list of them; they become `pixel_values` (images, channels, height, width).
            text: a prompt or a list of them, for `generate`: begin token and prompt, padded on the left, as
                `input_ids` and `attention_mask` (prompts, length). `generate` needs none.
            captions: a caption or a list of them, for training: begin token, caption, end token, padded on the right,
                with `labels` that are -100 on the padding and keep the end token.
            max_length: most tokens of a text, special ones included; longer texts are cut, the end token stays.
            pad_to_multiple_of: round the length of the batch up to a multiple.
            return_tensors: `"pt"`, `"np"` or `None` for lists.
            kwargs: options of the image processor.

        Raises ValueError when nothing is given, and when both `text` and `captions` are; TypeError for options that
        nothing reads.
        """
        if images is None and text is None and captions is None:
            raise ValueError("Nothing to process: give images, text (prompts) or captions.")
        if text is not None and captions is not None:
            raise ValueError("Give text (prompts to continue) or captions (to learn from), not both.")
        if images is None and kwargs:
            raise TypeError(f"Without images there is no option {', '.join(sorted(kwargs))}.")
        data = {}
        if images is not None:
            data.update(self.image_processor(images, return_tensors=return_tensors, **kwargs))
        if text is not None:
            data.update(self._tokenize(text, "text", "left", [], max_length, pad_to_multiple_of, return_tensors))
        if captions is not None:
            end = [self.tokenizer.eos_token_id]
            data.update(self._tokenize(captions, "captions", "right", end, max_length, pad_to_multiple_of, None))
            data["labels"] = [
                [token if kept else -100 for token, kept in zip(ids, mask)]
                for ids, mask in zip(data["input_ids"], data["attention_mask"])
            ]
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenize(self, texts, argument, side, end, max_length, pad_to_multiple_of, return_tensors):
        """Begin token, text and `end`, padded on one side."""
        texts = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
        if not texts:
            raise ValueError(f"{argument} is empty: give at least one.")
        if not all(isinstance(text, str) for text in texts):
            kinds = sorted({type(text).__name__ for text in texts})
            raise TypeError(f"{argument} must be a string or a list of strings, not {', '.join(kinds)}.")
        room = max_length - 1 - len(end)
        if room < 1:
            raise ValueError(f"max_length={max_length} leaves no room for a word beside the special tokens.")
        # Cut here: the tokenizer would keep `truncation` as a setting of its own and save it.
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = [[self.tokenizer.bos_token_id, *tokens[:room], *end] for tokens in ids]
        return self.tokenizer.pad(
            {"input_ids": ids},
            padding_side=side,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,
            return_tensors=return_tensors,
        )

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]


__all__ = ["VcGptProcessor"]
