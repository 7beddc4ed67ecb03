"""The image-to-text pipeline class, on tiny captioners, native ones and VC-GPT.

Covers: equality with the model's own `generate`; batches, lists, tuples, generators, iterators, KeyDataset, datasets
and their columns, dicts, paths, URLs, base64, bytes, `{"bytes", "path"}`; prompts of equal and unequal length;
generation arguments and their conflicts; candidates; half precision; default length; models given as objects;
tokenizers without a padding token; what is refused and how the error names it; orientation, transparency, 16 bits,
too many pixels, the same pixels as in training; saving and loading again.
"""

import base64
import copy
import http.server
import io
import json
import threading

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    ViTImageProcessorPil,
    ViTModel,
)
from transformers.pipelines.pt_utils import KeyDataset

from hf_vlp.data import image_io
from hf_vlp.pipelines import ImageToTextPipeline, pipeline
from hf_vlp.pipelines.image_pipeline import load_image
from tests.pipelines.tiny_captioners import CAPTIONERS, picture

PICTURES = [picture(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioners")
    return {name: save(str(root / name)) for name, save in CAPTIONERS.items()}


@pytest.fixture(scope="module")
def captioners(directories):
    return {name: pipeline("image-to-text", path, device="cpu") for name, path in directories.items()}


@pytest.fixture
def blip(captioners):
    return captioners["blip"]


@pytest.fixture(scope="module")
def expected(captioners):
    """The captions of BLIP for PICTURES, one picture at a time through the model itself."""
    pipe = captioners["blip"]
    texts = []
    for image in PICTURES:
        pixel_values = pipe.image_processor(images=image, return_tensors="pt").pixel_values
        ids = pipe.model.generate(pixel_values=pixel_values, max_new_tokens=6)
        texts.append([{"generated_text": pipe.tokenizer.decode(ids[0], skip_special_tokens=True)}])
    assert len({str(text) for text in texts}) == len(PICTURES), "the pictures must be told apart by their captions"
    return texts


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


# --- captions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_are_those_of_the_models_own_generate(captioners, name):
    pipe = captioners[name]
    assert type(pipe) is ImageToTextPipeline
    assert pipe.task == "image-to-text"
    for image in PICTURES[:3]:
        features = pipe.image_processor(images=image, return_tensors="pt")
        ids = pipe.model.generate(**features, max_new_tokens=6)
        text = pipe.tokenizer.decode(ids[0], skip_special_tokens=True)
        assert pipe(image, max_new_tokens=6) == [{"generated_text": text}]


@pytest.mark.parametrize("name", CAPTIONERS)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches_change_nothing(captioners, name, batch_size):
    pipe = captioners[name]
    one_by_one = [pipe(image, max_new_tokens=6) for image in PICTURES]
    assert len({str(record) for record in one_by_one}) > 1
    assert pipe(PICTURES, max_new_tokens=6, batch_size=batch_size) == one_by_one


def test_the_batch_size_of_the_constructor_is_used(directories, expected, monkeypatch):
    pipe = pipeline("image-to-text", directories["blip"], device="cpu", batch_size=3)
    sizes = []
    generate = pipe.model.generate
    monkeypatch.setattr(
        pipe.model, "generate", lambda **inputs: sizes.append(len(inputs["pixel_values"])) or generate(**inputs)
    )
    assert pipe(PICTURES, max_new_tokens=6) == expected
    assert sizes == [3, 2]


@pytest.mark.parametrize("name", CAPTIONERS)
def test_num_return_sequences_gives_several_texts_for_each_picture(captioners, name):
    pipe = captioners[name]
    options = {"max_new_tokens": 5, "num_beams": 4, "num_return_sequences": 3}
    single = [pipe(image, **options) for image in PICTURES[:3]]
    assert [len(records) for records in single] == [3, 3, 3]
    assert all(len({record["generated_text"] for record in records}) > 1 for records in single)
    assert pipe(PICTURES[:3], batch_size=3, **options) == single
    assert pipe(PICTURES[:3], batch_size=2, generate_kwargs=options) == single


@pytest.mark.parametrize("name", ["vc_gpt", "blip", "vision_encoder_decoder", "git"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_get_half_precision_pictures(directories, name, dtype):
    pipe = pipeline("image-to-text", directories[name], device="cpu", dtype=dtype)
    assert pipe.dtype == dtype
    features = pipe.preprocess(PICTURES[0])
    assert {value.dtype for value in features.values() if torch.is_tensor(value)} == {dtype}
    result = pipe(PICTURES[:3], max_new_tokens=4, batch_size=2)
    assert [list(records[0]) for records in result] == [["generated_text"]] * 3


# --- kinds of input -----------------------------------------------------------------------------------------------


def test_one_picture_gives_a_list_of_records_and_a_list_gives_a_list_of_lists(blip, expected):
    assert blip(PICTURES[0], max_new_tokens=6) == expected[0]
    assert blip([PICTURES[0]], max_new_tokens=6) == expected[:1]
    assert blip(tuple(PICTURES), max_new_tokens=6) == expected
    assert blip([]) == []
    assert blip(images=PICTURES, max_new_tokens=6) == expected


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serves picture 0 under /picture, a page under /page, a redirection, and an error everywhere else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers = {"/picture": (200, encoded(PICTURES[0])), "/page": (200, b"<html></html>")}
            status, body = answers.get(self.path, (404, b"nothing here"))
            if self.path == "/slow":
                threading.Event().wait(5)
            self.send_response(302 if self.path == "/moved" else status)
            if self.path == "/moved":
                self.send_header("Location", "/picture")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *args: None  # clients that give up are what some tests are about
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def test_a_picture_may_come_in_every_form(blip, expected, tmp_path, server):
    content = encoded(PICTURES[0])
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    text = base64.b64encode(content).decode()
    wrapped = base64.encodebytes(content).decode()
    forms = {
        "pil": PICTURES[0],
        "path": path,
        "text path": str(path),
        "url": f"{server}/picture",
        "redirected url": f"{server}/moved",
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "base64": text,
        "base64 in lines": wrapped,
        "data uri": f"data:image/png;base64,{text}",
        "undecoded": {"bytes": content, "path": None},
        "undecoded path": {"bytes": None, "path": str(path)},
        "bytes win over path": {"bytes": content, "path": "name_in_the_archive.png"},
        "row": {"image": PICTURES[0], "captions": ["not looked at"], "text": "not a prompt", "image_id": 3},
        "row of bytes": {"image": {"bytes": content, "path": None}},
    }
    for name, form in forms.items():
        assert blip(form, max_new_tokens=6) == expected[0], name
    assert blip(list(forms.values()), max_new_tokens=6, batch_size=4) == [expected[0]] * len(forms)


def test_everything_that_can_be_iterated_is_streamed(blip, expected):
    dataset = datasets.Dataset.from_dict({"image": PICTURES, "text": list("abcde")}).cast_column(
        "image", datasets.Image()
    )
    streams = {
        "generator": (image for image in PICTURES),
        "iterator": iter(PICTURES),
        "map": map(copy.copy, PICTURES),
        "KeyDataset": KeyDataset(dataset, "image"),
        "dataset": dataset,
        "column": dataset["image"],
        "undecoded": dataset.cast_column("image", datasets.Image(decode=False)),
        "streaming dataset": dataset.to_iterable_dataset(),
    }
    assert list(blip(iter(()))) == []
    for name, stream in streams.items():
        result = blip(stream, max_new_tokens=6, batch_size=2)
        assert not isinstance(result, list), name
        assert list(result) == expected, name


def test_a_generator_is_read_as_it_goes(blip, expected):
    taken = []

    def pictures():
        for index, image in enumerate(PICTURES):
            taken.append(index)
            yield image

    results = iter(blip(pictures(), max_new_tokens=6))
    assert next(results) == expected[0]
    assert taken[-1] <= 1, "one picture ahead at most"
    assert list(results) == expected[1:]


def test_worker_processes_give_the_same(blip, expected):
    assert blip(PICTURES, max_new_tokens=6, batch_size=2, num_workers=2) == expected


# --- prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vc_gpt", "blip", "git", "pix2struct"])
def test_captions_start_with_the_prompt_and_differ_from_those_without(captioners, name):
    pipe = captioners[name]
    result = pipe(PICTURES[:3], prompt="a photo of", max_new_tokens=5)
    assert all(records[0]["generated_text"].startswith("a photo of") for records in result)
    assert len({records[0]["generated_text"] for records in result}) > 1
    assert pipe(PICTURES[:3], prompt="a photo of", max_new_tokens=5, batch_size=3) == result
    assert pipe(PICTURES[0], prompt="", max_new_tokens=5) == pipe(PICTURES[0], max_new_tokens=5)


def test_a_prompt_of_the_constructor_holds_until_a_call_gives_another(directories):
    pipe = pipeline("image-to-text", directories["blip"], device="cpu", prompt="the red", max_new_tokens=3)
    assert pipe(PICTURES[0])[0]["generated_text"].startswith("the red ")
    assert pipe(PICTURES[0], prompt="a small")[0]["generated_text"].startswith("a small ")


@pytest.mark.parametrize("name", ["vc_gpt", "blip", "git", "pix2struct"])
def test_prompts_of_unequal_length_in_one_batch_are_continued_as_if_alone(captioners, name):
    pipe = captioners[name]
    prompts = ["a photo of", "the", None, "a photo of a small", "red circle left"]
    rows = [{"image": image, "prompt": prompt} for image, prompt in zip(PICTURES, prompts)]
    alone = [pipe(row, max_new_tokens=4) for row in rows]
    assert pipe(rows, max_new_tokens=4, batch_size=5) == alone
    assert alone[2] == pipe(PICTURES[2], max_new_tokens=4)


def test_prompts_of_models_with_placeholders_for_visual_tokens_are_encoded_with_the_picture(captioners):
    pipe = captioners["blip2"]
    inputs = pipe.processor(images=PICTURES[0], text="a photo of", return_tensors="pt")
    assert inputs["input_ids"].shape[1] > len(pipe.tokenizer("a photo of")["input_ids"])
    ids = pipe.model.generate(**inputs, max_new_tokens=4)
    expected = [{"generated_text": pipe.tokenizer.decode(ids[0], skip_special_tokens=True)}]
    assert pipe(PICTURES[0], prompt="a photo of", max_new_tokens=4) == expected
    rows = [{"image": image, "prompt": text} for image, text in zip(PICTURES, ["a photo of", "the", "red circle"])]
    alone = [pipe(row, max_new_tokens=4) for row in rows]
    assert alone[0] == expected
    assert len({str(records) for records in alone}) == 3
    assert pipe(rows, max_new_tokens=4, batch_size=3) == alone


def test_the_prompt_of_a_pix2struct_for_questions_is_drawn_above_the_picture(directories, monkeypatch):
    pipe = pipeline("image-to-text", directories["pix2struct"], device="cpu")
    pipe.image_processor.is_vqa = True
    headers = []

    def render_text(text, **options):  # the real one downloads a font
        headers.append(text)
        return Image.new("RGB", (20, 5 * len(text)), "white")

    monkeypatch.setattr("transformers.models.pix2struct.image_processing_pil_pix2struct.render_text", render_text)
    short = pipe(PICTURES[:2], prompt="a", max_new_tokens=4, batch_size=2)
    assert headers == ["a", "a"]
    assert pipe(PICTURES[:2], prompt="what is this", max_new_tokens=4) != short


def test_a_prompt_for_a_vision_encoder_decoder_is_refused(captioners):
    with pytest.raises(ValueError, match=r"takes no prompt.*decoder_input_ids"):
        captioners["vision_encoder_decoder"](PICTURES[0], prompt="a photo of")


def test_a_prompt_that_is_no_string_is_refused(blip):
    with pytest.raises(TypeError, match=r"prompt.*got list.*dicts"):
        blip(PICTURES, prompt=["a", "b"])
    with pytest.raises(TypeError, match=r"Input 1.*prompt.*got int"):
        blip([PICTURES[0], {"image": PICTURES[1], "prompt": 3}])


# --- generation arguments -----------------------------------------------------------------------------------------


def test_a_length_may_be_given_in_every_place(directories, blip):
    features = blip.image_processor(images=PICTURES[1], return_tensors="pt")

    def caption(**options):
        ids = blip.model.generate(**features, **options)
        return [{"generated_text": blip.tokenizer.decode(ids[0], skip_special_tokens=True)}]

    of_length = {length: caption(max_new_tokens=length) for length in (2, 4, 6)}
    assert len({str(records) for records in of_length.values()}) == 3, "a model that stops by itself tests nothing"

    pipe = pipeline("image-to-text", directories["blip"], device="cpu", max_new_tokens=4)
    assert pipe(PICTURES[1]) == of_length[4]
    assert pipe(PICTURES[1], max_new_tokens=2) == of_length[2]
    assert pipe(PICTURES[1]) == of_length[4]
    assert blip(PICTURES[1], generate_kwargs={"max_new_tokens": 2}) == of_length[2]
    assert blip(PICTURES[1], generation_config=GenerationConfig(max_new_tokens=2)) == of_length[2]
    pipe = pipeline("image-to-text", directories["blip"], device="cpu", generate_kwargs={"max_new_tokens": 6})
    assert pipe(PICTURES[1]) == of_length[6]
    penalised = caption(max_new_tokens=6, repetition_penalty=5.0)
    assert penalised != of_length[6]
    joined = pipe(PICTURES[1], generate_kwargs={"repetition_penalty": 5.0})
    assert joined == penalised, "the keywords of a call join those of the constructor"


def test_the_default_length_fits_the_positions_of_the_decoder(captioners):
    # 24 positions: 256 new tokens, the default, would run out of the position table.
    for name in ("blip", "vision_encoder_decoder"):
        words = [len(records[0]["generated_text"].split()) for records in captioners[name](PICTURES)]
        assert 6 < max(words) <= 24, name
    with_prompt = captioners["blip"](PICTURES, prompt="a photo of a small red circle left", batch_size=5)
    assert 9 < max(len(records[0]["generated_text"].split()) for records in with_prompt) <= 24


def test_the_length_of_the_checkpoint_is_respected(directories, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(directories["git"])
    model.generation_config.max_new_tokens = 2
    processor = AutoProcessor.from_pretrained(directories["git"])
    pipe = pipeline("image-to-text", model, processor=processor, device="cpu")
    assert len(pipe(PICTURES[0])[0]["generated_text"].split()) == 2


def test_arguments_given_twice_or_unknown_are_refused(blip):
    with pytest.raises(ValueError, match=r"max_new_tokens.*both"):
        blip(PICTURES[0], max_new_tokens=3, generate_kwargs={"max_new_tokens": 4})
    with pytest.raises(TypeError, match=r"unknown arguments \['text'\].*`prompt`"):
        blip(PICTURES[0], text="a photo of")
    with pytest.raises(TypeError, match=r"another name"):
        blip(PICTURES[0], images=PICTURES[0])
    with pytest.raises(ValueError, match=r"without a picture"):
        blip()


def test_sampling_arguments_reach_generate(blip):
    torch.manual_seed(0)
    texts = {blip(PICTURES[0], do_sample=True, temperature=3.0, max_new_tokens=6)[0]["generated_text"] for _ in "1234"}
    assert len(texts) > 1


# --- parts --------------------------------------------------------------------------------------------------------


def test_a_model_object_works_with_a_processor_or_with_its_parts(directories, expected):
    model = AutoModelForImageTextToText.from_pretrained(directories["blip"])
    processor = AutoProcessor.from_pretrained(directories["blip"])
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    for given in ({"processor": processor}, parts, {"processor": processor, "tokenizer": processor.tokenizer}):
        pipe = pipeline("image-to-text", model, device="cpu", **given)
        assert pipe(PICTURES, max_new_tokens=6, batch_size=2) == expected


def test_prompts_work_without_a_processor(directories, blip):
    model = AutoModelForImageTextToText.from_pretrained(directories["blip"])
    parts = {"tokenizer": blip.tokenizer, "image_processor": blip.image_processor}
    pipe = pipeline("image-to-text", model, device="cpu", **parts)
    assert pipe.processor is None
    options = {"prompt": "a photo of", "max_new_tokens": 4}
    assert pipe(PICTURES, batch_size=2, **options) == blip(PICTURES, **options)


@pytest.mark.parametrize("name, targets", [("vc_gpt", ["c_attn"]), ("blip", ["query", "value"])])
def test_adapters_work_as_an_object_and_as_a_folder(captioners, directories, tmp_path, name, targets):
    model = AutoModelForImageTextToText.from_pretrained(directories[name])
    lora = LoraConfig(target_modules=targets, r=2, init_lora_weights=False, fan_in_fan_out=name == "vc_gpt")
    model = get_peft_model(model, lora)
    processor = AutoProcessor.from_pretrained(directories[name])
    options = {"max_new_tokens": 6, "batch_size": 2}
    adapted = pipeline("image-to-text", model, processor=processor, device="cpu")(PICTURES, **options)
    assert adapted != captioners[name](PICTURES, **options)
    model.save_pretrained(tmp_path)
    assert pipeline("image-to-text", str(tmp_path), device="cpu")(PICTURES, **options) == adapted


def test_missing_parts_are_named(directories, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(directories["blip"])
    with pytest.raises(ValueError, match=r"No image_processor and no tokenizer could be loaded"):
        pipeline("image-to-text", model, device="cpu")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"No image_processor"):
        pipeline("image-to-text", str(tmp_path), tokenizer=directories["blip"], device="cpu")
    with pytest.raises(ValueError, match=r"No tokenizer"):
        pipeline("image-to-text", model, image_processor=ViTImageProcessorPil(), device="cpu")


def test_a_model_that_cannot_generate_is_refused(directories, blip):
    model = ViTModel(ViTModel.config_class(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match=r"ViTModel cannot generate text"):
        pipeline("image-to-text", model, processor=blip.processor, device="cpu")


def test_a_tokenizer_without_padding_token_is_no_obstacle_and_stays_as_it_is(directories):
    tokenizer = AutoTokenizer.from_pretrained(directories["vision_encoder_decoder"])
    assert tokenizer.pad_token is None
    pipe = pipeline("image-to-text", directories["vision_encoder_decoder"], tokenizer=tokenizer, device="cpu")
    one_by_one = [pipe(image, max_new_tokens=5) for image in PICTURES]
    assert pipe(PICTURES, max_new_tokens=5, batch_size=2) == one_by_one
    assert tokenizer.pad_token is None


# --- pictures that are none ---------------------------------------------------------------------------------------


def bad_pictures(tmp_path):
    whole = encoded(picture(0, size=200), "JPEG")
    text = tmp_path / "notes.jpg"
    text.write_text("these are notes, not a picture")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole[: len(whole) // 2])
    return {
        "no picture": (text, "notes.jpg.*not a picture"),
        "cut short": (cut, "cut.jpg.*cut short or damaged"),
        "cut short in memory": (whole[: len(whole) // 2], rf"{len(whole) // 2} bytes.*cut short"),
        "no bytes": (b"", "0 bytes.*not a picture"),
        "missing": (str(tmp_path / "missing.jpg"), "missing.jpg.*neither an existing file"),
        "missing, in letters of base64": ("photo", "'photo' is neither an existing file"),
        "base64 of something else": (base64.b64encode(b"no picture at all, but text").decode(), "not a picture"),
        "data uri of something else": ("data:image/png;base64,???", "content is not base64"),
        "dict without picture": ({"file": "a.png"}, r"keys \['file'\].*neither `bytes` nor `path`"),
        "row without picture": ({"image": {"bytes": None, "path": None}}, "neither `bytes` nor `path`"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "no picture",
        "cut short",
        "cut short in memory",
        "no bytes",
        "missing",
        "missing, in letters of base64",
        "base64 of something else",
        "data uri of something else",
        "dict without picture",
        "row without picture",
    ],
)
def test_a_bad_picture_is_named_with_its_place(blip, tmp_path, kind):
    bad, message = bad_pictures(tmp_path)[kind]
    with pytest.raises(ValueError, match=message):
        blip(bad)
    inputs = [PICTURES[0], PICTURES[1], bad, PICTURES[2]]
    with pytest.raises(ValueError, match=f"Input 2: .*{message}"):
        blip(inputs, batch_size=4)
    with pytest.raises(ValueError, match=f"Input 2: .*{message}"):
        list(blip((image for image in inputs), batch_size=4))


def test_a_bad_picture_in_a_dataset_is_named_with_its_row(blip):
    class Rows(torch.utils.data.Dataset):
        rows = [PICTURES[0], b"broken"]

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return self.rows[index]

    with pytest.raises(ValueError, match=r"Input 1: .*6 bytes"):
        list(blip(Rows(), batch_size=2))


def test_arrays_tensors_and_numbers_are_refused_with_advice(blip):
    for wrong in (np.zeros((16, 16, 3), dtype=np.uint8), torch.zeros(3, 16, 16), 3, 2.5, object()):
        with pytest.raises(TypeError, match=r"is no picture.*PIL.Image.fromarray"):
            blip(wrong)
        with pytest.raises(TypeError, match=r"Input 1: .*is no picture"):
            blip([PICTURES[0], wrong])


def test_a_url_that_fails_is_named_with_the_reason(blip, server):
    with pytest.raises(ValueError, match=r"nowhere.*cannot be fetched.*404"):
        blip(f"{server}/nowhere")
    with pytest.raises(ValueError, match=r"page.*not a picture"):
        blip(f"{server}/page")
    with pytest.raises(ValueError, match=r"slow.*cannot be fetched.*[Tt]ime"):
        blip(f"{server}/slow", timeout=0.2)
    with pytest.raises(ValueError, match=r"Input 1: .*slow.*cannot be fetched"):
        blip([PICTURES[0], f"{server}/slow"], timeout=0.2)
    with pytest.raises(ValueError, match=r"cannot be fetched"):
        blip("http://127.0.0.1:1/refused.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    content = encoded(Image.new("1", (12000, 9000)), "PNG")  # 108 million pixels in a few kilobytes
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"12000 x 9000 pixels, more than the 89478485 allowed"):
        load_image(content)


def test_what_is_too_thin_or_too_large_to_download_is_refused(server, monkeypatch):
    with pytest.raises(ValueError, match=r"2 x 1000 pixels, too long and thin"):
        load_image(Image.new("RGB", (2, 1000)))
    monkeypatch.setattr("hf_vlp.pipelines.image_pipeline.MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(ValueError, match=r"picture.*cannot be fetched.*more than 100 bytes"):
        load_image(f"{server}/picture")


def test_formats_that_start_other_programs_are_refused():
    content = encoded(Image.new("RGB", (8, 8)), "EPS")
    with pytest.raises(ValueError, match=r"not a picture that can be opened"):
        load_image(content)


def test_a_bomb_that_pillow_itself_refuses_is_a_value_error():
    content = encoded(Image.new("1", (20000, 10000)), "PNG")
    with pytest.raises(ValueError, match=r"200000000 pixels"):
        load_image(content)


# --- how pictures are read ----------------------------------------------------------------------------------------


def test_the_orientation_of_the_camera_is_applied():
    image = Image.new("RGB", (20, 10), "white")
    image.paste("red", (0, 0, 10, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate a quarter to the right
    upright = load_image(encoded(image, exif=exif))
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == (255, 0, 0)
    assert upright.getpixel((5, 17)) == (255, 255, 255)


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert load_image(half).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encoded(half)).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert load_image(half).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert load_image(encoded(palette, "GIF", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert load_image(encoded(grey)).getpixel((0, 0)) == (255, 255, 255)


def test_every_mode_becomes_rgb_with_its_brightness():
    for mode, colour, expected in (
        ("1", 1, 255),
        ("L", 100, 100),
        ("CMYK", (0, 0, 0, 0), 255),
        ("I;16", 32896, 128),
        ("P", 0, 0),
    ):
        image = load_image(Image.new(mode, (4, 4), colour))
        assert image.mode == "RGB", mode
        assert image.getpixel((1, 1)) == (expected,) * 3, mode


def test_pictures_have_the_pixels_that_training_saw(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (12, 9, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8
    palette = Image.fromarray(colours[..., :3]).quantize(7)
    kinds = {
        "rgb": encoded(Image.fromarray(colours[..., :3])),
        "alpha": encoded(Image.fromarray(colours)),
        "grey and alpha": encoded(Image.fromarray(colours).convert("LA")),
        "palette": encoded(palette, "GIF", transparency=3),
        "one transparent colour": encoded(
            Image.fromarray(colours[..., :3]), transparency=tuple(colours[0, 0, :3].tolist())
        ),
        "16 bits": encoded(Image.fromarray(rng.integers(0, 65536, (12, 9), dtype=np.uint16))),
        "turned": encoded(Image.fromarray(colours[..., :3]), "JPEG", exif=exif),
        "cmyk": encoded(Image.fromarray(colours, mode="CMYK"), "JPEG"),
        "broken exif": encoded(Image.fromarray(colours[..., :3]), "JPEG", exif=b"Exif\x00\x00MM\x00broken"),
    }
    for name, content in kinds.items():
        seen = image_io.load_image(content)
        assert np.array_equal(np.asarray(load_image(content)), np.asarray(seen)), name


def test_the_callers_picture_is_not_changed(blip):
    image = Image.new("RGBA", (20, 10), (255, 0, 0, 100))
    before = image.tobytes()
    blip(image, max_new_tokens=2)
    assert image.mode == "RGBA"
    assert image.tobytes() == before


# --- saving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAPTIONERS)
def test_a_saved_pipeline_has_all_it_needs_and_captions_the_same(captioners, tmp_path, name):
    pipe = captioners[name]
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["custom_pipelines"]["image-to-text"] == {
        "impl": "image_to_text.ImageToTextPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
    assert (tmp_path / "image_to_text.py").is_file()
    assert (tmp_path / "image_pipeline.py").is_file()
    assert (tmp_path / "processor_config.json").is_file() == (pipe.processor is not None)
    again = pipeline("image-to-text", str(tmp_path), device="cpu")
    assert again(PICTURES, max_new_tokens=5, batch_size=2) == pipe(PICTURES, max_new_tokens=5)
