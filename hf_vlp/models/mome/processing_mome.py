"""Image processor and processor of the mixture-of-modality-experts models: VLMo's evaluation transform, BERT's tokens.

Source: transform and text format of the released VLMo code. Differences: texts are padded to the longest of the batch
instead of to a fixed length, which gives the model the same numbers, and pictures of every mode are accepted.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, is_valid_image
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

MAX_TEXT_LENGTH = 40
IGNORED_CLASS = 255  # unless told otherwise
# Resized logits that are held at once: a quarter of a gigabyte. 150 classes of 12 megapixels would be 7.
_LOGITS_AT_ONCE = 1 << 26


class MomeImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of the image processor beyond those that all have.

    do_reduce_labels: in segmentation maps 0 means no class: it becomes `ignore_index`, which does not count, and all
        classes move down by one, as ADE20K needs it.
    ignore_index: label of pixels that do not count, 255; `semantic_loss_ignore_index` of the model's configuration.
    """

    do_reduce_labels: bool
    ignore_index: int


class _SquareTransform:
    """Defaults of both back ends: the picture fills a square whatever its shape, values lie in [-1, 1]."""

    _auto_class = "AutoImageProcessor"
    valid_kwargs = MomeImageProcessorKwargs

    do_convert_rgb = True
    do_resize = True
    size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    do_reduce_labels = False
    ignore_index = IGNORED_CLASS

    def preprocess(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        """Pixel values of pictures and, with segmentation maps, `labels` (images, height, width).

        segmentation_maps: one for each picture, of its size: class numbers of pixels, as an array or tensor (height,
            width), or a picture with one channel or a palette. Resized like the pictures, each pixel to the nearest.

        Raises ValueError for maps of another number or size than the pictures, or with several channels.
        """
        features = super().preprocess(images, **kwargs)
        if segmentation_maps is None:
            return features
        moved = [name for name in ("do_center_crop", "do_pad") if kwargs.get(name, getattr(self, name, None))]
        if moved:
            raise ValueError(f"Segmentation maps are resized only: switch {' and '.join(moved)} off.")
        return_tensors = kwargs.get("return_tensors")
        pictures, maps = _as_list(images, 3), _as_list(segmentation_maps, 2)
        if len(maps) != len(pictures):
            raise ValueError(
                f"There are {len(pictures)} pictures and {len(maps)} segmentation maps: give one for each."
            )
        reading = {name: kwargs.get(name, getattr(self, name)) for name in ("do_reduce_labels", "ignore_index")}
        labels = []
        for index, (picture, segmentation_map) in enumerate(zip(pictures, maps)):
            array = read_segmentation_map(segmentation_map, **reading)
            size = _size_of(picture)
            if size is not None and size != array.shape:
                raise ValueError(
                    f"Picture {index} has {size[0]} x {size[1]} pixels (height x width), its segmentation map "
                    f"{array.shape[0]} x {array.shape[1]}."
                )
            labels.append(resize_segmentation_map(array, *features["pixel_values"][index].shape[-2:]))
        return BatchFeature({"pixel_values": features["pixel_values"], "labels": labels}, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Class numbers of pixels from the logits of a model of semantic segmentation.

        Args:
            outputs: with `logits` (images, labels, height, width).
            target_sizes: (height, width) for each picture, to which its logits are resized bilinearly first; `None`
                leaves their size.

        Returns maps (height, width), one for each picture. Raises ValueError for another number of sizes.
        """
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise ValueError(
                f"There are {len(logits)} pictures and {len(target_sizes)} target sizes: give one for each."
            )
        return [_resized_argmax(own, tuple(map(int, size))) for own, size in zip(logits, target_sizes)]


class MomeImageProcessorPil(_SquareTransform, PilBackend):
    """VLMo's evaluation transform: resize to a square without keeping the proportions, scale to [-1, 1].

    Bicubic on the picture of eight bits, as in the original. `size=384`, here or in a call, chooses another side than
    224: the one that the model's configuration names.
    """


if is_torchvision_available():
    from transformers.image_processing_backends import TorchvisionBackend

    class MomeImageProcessor(_SquareTransform, TorchvisionBackend):
        """As `MomeImageProcessorPil`, on tensors; one value in a hundred is rounded differently, by 1 or 2 / 127.5."""

else:
    # A repository saved where torchvision is installed names this class.
    MomeImageProcessor = MomeImageProcessorPil


def read_segmentation_map(
    segmentation_map, do_reduce_labels: bool = False, ignore_index: int = IGNORED_CLASS
) -> np.ndarray:
    """Class numbers of pixels as int64 (height, width), of a picture, array or tensor; see `MomeImageProcessorKwargs`.

    Raises ValueError for several channels, for numbers that are not whole and for a class that reducing would turn
    into `ignore_index`.
    """
    array = np.asarray(segmentation_map)  # of a picture with a palette: the places in it
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array.squeeze(0 if array.shape[0] == 1 else -1)
    if array.ndim != 2:
        raise ValueError(
            f"A segmentation map has one class number for each pixel, (height, width), not the shape {array.shape}: "
            "turn maps that tell classes by colours into numbers first."
        )
    if array.dtype.kind not in "iub":
        raise ValueError(f"A segmentation map holds whole numbers, not {array.dtype}.")
    array = array.astype(np.int64)
    if do_reduce_labels:
        if ignore_index != -1 and (array == ignore_index + 1).any():
            raise ValueError(
                f"The segmentation map holds {ignore_index + 1}, which do_reduce_labels would turn into "
                f"{ignore_index}, the label of pixels that do not count: choose another one, such as -100 "
                "(semantic_loss_ignore_index)."
            )
        array = np.where((array == 0) | (array == ignore_index), ignore_index, array - 1)
    return array


def resize_segmentation_map(segmentation_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """(any height, any width) -> (height, width), each pixel the one that its centre falls into."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip((height, width), segmentation_map.shape)
    )
    return segmentation_map[rows[:, None], columns]


def _resized_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Class with the largest logit, (height, width), of logits (labels, any height, any width) resized bilinearly.

    A few classes at a time: no class's resized logits depend on another's, so the result is that of all at once.
    """
    at_once = max(1, _LOGITS_AT_ONCE // (size[0] * size[1]))
    largest = classes = None
    for start in range(0, len(logits), at_once):
        part = logits[None, start : start + at_once].float()
        resized = torch.nn.functional.interpolate(part, size=size, mode="bilinear", align_corners=False)
        values, places = resized[0].max(dim=0)
        if largest is None:
            largest, classes = values, places
        else:  # of equal ones the first stays
            classes = torch.where(values > largest, places + start, classes)
            largest = torch.maximum(values, largest)
    return classes


def _as_list(values, num_dims: int) -> list:
    """One picture or map as a list of one, an array of several as a list of them."""
    if isinstance(values, (list, tuple)):
        return list(values)
    return list(values) if getattr(values, "ndim", 0) > num_dims else [values]


def _size_of(picture) -> tuple[int, int] | None:
    """Height and width of a picture; `None` where only the back end knows, which reads paths and addresses."""
    if hasattr(picture, "width"):
        return picture.height, picture.width
    shape = getattr(picture, "shape", ())
    if len(shape) == 3:
        return tuple(shape[1:] if shape[0] in (1, 3, 4) else shape[:2])
    return tuple(shape) if len(shape) == 2 else None


def _is_picture(value) -> bool:
    return isinstance(value, str) or is_valid_image(value)


class MomeProcessor(ProcessorMixin):
    """Turns pictures and texts into the inputs of a VLMo model.

    Args:
        image_processor: a `MomeImageProcessor`, of either back end, with the model's image size.
        tokenizer: a `BertTokenizer`. It is told not to return `token_type_ids`, which these models do not take, so
            that the pipelines which call it alone work too; this is saved with it.
    """

    _auto_class = "AutoProcessor"

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
        if tokenizer is not None:
            for name in ("cls_token", "sep_token", "pad_token"):
                if getattr(tokenizer, name) is None:
                    raise ValueError(f"The tokenizer has no {name}. Give a BertTokenizer, or one with that token.")
            if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
                # What the library makes of a folder without tokenizer files; every word would be unknown, silently.
                raise ValueError(
                    "The tokenizer knows no words, only special tokens: its files are missing from the folder that it "
                    "was loaded from. Save a tokenizer there, or convert the checkpoint again with a vocabulary."
                )
            # Both, as only the second is saved.
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
            tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]

    def __call__(
        self,
        images=None,
        text=None,
        *,
        segmentation_maps=None,
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: a picture or a list of them, as `pixel_values` (images, channels, side, side); or a list of pairs
                `[[left, right], ...]`, as (pairs, 2, channels, side, side) for `VlmoForImagesAndTextClassification`.
            text: a string or a list of them: `[CLS]`, tokens, `[SEP]`, padded on the right, as `input_ids` and
                `attention_mask` (texts, length).
            segmentation_maps: class numbers of the pixels of each picture, see the image processor, as `labels`
                (images, side, side) for semantic segmentation.
            padding: `True` or `"longest"` pads to the longest text, `"max_length"` to `max_length`, `False` not.
            truncation: cut tokens beyond `max_length`, keeping `[SEP]`; `False` keeps them.
            max_length: most tokens of a text, special ones included; by default 40, or the tokenizer's
                `model_max_length` where that is less.
            pad_to_multiple_of: round the length of the batch up to a multiple.
            return_tensors: `"pt"`, `"np"` or `None` for lists.
            kwargs: options of the image processor.

        Raises ValueError when nothing is given, for empty lists and for rows that are no pairs; TypeError for what is
        no picture or no text and for options that nothing reads.
        """
        if images is None and text is None:
            raise ValueError("Nothing to process: give images, text, or both.")
        if images is None and segmentation_maps is not None:
            raise ValueError("Segmentation maps come with their pictures: give images too.")
        if images is None and kwargs:
            raise TypeError(f"Without images there is no option {', '.join(sorted(kwargs))}.")
        data = {}
        if images is not None:
            if segmentation_maps is not None:
                kwargs["segmentation_maps"] = segmentation_maps
            data |= self._process_pictures(images, return_tensors, kwargs)
        if text is not None:
            if max_length is None:
                max_length = min(MAX_TEXT_LENGTH, self.tokenizer.model_max_length)
            ids = self._tokenize(text, max_length if truncation else None)
            padded = self.tokenizer.pad(
                {"input_ids": ids},
                padding=padding,
                max_length=max_length if padding == "max_length" else None,
                padding_side="right",
                pad_to_multiple_of=pad_to_multiple_of,
                return_attention_mask=True,
                return_tensors=return_tensors,
            )
            data.update(padded)
        return BatchFeature(data, tensor_type=return_tensors)

    def _process_pictures(self, images, return_tensors, options) -> dict:
        """Pixel values of single pictures, or of pairs when a row is a list; labels if there are maps."""
        if getattr(images, "ndim", None) == 5:  # pairs in one array
            images = [list(pair) for pair in images]
        rows = list(images) if isinstance(images, (list, tuple)) else [images]
        if not rows:
            raise ValueError("images is empty: give at least one picture.")
        in_pairs = any(isinstance(row, (list, tuple)) for row in rows)
        for index, row in enumerate(rows):
            number = len(row) if isinstance(row, (list, tuple)) else 1
            if in_pairs and number != 2:
                raise ValueError(
                    f"images[{index}] has {number} picture(s), expected 2: pairs are given as [[left, right], ...], "
                    "single pictures as a flat list."
                )
        pictures = [picture for row in rows for picture in row] if in_pairs else rows
        wrong = {type(picture).__name__ for picture in pictures if not _is_picture(picture)}
        if wrong:
            raise TypeError(
                "images must be pictures (PIL, array, tensor, path or address as a string), or pairs of them, not "
                f"{', '.join(sorted(wrong))}."
            )
        if in_pairs and "segmentation_maps" in options:
            raise ValueError("Segmentation maps belong to single pictures: give images as a flat list.")
        # As it was given, since an array may hold several pictures.
        features = self.image_processor(pictures if in_pairs else images, return_tensors=return_tensors, **options)
        if not in_pairs:
            return dict(features)
        pixels = features["pixel_values"]
        if return_tensors is None:
            return {"pixel_values": [pixels[start : start + 2] for start in range(0, len(pixels), 2)]}
        return {"pixel_values": pixels.reshape(len(rows), 2, *pixels.shape[1:])}

    def _tokenize(self, texts, max_length: int | None) -> list[list[int]]:
        """Ids of `[CLS]`, the text and `[SEP]`, cut to `max_length` if there is one."""
        texts = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
        if not texts:
            raise ValueError("text is empty: give at least one.")
        if not all(isinstance(text, str) for text in texts):
            kinds = sorted({type(text).__name__ for text in texts})
            raise TypeError(f"text must be a string or a list of strings, not {', '.join(kinds)}.")
        if max_length is not None and max_length < 3:
            raise ValueError(f"max_length={max_length} leaves no room for a word beside [CLS] and [SEP].")
        # Cut here: the tokenizer would keep `truncation` as a setting of its own and save it.
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        room = None if max_length is None else max_length - 2
        begin, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [[begin, *tokens[:room], end] for tokens in ids]

    def post_process_semantic_segmentation(self, outputs, target_sizes=None) -> list[torch.Tensor]:
        """Class numbers of pixels from a model's outputs; see the image processor."""
        return self.image_processor.post_process_semantic_segmentation(outputs, target_sizes)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]


__all__ = [
    "MAX_TEXT_LENGTH",
    "MomeImageProcessor",
    "MomeImageProcessorPil",
    "MomeProcessor",
    "read_segmentation_map",
    "resize_segmentation_map",
]
