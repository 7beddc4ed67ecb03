"""The one place that turns bytes, paths and addresses into pictures.

Every picture that enters the package passes through `load_image` (maps of classes, whose numbers must not be
converted, through `open_image`): the header is read first and a picture with too many
pixels is refused before a single one is decoded; rotation stored by the camera is applied; transparency is composited
on white; every mode becomes RGB with eight bits. Whatever is wrong with a picture, the caller sees one exception,
`ImageError`, whose message says what was given, why it was refused and what to do about it.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

__all__ = [
    "DEFAULT_MAX_DOWNLOAD_BYTES",
    "DEFAULT_MAX_PIXELS",
    "ImageError",
    "load_image",
    "open_image",
    "read_image",
    "turn_upright",
]

# Pillow's own limit: a quarter of a gigabyte of RGB. A 64-megapixel photograph passes, a decompression bomb does not.
DEFAULT_MAX_PIXELS = 89_478_485

DEFAULT_MAX_DOWNLOAD_BYTES = 64 * 1024 * 1024

# Formats found in picture collections. Everything else Pillow can open is left out on purpose: EPS would start
# Ghostscript on an untrusted file, and the scientific formats have no defined white.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF", "ICO")

# EXIF orientation (tag 0x0112) -> the transposition that undoes it; 1 and anything unknown means upright.
_UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A picture could not be read; the message says what was given, why it failed and what to do."""


def load_image(
    source,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_aspect_ratio: float = 200.0,
    size_hint: int | None = None,
    timeout: float = 20.0,
    max_download_bytes: int = DEFAULT_MAX_DOWNLOAD_BYTES,
) -> Image.Image:
    """Read one picture as an RGB `PIL.Image.Image`, or raise `ImageError`.

    `source` is a PIL image, the bytes of an image file, a path (`str` or `os.PathLike`), an http(s) address, a
    `data:` address, an fsspec address such as `hf://datasets/...`, or a dict with `bytes` and/or `path` as `datasets`
    stores pictures (`bytes` win when both are there).

    Args:
        max_pixels: width times height allowed; checked on the header, before decoding.
        max_aspect_ratio: longer side over shorter side allowed. A strip of 2 x 40,000 pixels has few pixels, but
            resizing its shorter side to 224 would make a picture of a gigapixel.
        size_hint: when given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides stay at
            least this long. With 224 that made photographs with a shorter side of 1024 pixels 1.6 times faster, those
            of 480 1.3 times; the pixels differ slightly from a full decode followed by a resize. Other formats
            ignore it.
        timeout: seconds; bounds every wait for the server and the download as a whole.
        max_download_bytes: a larger answer from a server is refused without being read to its end.

    Decisions: an animation or a file of several pages gives its first frame; 16-bit grey is scaled to 8 bits, not
    clipped; colour profiles are not applied; a broken EXIF block counts as upright. A truncated file is an error
    (Pillow's option to fill the rest with grey is never switched on). An RGB picture given as PIL image is returned
    as it is, without a copy.
    """
    if isinstance(source, Image.Image):
        return _finish(source, _describe(source), max_pixels, max_aspect_ratio, size_hint=None)
    if isinstance(source, dict):
        source = _from_dict(source)
        if isinstance(source, Image.Image):
            return _finish(source, _describe(source), max_pixels, max_aspect_ratio, size_hint=None)
    with open_image(source, timeout=timeout, max_download_bytes=max_download_bytes) as image:
        return _finish(image, _describe(source), max_pixels, max_aspect_ratio, size_hint)


@contextmanager
def open_image(
    source, *, timeout: float = 20.0, max_download_bytes: int = DEFAULT_MAX_DOWNLOAD_BYTES
) -> Iterator[Image.Image]:
    """The picture in any source of `load_image` but a PIL image or dict, as it is stored: no pixel is decoded yet.

    Raises `ImageError` as `load_image` does; the number of pixels is the caller's to check.
    """
    name = _describe(source)
    with _open_binary(source, name, timeout, max_download_bytes) as file:
        with _open_header(file, name) as image:
            yield image


def read_image(
    source, *, timeout: float = 20.0, max_download_bytes: int = DEFAULT_MAX_DOWNLOAD_BYTES
) -> bytes | Image.Image:
    """The whole content of any source of `load_image`, which reads it from there; a PIL image as it is.

    Raises `ImageError` as `load_image` does; what the content is, nobody looked at.
    """
    if isinstance(source, dict):
        source = _from_dict(source)
    if isinstance(source, bytes | Image.Image):
        return source
    name = _describe(source)
    with _open_binary(source, name, timeout, max_download_bytes) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError(f"Cannot read a picture from {name}: {error}.") from error


def _from_dict(source: dict):
    """The picture inside the dict that `datasets.Image(decode=False)` gives."""
    if source.get("bytes") is not None:
        return source["bytes"]
    if source.get("path") is not None:
        return source["path"]
    raise ImageError(
        f"No picture: expected a dict with 'bytes' or 'path', got one with keys {sorted(map(str, source))} where "
        "neither is set. Check the image column of the data set for empty cells."
    )


def _describe(source) -> str:
    """A short name of the source for messages; never the whole content."""
    if isinstance(source, Image.Image):
        return f"the PIL image {type(source).__name__} of mode {source.mode} and size {source.size}"
    if isinstance(source, bytes | bytearray | memoryview):
        head = bytes(source[:8])
        return f"{len(source)} bytes beginning with {head!r}" if len(source) else "an empty bytes object"
    text = repr(os.fspath(source)) if isinstance(source, str | os.PathLike) else repr(source)
    return text if len(text) <= 160 else f"{text[:120]}... ({len(text)} characters)"


def _open_binary(source, name: str, timeout: float, max_download_bytes: int):
    """A readable binary file for any source that is not a PIL image."""
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ImageError("Cannot read a picture from an empty bytes object. Check how the bytes were stored.")
        return io.BytesIO(source)
    if isinstance(source, str):
        scheme = source[:10].lower()
        if scheme.startswith(("http://", "https://")):
            return io.BytesIO(_download(source, name, timeout, max_download_bytes))
        if scheme.startswith("data:"):
            return io.BytesIO(_decode_data_address(source, name))
        if "://" in source or "::" in source:
            return io.BytesIO(_read_fsspec(source, name, max_download_bytes))
    elif not isinstance(source, os.PathLike):
        raise ImageError(
            f"Cannot read a picture from {name} of type {type(source).__name__}. Expected a PIL image, bytes, a path, "
            "an http(s) address, or a dict with 'bytes' or 'path'."
        )
    try:
        path = Path(source)
        if path.is_dir():
            raise ImageError(f"Cannot read a picture from {name}: it is a folder. Give the path of one file in it.")
        return path.open("rb")
    except FileNotFoundError:
        raise ImageError(
            f"Cannot read a picture from {name}: no such file (looked in {Path.cwd()}). Check the path, or the image "
            "root of the data set when its paths are relative."
        ) from None
    except (OSError, ValueError) as error:  # no permission, a name too long, a null byte in the path
        raise ImageError(f"Cannot read a picture from {name}: {error}. Check the path and its permissions.") from error


def _download(url: str, name: str, timeout: float, max_bytes: int) -> bytes:
    from huggingface_hub.utils import httpx  # the HTTP client the whole stack already uses

    deadline = time.monotonic() + timeout
    content = bytearray()
    try:
        with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
            if response.status_code >= 400:
                raise ImageError(
                    f"Cannot download the picture {name}: the server answered {response.status_code}. "
                    "Check the address, or drop this record."
                )
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > max_bytes:
                    raise ImageError(
                        f"Refused to download the picture {name}: larger than {max_bytes:,} bytes. "
                        "Raise max_download_bytes if it is trusted."
                    )
                if time.monotonic() > deadline:
                    raise ImageError(
                        f"Gave up downloading the picture {name} after {timeout:g} s and {len(content):,} bytes. "
                        "Raise timeout, or download the pictures beforehand."
                    )
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ImageError(
            f"Cannot download the picture {name}: {type(error).__name__}: {error}. "
            "Check the address and the network connection."
        ) from error
    if not content:
        raise ImageError(f"Cannot read the picture {name}: the server sent no data. Check the address.")
    return bytes(content)


def _decode_data_address(source: str, name: str) -> bytes:
    header, comma, payload = source.partition(",")
    try:
        if not comma:
            raise ValueError("there is no comma between header and data")
        data = unquote_to_bytes(payload)
        return base64.b64decode(data, validate=True) if header.lower().endswith(";base64") else data
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"Cannot read the data address {name}: {error}. Expected data:image/...;base64,..."
        ) from error


def _read_fsspec(source: str, name: str, max_bytes: int) -> bytes:
    """Streaming image folders name their pictures with addresses like hf://... or zip://a.jpg::hf://..."""
    import fsspec

    try:
        with fsspec.open(source, "rb") as file:
            content = file.read(max_bytes + 1)
    except Exception as error:  # each of the many file systems behind fsspec has its own exceptions
        raise ImageError(
            f"Cannot read a picture from {name}: {type(error).__name__}: {error}. Check the address."
        ) from error
    if len(content) > max_bytes:
        raise ImageError(
            f"Refused to read the picture {name}: larger than {max_bytes:,} bytes. Raise max_download_bytes if it is "
            "trusted."
        )
    return content


def _open_header(file, name: str) -> Image.Image:
    """Recognise the format and read the header; no pixel is decoded yet."""
    try:
        Image.init()
        return Image.open(file, formats=[key for key in _FORMATS if key in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # a warning under -W error
        raise ImageError(
            f"Refused to decode {name}: {error} If the picture is trusted, raise PIL.Image.MAX_IMAGE_PIXELS as "
            "well as max_pixels."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"Cannot read a picture from {name}: not an image of a supported format ({', '.join(_FORMATS)}). "
            "Check that the file is complete and is a picture."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # parsers of hostile headers raise struct.error, SyntaxError, KeyError and others
        raise ImageError(
            f"Cannot read a picture from {name}: its header is damaged ({type(error).__name__}: {error}). "
            "Replace or remove the file."
        ) from error


def _finish(
    image: Image.Image, name: str, max_pixels: int, max_aspect_ratio: float, size_hint: int | None
) -> Image.Image:
    """Check the size, decode, turn upright, convert to RGB."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"Cannot use {name}: its size is {width} x {height}. Remove the empty picture.")
    if width * height > max_pixels:
        raise ImageError(
            f"Refused to decode {name}: {width:,} x {height:,} is {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}. Scale the picture down, or raise max_pixels if it is trusted."
        )
    if max(width, height) > max_aspect_ratio * min(width, height):
        raise ImageError(
            f"Refused to use {name}: {width:,} x {height:,} is longer than {max_aspect_ratio:g} times its width; "
            "resizing it would need far more memory than the picture. Crop it, or raise max_aspect_ratio."
        )
    try:
        if size_hint is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (size_hint, size_hint))  # chooses a scale of the DCT at which no side gets shorter
        image.load()
        orientation = _orientation(image)
        image = _to_rgb(image, name)
        if orientation in _UNDO_ORIENTATION:
            image = image.transpose(_UNDO_ORIENTATION[orientation])
        return image
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged data raise OSError, SyntaxError, struct.error, IndexError, ...
        raise ImageError(
            f"Cannot decode {name}: {type(error).__name__}: {error}. The file is damaged or incomplete: replace or "
            "remove it."
        ) from error


def turn_upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF tag says that it is to be seen; itself where it has none."""
    orientation = _orientation(image)
    return image.transpose(_UNDO_ORIENTATION[orientation]) if orientation in _UNDO_ORIENTATION else image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block does not make the pixels wrong
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError(
            f"Cannot use {name}: it holds 32-bit floating point values, and which of them is white is not defined. "
            "Convert it to 8 or 16 bits first."
        )
    if image.mode.startswith("I"):  # I;16, I;16B, I;16L, and I, in which 16-bit files also arrive
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)  # 65535 -> 255 with rounding
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
