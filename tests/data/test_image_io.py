"""`hf_vlp.data.image_io.load_image`.

Covers: every kind of source (PIL, bytes, path, dict, data address, http from a local server, fsspec address); every
mode that files hold (palette, grey, 1-bit, 16-bit, CMYK, alpha, transparent colour key); orientation; animations;
faster JPEG decoding on request; the content of a source undecoded; and each bad input with its message: not an image,
truncated, empty, missing, folder, too many pixels (by header alone), strips, floats, wrong type, server errors, slow
and oversized downloads.
"""

import base64
import io
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image, ImageFile

from hf_vlp.data.image_io import ImageError, load_image, read_image


def encode(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photograph(width=64, height=48, seed=0) -> Image.Image:
    """A smooth random picture, so that JPEG keeps it nearly unchanged."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def png_header(width, height) -> bytes:
    """A PNG that claims a size and holds almost no data: what a decompression bomb looks like."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


# Sources


def test_all_kinds_of_sources_give_the_same_picture(tmp_path):
    image = photograph()
    data = encode(image)
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    data_address = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = [
        image,
        data,
        bytearray(data),
        memoryview(data),
        str(path),
        path,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
        {"bytes": data, "path": "elsewhere.png"},
        {"bytes": image},
        data_address,
        path.as_uri().replace("%20", " "),
    ]
    for source in sources:
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert np.array_equal(pixels(loaded), pixels(image)), source


def test_rgb_pil_image_is_returned_without_a_copy():
    image = photograph()
    assert load_image(image) is image


def test_lazily_opened_pil_image_is_decoded_and_converted(tmp_path):
    path = tmp_path / "grey.png"
    photograph().convert("L").save(path)
    with Image.open(path) as image:
        assert load_image(image).mode == "RGB"


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA", "PA", "HSV", "I;16", "I"])
def test_every_mode_becomes_rgb(mode):
    source = photograph().convert("L").convert(mode) if mode in ("I;16", "I") else photograph().convert(mode)
    loaded = load_image(source)
    assert loaded.mode == "RGB"
    assert loaded.size == (64, 48)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_every_common_format_is_read(format):
    loaded = load_image(encode(photograph(), format))
    tolerance = 60 if format == "GIF" else 25  # palette of 256 colours; lossy WebP
    assert abs(pixels(loaded) - pixels(photograph())).max() <= tolerance


def test_palette_colours_are_kept():
    image = Image.new("RGB", (8, 8), (200, 10, 30)).quantize(4)
    assert load_image(encode(image)).getpixel((0, 0)) == (200, 10, 30)


def test_cmyk_jpeg_becomes_the_right_colour():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert abs(pixels(load_image(encode(red, "JPEG")))[8, 8] - [255, 0, 0]).max() <= 3


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    loaded = load_image(encode(Image.fromarray(values)))
    assert pixels(loaded)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_alpha_is_composited_on_white():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (255, 0, 0, 0))  # invisible red
    image.putpixel((1, 0), (0, 0, 0, 51))  # black at a fifth
    assert pixels(load_image(encode(image)))[0].tolist() == [[255, 255, 255], [204, 204, 204]]


def test_grey_alpha_is_composited_on_white():
    image = Image.new("LA", (1, 1), (0, 0))
    assert load_image(encode(image)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode, key, other", [("L", 7, 9), ("P", 1, 2), ("RGB", (1, 2, 3), (4, 5, 6))])
def test_transparent_colour_key_becomes_white(mode, key, other):
    image = Image.new(mode, (2, 1), key)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 10, 10, 50, 60, 70])
    image.putpixel((1, 0), other)
    expected = {"L": (9, 9, 9), "P": (50, 60, 70), "RGB": (4, 5, 6)}[mode]
    loaded = load_image(encode(image, transparency=key))
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 0)) == expected


def test_transparent_colour_key_of_sixteen_bit_grey_becomes_white():
    image = Image.fromarray(np.array([[300, 0]], dtype=np.uint16))
    image.info["transparency"] = 300
    assert pixels(load_image(image))[0].tolist() == [[255] * 3, [0] * 3]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
        assert abs(pixels(load_image(data))[0, 0] - [255, 0, 0]).max() <= 3, format


def test_pages_of_tiff_give_the_first():
    data = encode(Image.new("RGB", (4, 4), "red"), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert load_image(data).size == (4, 4)


# Orientation


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_the_camera_is_undone(format, orientation):
    upright = photograph(64, 48)
    # how a camera held that way would have stored the upright scene: the inverse of what a viewer does
    stored = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encode(stored, format, exif=exif))
    assert loaded.size == upright.size
    assert abs(pixels(loaded) - pixels(upright)).mean() < 8


def test_orientation_of_an_opened_pil_image_is_undone_and_the_original_is_untouched():
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(encode(photograph(64, 48), "JPEG", exif=exif)))
    assert load_image(opened).size == (48, 64)
    assert opened.size == (64, 48)


def test_broken_exif_counts_as_upright():
    data = encode(photograph(64, 48), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff")
    assert load_image(data).size == (64, 48)


# Faster JPEG


def test_size_hint_decodes_large_jpeg_smaller_but_never_below_the_hint():
    data = encode(photograph(1000, 600), "JPEG")
    assert load_image(data, size_hint=224).size == (500, 300)
    assert load_image(data, size_hint=70).size == (125, 75)
    assert load_image(data, size_hint=601).size == (1000, 600)
    assert load_image(data).size == (1000, 600)


def test_size_hint_leaves_other_formats_alone():
    assert load_image(encode(photograph(1000, 600)), size_hint=64).size == (1000, 600)


def test_size_hint_keeps_the_content():
    image = photograph(800, 640)
    full = load_image(encode(image, "JPEG")).resize((100, 80), Image.Resampling.BOX)
    fast = load_image(encode(image, "JPEG"), size_hint=80)
    assert fast.size == (100, 80)
    assert abs(pixels(full) - pixels(fast)).mean() < 2


# What is refused


def assert_refused(source, *words, **options):
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_image_error_is_a_value_error():
    assert issubclass(ImageError, ValueError)


def test_text_is_not_an_image(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("this is not a picture")
    assert_refused(path, "notes.jpg", "not an image")
    assert_refused(b"<html>404</html>", "16 bytes", "not an image")


def test_postscript_is_refused_before_any_interpreter_could_run():
    assert_refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_file_is_refused(format):
    data = encode(photograph(200, 200, seed=1), format)
    assert_refused(data[: len(data) // 2], "bytes")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_every_prefix_of_a_file_is_a_picture_or_an_image_error():
    data = encode(photograph(20, 20), "PNG") + encode(photograph(20, 20), "GIF")
    for end in range(len(data)):
        try:
            assert load_image(data[:end]).mode == "RGB"
        except ImageError:
            pass


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO"])
def test_damaged_files_raise_nothing_but_image_errors(format):
    clean = np.frombuffer(encode(photograph(32, 32), format), dtype=np.uint8)
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = clean.copy()
        damaged[generator.integers(0, len(damaged), 4)] = generator.integers(0, 256, 4)
        try:
            assert load_image(damaged.tobytes()).mode == "RGB"
        except ImageError:
            pass


def test_empty_and_missing_sources_are_refused(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert_refused(b"", "empty bytes")
    assert_refused(tmp_path / "empty.jpg", "empty.jpg")
    assert_refused(tmp_path / "nowhere.jpg", "nowhere.jpg", "no such file")
    assert_refused(tmp_path, "it is a folder")
    assert_refused("", "it is a folder")
    assert_refused({"bytes": None, "path": None}, "neither is set")
    assert_refused({}, "neither is set")
    assert_refused("nul\0byte", "path")
    assert_refused("x" * 5000, "characters)")


@pytest.mark.parametrize("source", [None, 7, 1.5, ["a.jpg"], object()])
def test_other_types_are_refused(source):
    assert_refused(source, type(source).__name__, "Expected a PIL image")


def test_picture_with_too_many_pixels_is_refused_by_its_header():
    started = time.perf_counter()
    assert_refused(png_header(9500, 9500), "90,250,000 pixels", "max_pixels")
    assert_refused(png_header(60000, 60000), "Refused")
    assert time.perf_counter() - started < 1  # decoding 90 million pixels takes longer


def test_max_pixels_is_inclusive_and_holds_for_pil_images():
    image = photograph(10, 10)
    assert load_image(encode(image), max_pixels=100).size == (10, 10)
    assert_refused(encode(image), "100 pixels", max_pixels=99)
    assert_refused(image, "100 pixels", max_pixels=99)


def test_strips_are_refused():
    assert_refused(Image.new("RGB", (1, 5000)), "max_aspect_ratio")
    assert load_image(Image.new("RGB", (1, 5000)), max_aspect_ratio=5000).size == (1, 5000)
    assert load_image(Image.new("RGB", (1, 1))).size == (1, 1)


def test_empty_picture_is_refused():
    assert_refused(Image.new("RGB", (0, 5)), "0 x 5")


def test_floating_point_picture_is_refused():
    assert_refused(Image.new("F", (4, 4)), "floating point")


def test_bad_data_address_is_refused():
    assert_refused("data:image/png;base64,@@@@", "data address")
    assert_refused("data:image/png;base64", "no comma")


def test_unknown_protocol_is_refused():
    assert_refused("nosuch://bucket/a.jpg", "nosuch://bucket/a.jpg")


# Over http


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = encode(photograph())
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        try:
            if self.path == "/page":
                self.wfile.write(b"<html>sorry</html>")
            elif self.path == "/large":
                for _ in range(1000):
                    self.wfile.write(b"\0" * 10_000)
            elif self.path == "/slow":
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
            elif self.path != "/nothing":
                self.wfile.write(body)
        except OSError:  # the client hung up, as it should
            pass

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_picture_is_read_from_an_address(server):
    for page in ("/picture.png", "/moved"):
        assert np.array_equal(pixels(load_image(server + page)), pixels(photograph()))
    assert load_image({"bytes": None, "path": server + "/picture.png"}).size == (64, 48)


def test_content_of_every_source_is_read_undecoded(server, tmp_path):
    content, path = encode(photograph()), tmp_path / "picture.png"
    path.write_bytes(content)
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    for source in (content, bytearray(content), path, str(path), address, server + "/picture.png"):
        assert read_image(source) == read_image({"bytes": None, "path": source}) == content
    assert read_image({"bytes": content, "path": "no such file.png"}) == content
    picture = photograph()
    assert read_image(picture) is picture
    for source in ("no such file.png", tmp_path, 3):
        with pytest.raises(ImageError, match="Cannot read a picture from"):
            read_image(source)


def test_bad_answers_of_a_server_are_refused(server):
    assert_refused(server + "/missing", "404", server)
    assert_refused(server + "/page", "not an image")
    assert_refused(server + "/nothing", "no data")
    assert_refused("http://127.0.0.1:9/closed.png", "Cannot download", timeout=2)
    assert_refused("http://", "Cannot download", timeout=2)


def test_oversized_download_is_cut(server):
    assert_refused(server + "/large", "larger than 100,000 bytes", max_download_bytes=100_000)


def test_slow_download_is_given_up(server):
    started = time.monotonic()
    assert_refused(server + "/slow", "Gave up", timeout=0.5)
    assert time.monotonic() - started < 5
