"""Image captioning pipeline: a picture in, a sentence out, as transformers 4's `"image-to-text"`.

transformers 5 removed that pipeline; `"image-text-to-text"`, named as its replacement, wants a chat or a text beside
every picture and a `ProcessorMixin`, so that captioners such as BLIP, VisionEncoderDecoder or VC-GPT no longer run in
one line. This class keeps the old contract.

Differences from the old pipeline: bytes, `{"bytes", "path"}` and `{"image", "prompt"}` dicts, any iterable
(`datasets` columns included) are inputs too; generation arguments may be given directly; `prompt` is not deprecated;
a processor is used where there is one; a picture that cannot be read is named in the error.

The file travels with exported checkpoints: it may import transformers, torch, Pillow, and nothing of this package.
"""

import base64
import copy
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModelForImageTextToText, BatchFeature, GenerationConfig, GenerationMixin, image_utils
from transformers.pipelines import Pipeline

# Pillow only warns from this size on and raises at twice of it: a warning does not save the memory.
MAX_PIXELS = 89_478_485
# A strip of 2 x 40,000 pixels is small until its shorter side is resized to 224.
MAX_ASPECT_RATIO = 200
MAX_DOWNLOAD_BYTES = 64 * 1024 * 1024
# Others that Pillow opens are left out on purpose: EPS starts Ghostscript on a file that nobody has checked.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF", "ICO")
# What the old pipeline allowed when neither the caller nor the checkpoint says how long a caption may be.
MAX_NEW_TOKENS = 256


def load_image(source: Any, *, timeout: float | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one picture as an upright RGB image, transparency laid over white, 16-bit greys scaled to 8.

    Gives the pixels that `hf_vlp.data.image_io` gives in training; this file must do without the package.

    Args:
        source: PIL image; path; `http(s)://` URL; base64 text, with or without a `data:image/...;base64,` head;
            encoded file as `bytes`; or a dict `{"bytes": ..., "path": ...}` as `datasets` gives undecoded.
        timeout: Seconds to wait for a URL; `None` waits for ever.
        max_pixels: Width times height above which the picture is refused before it is decoded.

    Raises:
        ValueError: The picture is missing, damaged, too large or no picture.
        TypeError: `source` is none of the above.
    """
    name = _describe(source)
    if isinstance(source, Mapping):
        source = next((source[key] for key in ("bytes", "path") if source.get(key) is not None), None)
        if source is None:
            raise ValueError(f"{name} has neither `bytes` nor `path` to read a picture from.")
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        file = _find_file(source, name, timeout)
        try:
            Image.init()
            image = Image.open(file, formats=[key for key in FORMATS if key in Image.OPEN])
        # Pillow fails with OSError, SyntaxError, ValueError, EOFError, struct.error, ..., each format its own way.
        except Exception as error:
            raise ValueError(f"{name} is not a picture that can be opened: {error}") from error
    else:
        raise TypeError(
            f"{name} is no picture. Expected a PIL image, a path, a URL, base64 text, encoded bytes or a dict with"
            " `bytes` or `path`; turn arrays and tensors into pictures with `PIL.Image.fromarray`."
        )
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels} allowed. Make it smaller first."
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{name} has {width} x {height} pixels, too long and thin to be resized. Crop it first.")
    try:
        image.load()
        return _to_rgb(_turn_upright(image))
    except Exception as error:
        raise ValueError(f"{name} cannot be decoded, the file may be cut short or damaged: {error}") from error


def _find_file(source: Any, name: str, timeout: float | None) -> str | BytesIO:
    """The encoded picture, on disk or in memory."""
    if not isinstance(source, (str, os.PathLike)):
        return BytesIO(source)
    source = os.fspath(source)
    if source.startswith(("http://", "https://")):
        return BytesIO(_download(source, name, timeout))
    if os.path.isfile(source):
        return source
    is_data_uri = source.startswith("data:")
    encoded = source.partition(",")[2] if is_data_uri else source
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:
        content = b""
    if len(content) < 16:  # "photo.." may be valid base64 in its letters, but no picture fits in so little
        if is_data_uri:
            raise ValueError(f"{name} is a data URI whose content is not base64.")
        raise ValueError(f"{name} is neither an existing file nor an http(s) URL nor a picture in base64.")
    return BytesIO(content)


def _download(url: str, name: str, timeout: float | None) -> bytes:
    # The HTTP client that transformers itself uses: its name changes between releases, this way to it does not.
    httpx = image_utils.httpx
    content = bytearray()
    try:
        with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_DOWNLOAD_BYTES:
                    raise ValueError(f"more than {MAX_DOWNLOAD_BYTES} bytes")
    except Exception as error:
        raise ValueError(f"{name} cannot be fetched: {type(error).__name__}: {error}") from error
    return bytes(content)


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block does not make the pixels wrong
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("it holds floating point values, and which of them is white is not defined")
    if image.mode.startswith("I"):
        # Pillow clips 16-bit greys at 255 instead of scaling them: everything would come out white.
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _describe(source: Any) -> str:
    """Name a picture in an error message, shortly."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"A picture of {len(source)} bytes"
    if isinstance(source, Mapping):
        return f"The picture {source['path']!r}" if source.get("path") else f"The dict with keys {sorted(source)}"
    if isinstance(source, (str, os.PathLike)):
        text = repr(os.fspath(source))
        return f"The picture {text if len(text) <= 160 else text[:120] + '...' + text[-1]}"
    return f"An object of type {type(source).__name__}"


@dataclass
class _Numbered:
    """An input with its place among the others, so that an error can say which one it was."""

    position: int
    value: Any


class _NumberedDataset(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return _Numbered(index, self.items[index])


class ImageToTextPipeline(Pipeline):
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
    # None: taken where present. Which of them are needed depends on the model, see `__init__`.
    _load_processor = None
    _load_image_processor = None
    _load_tokenizer = None
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model, *args, **kwargs):
        if not (hasattr(model, "can_generate") and model.can_generate()):
            raise ValueError(
                f"{type(model).__name__} cannot generate text. Load the checkpoint with a generating class, such as"
                " `AutoModelForImageTextToText`."
            )
        self._room_for_text = _room_for_text(model)
        self._default_generation_config = GenerationConfig(max_new_tokens=self._room_for_text)
        super().__init__(model, *args, **kwargs)
        if type(self.model).generate is not GenerationMixin.generate:
            # BLIP and its like hand their own padding token to the text decoder and choke on a second one.
            self._generation_defaults.pop("pad_token_id", None)
        # With a processor *and* one of its parts given, the base class leaves the other part out.
        if self.image_processor is None:
            self.image_processor = getattr(self.processor, "image_processor", None)
        if self.tokenizer is None:
            self.tokenizer = getattr(self.processor, "tokenizer", None)
        missing = [name for name in ("image_processor", "tokenizer") if getattr(self, name) is None]
        if missing:
            source = getattr(model, "name_or_path", "") or "the checkpoint"
            raise ValueError(
                f"No {' and no '.join(missing)} could be loaded from {source!r}. Save them beside the model"
                f" (`.save_pretrained`) or pass {', '.join(name + '=...' for name in missing)} or `processor=...`;"
                " AutoImageProcessor.from_pretrained and AutoTokenizer.from_pretrained tell why loading fails."
            )
        if self.tokenizer.pad_token_id is None and self.tokenizer.eos_token is not None:
            # The base class refuses to form batches with a tokenizer that has no padding token, as GPT-2's; the
            # caller's own object stays as it is.
            self.tokenizer = copy.deepcopy(self.tokenizer)
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def _sanitize_parameters(
        self, prompt=None, max_new_tokens=None, generate_kwargs=None, timeout=None, **generation_arguments
    ):
        unknown = sorted(set(generation_arguments) - _GENERATION_ARGUMENTS)
        if unknown:
            raise TypeError(
                f"The image-to-text pipeline got unknown arguments {unknown}. It takes prompt, max_new_tokens,"
                " generate_kwargs, timeout, batch_size, num_workers and the fields of GenerationConfig; a text that"
                " the caption starts with is `prompt`, other keywords for `generate` go into `generate_kwargs`."
            )
        if prompt is not None and not isinstance(prompt, str):
            raise TypeError(_WRONG_PROMPT.format(type(prompt).__name__))
        if max_new_tokens is not None:
            generation_arguments["max_new_tokens"] = max_new_tokens
        generate_kwargs = dict(generate_kwargs or {})
        twice = sorted(set(generate_kwargs) & set(generation_arguments))
        if twice:
            raise ValueError(f"{twice} given both directly and in `generate_kwargs`. Give each of them once.")

        preprocess_params = {}
        if prompt is not None:
            preprocess_params["prompt"] = prompt
        if timeout is not None:
            preprocess_params["timeout"] = timeout
        forward_params = {**generate_kwargs, **generation_arguments}
        if getattr(self, "assistant_model", None) is not None:
            forward_params["assistant_model"] = self.assistant_model
        if getattr(self, "assistant_tokenizer", None) is not None:
            forward_params.update(tokenizer=self.tokenizer, assistant_tokenizer=self.assistant_tokenizer)
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
        if isinstance(inputs, (list, tuple)):
            inputs = [_Numbered(position, value) for position, value in enumerate(inputs)]
            # The base class looks at inputs[0].
            return super().__call__(inputs, **kwargs) if inputs else []
        if _is_single(inputs):
            return super().__call__(inputs, **kwargs)
        if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__") and not isinstance(inputs, IterableDataset):
            return super().__call__(_NumberedDataset(inputs), **kwargs)
        return super().__call__((_Numbered(position, value) for position, value in enumerate(inputs)), **kwargs)

    def preprocess(self, inputs, prompt=None, timeout=None):
        """Read one picture and turn it into the model's tensors, each with a batch of one in front."""
        if isinstance(inputs, _Numbered):
            try:
                return self.preprocess(inputs.value, prompt=prompt, timeout=timeout)
            except (ValueError, TypeError) as error:
                raise type(error)(f"Input {inputs.position}: {error}") from error
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

        # Rows whose prompts have the same length go together: so nothing is padded, and it does not matter on which
        # side a model wants its padding (BLIP: on none). With one prompt for all, the usual case, it is one group.
        groups = defaultdict(list)
        for row, text in enumerate(texts):
            groups[tuple((name, len(ids)) for name, ids in text.items())].append(row)

        sequences = [None] * len(texts)
        for lengths, rows in groups.items():
            inputs = features if len(rows) == len(texts) else {name: value[rows] for name, value in features.items()}
            text = {name: torch.tensor([texts[row][name] for row in rows], device=self.device) for name, _ in lengths}
            options = dict(generate_kwargs)
            prompt_length = max((length for _, length in lengths), default=1)
            if options.get("max_new_tokens") == self._room_for_text < MAX_NEW_TOKENS:
                # The default fills all positions of the decoder, and a prompt takes some of them.
                options["max_new_tokens"] = max(1, self._room_for_text + 1 - prompt_length)
            generated = self.model.generate(**inputs, **text, **options)  # (rows * candidates, length)
            for row, candidates in zip(rows, generated.reshape(len(rows), -1, generated.shape[-1])):
                sequences[row] = candidates
        return {"sequences": sequences}

    def postprocess(self, model_outputs):
        """Decode the candidates of one picture."""
        candidates = model_outputs["sequences"][0]  # (candidates, length)
        texts = self.tokenizer.batch_decode(candidates, skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]

    def save_pretrained(self, save_directory, **kwargs):
        """Save model, tokenizer, image processor, processor, and this file with its entry in the config.

        What is saved loads with `pipeline("image-to-text", model=save_directory, trust_remote_code=True)` where only
        transformers is installed.
        """
        super().save_pretrained(save_directory, **kwargs)
        # The base class leaves it out.
        if self.processor is not None:
            self.processor.save_pretrained(save_directory, **kwargs)


# What the base class writes into `config.custom_pipelines`.
ImageToTextPipeline._registered_impl = {
    "image-to-text": {"impl": ImageToTextPipeline, "pt": (AutoModelForImageTextToText,), "type": "multimodal"}
}

_WRONG_PROMPT = (
    "`prompt` must be a string, got {}. One string given to the call is for all pictures; for one prompt per picture"
    ' pass dicts, {{"image": ..., "prompt": ...}}.'
)
_GENERATION_ARGUMENTS = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {"generation_config"}


def _is_single(inputs: Any) -> bool:
    """Whether `inputs` is one picture, or nothing that could hold pictures."""
    if isinstance(inputs, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping)):
        return True
    # Arrays and tensors are iterable, but their rows are no pictures: let `load_image` say so.
    return hasattr(inputs, "__array__") or not (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"))


def _room_for_text(model) -> int:
    """Tokens that may be generated by default: small decoders have fewer positions than MAX_NEW_TOKENS."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    # One position is taken by the token that starts the text.
    return min(MAX_NEW_TOKENS, positions - 1) if isinstance(positions, int) and positions > 1 else MAX_NEW_TOKENS
