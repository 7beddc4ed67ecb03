"""Image captioning pipeline: a picture in, a sentence out, as transformers 4's `"image-to-text"`.

transformers 5 removed that pipeline; `"image-text-to-text"`, named as its replacement, wants a chat or a text beside
every picture and a `ProcessorMixin`, so that captioners such as BLIP, VisionEncoderDecoder or VC-GPT no longer run in
one line. This class keeps the old contract.

Differences from the old pipeline: bytes, `{"bytes", "path"}` and `{"image", "prompt"}` dicts, any iterable
(`datasets` columns included) are inputs too; generation arguments may be given directly; `prompt` is not deprecated;
a processor is used where there is one; a picture that cannot be read is named in the error.

The file travels with exported checkpoints: it may import transformers, torch, Pillow, its sibling
`image_pipeline.py`, and nothing else of this package.
"""

from collections.abc import Mapping

from PIL import Image
from transformers import AutoModelForImageTextToText, BatchFeature

from .image_pipeline import ImagePipeline, is_single, load_image


class ImageToTextPipeline(ImagePipeline):
    """Caption pictures with any model that generates text from an image.

    Serves VC-GPT, BLIP, GIT, Pix2Struct, BLIP-2, `VisionEncoderDecoderModel` and others that
    `AutoModelForImageTextToText` loads. Needs either a processor, or an image processor and a tokenizer.

    Where neither the call nor the checkpoint's generation config sets a length, at most 256 tokens are generated, or
    as many as the text decoder has positions for.

    Example:

    ```python
    >>> import hf_vlp
    >>> from transformers import pipeline

    >>> captioner = pipeline("image-to-text", model="Salesforce/blip-image-captioning-base")
    >>> captioner("parrots.png", max_new_tokens=20)
    [{'generated_text': 'two parrots sitting on a branch'}]
    ```
    """

    _pipeline_calls_generate = True

    def __init__(self, model, *args, **kwargs):
        if not (hasattr(model, "can_generate") and model.can_generate()):
            raise ValueError(
                f"{type(model).__name__} cannot generate text. Load the checkpoint with a generating class, such as"
                " `AutoModelForImageTextToText`."
            )
        super().__init__(model, *args, **kwargs)

    def _sanitize_parameters(
        self, prompt=None, max_new_tokens=None, generate_kwargs=None, timeout=None, **generation_arguments
    ):
        if prompt is not None and not isinstance(prompt, str):
            raise TypeError(_WRONG_PROMPT.format(type(prompt).__name__))
        preprocess_params = {}
        if prompt is not None:
            preprocess_params["prompt"] = prompt
        if timeout is not None:
            preprocess_params["timeout"] = timeout
        forward_params = self._generation_parameters(
            max_new_tokens, generate_kwargs, generation_arguments, "`prompt` (what the caption starts with)"
        )
        return preprocess_params, forward_params, {}

    def __call__(self, inputs=None, **kwargs):
        """Caption one picture or many.

        Args:
            inputs: One picture: PIL image, path, `http(s)` URL, base64 text, encoded bytes, `{"bytes", "path"}`, or a
                dict with `image` (any of these) and optionally `prompt`; its other keys are ignored, so that rows of a
                dataset can be passed. Or many: a list or tuple; a dataset, a column, `KeyDataset`, a generator or
                any other iterable, which are streamed. `images=` is another name for this argument.
            prompt (`str`): What every caption starts with; it is part of the generated text, as it always was. Not for
                `VisionEncoderDecoderModel`. For Pix2Struct models for questions it is the header.
            max_new_tokens (`int`): Longest caption.
            generate_kwargs (`dict`): Keywords for `model.generate`; those that are fields of `GenerationConfig`, such
                as `num_beams` or `do_sample`, may be given directly.
            timeout (`float`): Seconds to wait for a URL.
            batch_size, num_workers (`int`): Pictures per call of the model; processes that read pictures.

        Returns:
            For one picture a list of `num_return_sequences` (one, if not asked for) dicts `{"generated_text": str}`;
            for a list or tuple a list of such lists; for everything that is streamed an iterator over such lists.

        Raises:
            ValueError: A picture cannot be read; the message has its name and its place in `inputs`.
            TypeError: An input is no picture, an argument is unknown.
        """
        if "images" in kwargs:
            if inputs is not None:
                raise TypeError("`images` is another name for `inputs`: give one of them.")
            inputs = kwargs.pop("images")
        if inputs is None:
            raise ValueError("The image-to-text pipeline was called without a picture.")
        return super().__call__(inputs, **kwargs) if is_single(inputs) else self.call_many(inputs, **kwargs)

    def preprocess_one(self, inputs, prompt=None, timeout=None):
        """Read one picture and turn it into the model's tensors, each with a batch of one in front."""
        if isinstance(inputs, Mapping) and "image" in inputs:
            prompt = inputs.get("prompt", prompt)
            if prompt is not None and not isinstance(prompt, str):
                raise TypeError(_WRONG_PROMPT.format(type(prompt).__name__))
            inputs = inputs["image"]
        image = load_image(inputs, timeout=timeout)
        features, text = self._encode(image, prompt or None)  # of no text several tokenizers make no token at all
        return {"text": text, **features.to(self.dtype)}

    def _encode(self, image: Image.Image, prompt: str | None) -> tuple[BatchFeature, dict[str, list[int]]]:
        """The picture's tensors, and the prompt's token ids in the form that the model's `generate` continues."""
        model_type = self.model.config.model_type
        if prompt is not None and model_type == "vision-encoder-decoder":
            raise ValueError(
                "A vision-encoder-decoder model takes no prompt. Start its text with"
                ' generate_kwargs={"decoder_input_ids": ...} instead.'
            )
        if prompt is not None and model_type == "pix2struct" and self.image_processor.is_vqa:
            return self.image_processor(images=image, header_text=prompt, return_tensors="pt"), {}
        if prompt is not None and getattr(self.processor, "image_token", None) is not None:
            # BLIP-2 and its like: the text has a placeholder for each visual token, so both are encoded together.
            encoded = self.processor(images=image, text=prompt, return_tensors="pt")
            names = set(encoded) - set(self.image_processor.model_input_names)
            return encoded, {name: encoded.pop(name)[0].tolist() for name in sorted(names)}

        features = self.image_processor(images=image, return_tensors="pt")
        if prompt is None:
            return features, {}
        if model_type == "git":
            # Its tokenizer closes every text with [SEP], after which there is nothing to say.
            ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            return features, {"input_ids": [self.tokenizer.cls_token_id, *ids]}
        encoded = (self.tokenizer if self.processor is None else self.processor)(text=[prompt], return_tensors="pt")
        prefix = "decoder_" if model_type == "pix2struct" else ""
        names = [name for name in ("input_ids", "attention_mask") if name in encoded]
        return features, {prefix + name: encoded[name][0].tolist() for name in names}

    def _forward(self, model_inputs, **generate_kwargs):
        texts = model_inputs["text"]
        texts = texts if isinstance(texts, list) else [texts]
        features = {name: value for name, value in model_inputs.items() if name != "text"}
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=False)
        return {"sequences": self.generate_in_groups(features, texts, generate_kwargs)}

    def postprocess(self, model_outputs):
        """Decode the candidates of one picture."""
        candidates = model_outputs["sequences"][0]  # (candidates, length)
        texts = self.tokenizer.batch_decode(candidates, skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]


# What the base class writes into `config.custom_pipelines`.
ImageToTextPipeline._registered_impl = {
    "image-to-text": {"impl": ImageToTextPipeline, "pt": (AutoModelForImageTextToText,), "type": "multimodal"}
}

_WRONG_PROMPT = (
    "`prompt` must be a string, got {}. One string given to the call is for all pictures; for one prompt per picture"
    ' pass dicts, {{"image": ..., "prompt": ...}}.'
)
