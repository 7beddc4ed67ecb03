"""`hf_vlp.data.visual_tokens`: ids of a data set, made once and kept.

Covers: ids equal those of the tokenizer, in order, for data sets (whole, selected, encoded pictures, paths) and lists;
a second run tokenizes nothing, other data with the same pictures find theirs, another tokenizer never does; repeated
pictures are tokenized once; pictures that cannot be read have no ids and are counted; an interrupt or a full disk
keeps what was good, a damaged file is passed over; streams and records without pictures are refused.
"""

import io

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage

from hf_vlp.data import visual_tokens
from hf_vlp.data.collators import BadSampleError, BadSamplePolicy
from hf_vlp.data.masked_collators import MaskedImageCollator
from hf_vlp.data.scenes import make_scenes
from hf_vlp.data.visual_tokens import COLUMN, add_visual_tokens, picture_key, tokenizer_fingerprint
from hf_vlp.models.mome.processing_mome import MomeImageProcessorPil
from tests.models.tiny_vqkd import make_tokenizer


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def records():
    return make_scenes(7)


@pytest.fixture
def calls(tokenizer, monkeypatch):
    """Number of pictures of each call of the tokenizer."""
    sizes = []
    get_token_ids = tokenizer.get_token_ids
    monkeypatch.setattr(
        tokenizer, "get_token_ids", lambda pixels: (sizes.append(len(pixels)), get_token_ids(pixels))[1]
    )
    return sizes


def encode(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pictures_of(records) -> list:
    found = []
    for record in records:
        image = record["image"]
        found.append(PilImage.open(io.BytesIO(image["bytes"])) if isinstance(image, dict) else image)
    return [image.convert("RGB") for image in found]


def expected_ids(tokenizer, pictures) -> list[list[int]]:
    side = tokenizer.config.image_size
    processor = MomeImageProcessorPil(size={"height": side, "width": side}, do_normalize=False)
    return tokenizer.get_token_ids(processor(images=pictures, return_tensors="pt")["pixel_values"]).tolist()


def add(records, tokenizer, folder, **options):
    return add_visual_tokens(records, tokenizer, cache_dir=folder, progress=False, **options)


@pytest.mark.parametrize("batch_size", (1, 3, 64))
def test_ids_are_those_of_the_tokenizer(records, tokenizer, tmp_path, batch_size):
    found = add(records, tokenizer, tmp_path, batch_size=batch_size)
    assert found[COLUMN][:] == expected_ids(tokenizer, pictures_of(records))
    assert set(found.column_names) == {*records.column_names, COLUMN}
    assert found["captions"][:] == records["captions"][:]


def test_ids_are_those_of_the_view_that_collators_make(records, tokenizer, tmp_path):
    config = tokenizer.config
    processor = MomeImageProcessorPil(size={"height": 32, "width": 32})  # the model's pictures have another size
    options = {"window_size": config.window_size, "tokenizer_image_size": config.image_size}
    collator = MaskedImageCollator(processor, **options)
    views = collator(list(records))["tokenizer_pixel_values"]
    assert tokenizer.get_token_ids(views).tolist() == add(records, tokenizer, tmp_path)[COLUMN][:]


def test_a_second_run_tokenizes_nothing(records, tokenizer, tmp_path, calls):
    first = add(records, tokenizer, tmp_path)
    assert sum(calls) == 7
    again = add(records.select([5, 2, 2]), tokenizer, tmp_path)
    assert sum(calls) == 7
    assert again[COLUMN][:] == [first[place][COLUMN] for place in (5, 2, 2)]


def test_pictures_are_known_by_their_content_whatever_holds_them(tokenizer, tmp_path, calls):
    contents = [encode(PilImage.new("RGB", (9, 12), colour)) for colour in ("red", "blue")]
    (tmp_path / "red.png").write_bytes(contents[0])
    features = Features({"image": Image(decode=True), "name": Value("string")})
    rows = [{"image": {"bytes": content, "path": None}, "name": str(place)} for place, content in enumerate(contents)]
    first = add(Dataset.from_list(rows, features=features), tokenizer, tmp_path)
    assert calls == [2]
    second = add([{"image": str(tmp_path / "red.png")}, {"image": contents[0]}], tokenizer, tmp_path)
    assert calls == [2]
    assert [record[COLUMN] for record in second] == [first[0][COLUMN]] * 2


def test_repeated_pictures_are_tokenized_once(tokenizer, tmp_path, calls):
    found = add([{"image": PilImage.new("RGB", (8, 8), "red")}] * 5, tokenizer, tmp_path)
    assert sum(calls) == 1
    assert len({tuple(record[COLUMN]) for record in found}) == 1


def test_another_tokenizer_does_not_find_the_ids(records, tokenizer, tmp_path):
    other = make_tokenizer(seed=1)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)
    add(records, tokenizer, tmp_path)
    assert add(records, other, tmp_path)[COLUMN][:] == expected_ids(other, pictures_of(records))


def test_fingerprint_is_of_what_the_ids_depend_on(tokenizer, tmp_path):
    from hf_vlp.models.mome.modeling_vl_beit_vqkd import VlBeitVqkdTokenizer
    from tests.models.tiny_vqkd import make_training_model

    training = make_training_model()
    training.save_pretrained(tmp_path)
    loaded = VlBeitVqkdTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(training)
    before = tokenizer_fingerprint(loaded)
    loaded.codebook.cluster_size.add_(1)
    assert tokenizer_fingerprint(loaded) == before
    loaded.codebook.weight[0].neg_()
    assert tokenizer_fingerprint(loaded) != before
    assert tokenizer_fingerprint(tokenizer.to(torch.bfloat16)) != tokenizer_fingerprint(make_tokenizer())


def test_pictures_that_cannot_be_read_have_no_ids_and_are_counted(records, tokenizer, tmp_path):
    rows = [{"image": encode(picture)} for picture in pictures_of(records)]
    rows[2:4] = [{"image": rows[2]["image"][:40]}, {"image": "no such file.png"}]
    policy = BadSamplePolicy()
    found = add(rows, tokenizer, tmp_path, bad_samples=policy)
    assert [record[COLUMN] is None for record in found] == [place in (2, 3) for place in range(7)]
    assert (policy.counts["bad"], policy.counts["seen"]) == (2, 7)
    table = add(Dataset.from_list(rows[:2] + rows[2:3]), tokenizer, tmp_path)
    assert table[COLUMN][:] == [found[0][COLUMN], found[1][COLUMN], None]
    with pytest.raises(BadSampleError, match="record 2"):
        add(rows, tokenizer, tmp_path, bad_samples=BadSamplePolicy("raise"))


def test_an_interrupt_keeps_what_was_finished(records, tokenizer, tmp_path, calls, monkeypatch):
    counted = tokenizer.get_token_ids

    def stop(pixels):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return counted(pixels)

    monkeypatch.setattr(tokenizer, "get_token_ids", stop)
    with pytest.raises(KeyboardInterrupt):
        add(records, tokenizer, tmp_path, batch_size=2)
    monkeypatch.setattr(tokenizer, "get_token_ids", counted)
    assert add(records, tokenizer, tmp_path, batch_size=2)[COLUMN][:] == expected_ids(tokenizer, pictures_of(records))
    assert calls[:4] == [2, 2, 2, 1]  # four before the interrupt, three after it


def test_a_write_that_fails_leaves_the_cache_as_it_was(records, tokenizer, tmp_path, monkeypatch):
    add(records.select(range(3)), tokenizer, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(visual_tokens.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        add(records, tokenizer, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_file_is_passed_over(records, tokenizer, tmp_path, calls):
    add(records, tokenizer, tmp_path)
    (file,) = tmp_path.rglob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    assert add(records, tokenizer, tmp_path)[COLUMN][:] == expected_ids(tokenizer, pictures_of(records))
    assert calls[:2] == [7, 7]


def test_ids_that_are_there_already_are_replaced(records, tokenizer, tmp_path):
    other = make_tokenizer(seed=1)
    found = add(add(records, other, tmp_path), tokenizer, tmp_path)
    assert found[COLUMN][:] == expected_ids(tokenizer, pictures_of(records))


def test_mode_and_gradients_of_the_tokenizer_stay_as_they_were(records, tokenizer, tmp_path):
    tokenizer.train()
    add(records, tokenizer, tmp_path)
    assert tokenizer.training
    assert all(parameter.requires_grad for parameter in tokenizer.parameters())


def test_a_stream_is_refused(records, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="not for streams"):
        add(records.to_iterable_dataset(), tokenizer, tmp_path)


def test_records_without_pictures_are_refused(tokenizer, tmp_path):
    for rows in ([{"captions": ["a"]}], Dataset.from_list([{"captions": ["a"]}])):
        with pytest.raises(ValueError, match="no 'image'"):
            add(rows, tokenizer, tmp_path)


def test_key_of_a_picture_changes_with_a_pixel():
    picture = PilImage.new("RGB", (4, 4), "red")
    key = picture_key(picture)
    assert picture_key(picture.copy()) == key
    picture.putpixel((0, 0), (0, 0, 0))
    assert picture_key(picture) != key
