"""What the pipelines of this package share: reading pictures, naming bad ones, completing a checkpoint's parts.

The file travels with exported checkpoints, beside those of the pipelines: it may import transformers, torch, Pillow,
and nothing of this package.
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
from transformers import GenerationConfig, GenerationMixin, image_utils
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
class Numbered:
    """An input with its place among the others, so that an error can say which one it was."""

    position: int
    value: Any


class NumberedDataset(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return Numbered(index, self.items[index])


def is_single(inputs: Any) -> bool:
    """Whether `inputs` is one picture, or nothing that could hold pictures."""
    if isinstance(inputs, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping)):
        return True
    # Arrays and tensors are iterable, but their rows are no pictures: let `load_image` say so.
    return hasattr(inputs, "__array__") or not (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"))


def is_indexable(inputs: Any) -> bool:
    """Whether `inputs` has a length and items by number: lists, data sets, their columns."""
    # An IterableDataset inherits a `__getitem__` that only raises.
    has_both = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
    return has_both and not isinstance(inputs, IterableDataset)


class ImagePipeline(Pipeline):
    """Base of the pipelines: completes the parts of a checkpoint, and says which of many inputs was wrong.

    Subclasses implement `preprocess_one(value, **parameters)` in the place of `preprocess`.
    """

    # None: taken where present. Which of them are needed depends on the model, see `__init__`.
    _load_processor = None
    _load_image_processor = None
    _load_tokenizer = None
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model, *args, **kwargs):
        self._generates = hasattr(model, "can_generate") and model.can_generate()
        if self._generates:
            self._room_for_text = _room_for_text(model)
            self._default_generation_config = GenerationConfig(max_new_tokens=self._room_for_text)
        super().__init__(model, *args, **kwargs)
        if self._generates and type(self.model).generate is not GenerationMixin.generate:
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

    def call_many(self, inputs, **kwargs):
        """Run a list or tuple (a list comes back), or any other iterable (streamed: an iterator comes back)."""
        if isinstance(inputs, (list, tuple)):
            inputs = [Numbered(position, value) for position, value in enumerate(inputs)]
            # The base class looks at inputs[0].
            return super().__call__(inputs, **kwargs) if inputs else []
        if is_indexable(inputs):
            return super().__call__(NumberedDataset(inputs), **kwargs)
        return super().__call__((Numbered(position, value) for position, value in enumerate(inputs)), **kwargs)

    def preprocess(self, inputs, **parameters):
        """`preprocess_one`, with the place of the input among others in the message of an error."""
        if not isinstance(inputs, Numbered):
            return self.preprocess_one(inputs, **parameters)
        try:
            return self.preprocess_one(inputs.value, **parameters)
        except (ValueError, TypeError) as error:
            raise type(error)(f"Input {inputs.position}: {error}") from error

    def _generation_parameters(self, max_new_tokens, generate_kwargs, generation_arguments, others: str) -> dict:
        """What `generate` is called with; `others` are the arguments of the pipeline that an error tells of."""
        unknown = sorted(set(generation_arguments) - _GENERATION_ARGUMENTS)
        if unknown:
            raise TypeError(
                f"The {self.task or 'image'} pipeline got unknown arguments {unknown}. It takes {others},"
                " generate_kwargs, timeout, batch_size, num_workers and the fields of GenerationConfig; other keywords"
                " for `generate` go into `generate_kwargs`."
            )
        if max_new_tokens is not None:
            generation_arguments["max_new_tokens"] = max_new_tokens
        generate_kwargs = dict(generate_kwargs or {})
        twice = sorted(set(generate_kwargs) & set(generation_arguments))
        if twice:
            raise ValueError(f"{twice} given both directly and in `generate_kwargs`. Give each of them once.")
        parameters = {**generate_kwargs, **generation_arguments}
        if getattr(self, "assistant_model", None) is not None:
            parameters["assistant_model"] = self.assistant_model
        if getattr(self, "assistant_tokenizer", None) is not None:
            parameters.update(tokenizer=self.tokenizer, assistant_tokenizer=self.assistant_tokenizer)
        return parameters

    def generate_in_groups(self, features, texts, generate_kwargs, continues_text=True) -> list[torch.Tensor]:
        """Token ids for each row of a batch, (candidates, length) for each.

        Args:
            features: Tensors of the pictures, each (batch, ...).
            texts: For each row the token ids beside the picture, `{"input_ids": [...], ...}`; may be empty.
            generate_kwargs: What `generate` is called with.
            continues_text: Whether what is generated comes after the text, in the positions that this leaves.
        """
        # Rows whose texts have the same length go together: so nothing is padded, and it does not matter on which
        # side a model wants its padding (BLIP: on none). With one text for all, the usual case, it is one group.
        groups = defaultdict(list)
        for row, text in enumerate(texts):
            groups[tuple((name, len(ids)) for name, ids in text.items())].append(row)

        sequences = [None] * len(texts)
        for lengths, rows in groups.items():
            inputs = features if len(rows) == len(texts) else {name: value[rows] for name, value in features.items()}
            text = {name: torch.tensor([texts[row][name] for row in rows], device=self.device) for name, _ in lengths}
            options = dict(generate_kwargs)
            text_length = max((length for _, length in lengths), default=1) if continues_text else 1
            if options.get("max_new_tokens") == self._room_for_text < MAX_NEW_TOKENS:
                # The default fills all positions of the decoder, and the text takes some of them.
                options["max_new_tokens"] = max(1, self._room_for_text + 1 - text_length)
            generated = self.model.generate(**inputs, **text, **options)  # (rows * candidates, length)
            for row, candidates in zip(rows, generated.reshape(len(rows), -1, generated.shape[-1])):
                sequences[row] = candidates
        return sequences

    def save_pretrained(self, save_directory, **kwargs):
        """Save model, tokenizer, image processor, processor, and the pipeline's code with its entry in the config.

        What is saved loads with `pipeline(TASK, model=save_directory, trust_remote_code=True)` where only transformers
        is installed.
        """
        super().save_pretrained(save_directory, **kwargs)
        # The base class leaves it out.
        if self.processor is not None:
            self.processor.save_pretrained(save_directory, **kwargs)


_GENERATION_ARGUMENTS = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {"generation_config"}


def _room_for_text(model) -> int:
    """Tokens that may be generated by default: small decoders have fewer positions than MAX_NEW_TOKENS."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    # One position is taken by the token that starts the text.
    return min(MAX_NEW_TOKENS, positions - 1) if isinstance(positions, int) and positions > 1 else MAX_NEW_TOKENS
