"""`hf_vlp.data.visual_tokens`: ids of a data set, made once and kept.

Covers: ids equal those of the tokenizer, in order, for data sets (whole, selected, encoded pictures, paths, data
addresses) and lists, with each filter of the collators; the column, mapped from batches of a fixed size; files that
others may read; several processes that share the work; callables, and what they must tell; a second run tokenizes
nothing, other data with the same pictures find theirs, another tokenizer never does; repeated pictures are tokenized
once, sources read once; pictures that cannot be read have no ids, are counted and named; an interrupt or a full disk
keeps what was good, a damaged file is passed over; no records; streams and records without pictures are refused.
"""

import base64
import io
import stat
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage

from hf_vlp.data import visual_tokens
from hf_vlp.data.collators import BadSampleError, BadSamplePolicy
from hf_vlp.data.masked_collators import TOKEN_IDS, MaskedImageCollator
from hf_vlp.data.scenes import make_scenes
from hf_vlp.data.visual_tokens import add_visual_tokens, picture_key, tokenizer_fingerprint
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
    assert found[TOKEN_IDS][:] == expected_ids(tokenizer, pictures_of(records))
    assert set(found.column_names) == {*records.column_names, TOKEN_IDS}
    assert found["captions"][:] == records["captions"][:]


@pytest.mark.parametrize("resample", ("bicubic", "lanczos", "bilinear"))
def test_ids_are_those_of_the_view_that_collators_make(records, tokenizer, tmp_path, resample):
    config = tokenizer.config
    processor = MomeImageProcessorPil(size={"height": 32, "width": 32})  # the model's pictures have another size
    options = {"window_size": config.window_size, "tokenizer_image_size": config.image_size}
    collator = MaskedImageCollator(processor, tokenizer_resample=resample, **options)
    views = collator(list(records))["tokenizer_pixel_values"]
    add(records, tokenizer, tmp_path, resample="bilinear" if resample == "bicubic" else "bicubic")
    found = add(records, tokenizer, tmp_path, resample=resample)
    assert found[TOKEN_IDS][:] == tokenizer.get_token_ids(views).tolist()


def test_unknown_filters_are_refused(records, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="tokenizer_resample='cubic'"):
        add(records, tokenizer, tmp_path, resample="cubic")


def test_column_is_a_mapped_file_of_small_batches_without_offsets(records, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(visual_tokens, "_PART_SIZE", 3)
    found = add(records, tokenizer, tmp_path)
    column = found.data.column(TOKEN_IDS)
    assert [len(chunk) for chunk in column.chunks] == [3, 3, 1]
    assert column.type == pa.list_(pa.uint8(), 16)  # the smallest type for 12 codes; a fixed size needs no offsets
    assert any(str(tmp_path) in file["filename"] for file in found.cache_files)
    assert found[TOKEN_IDS][:] == expected_ids(tokenizer, pictures_of(records))
    files = {path: path.stat().st_ino for path in (tmp_path).rglob("*.arrow")}
    assert add(records, tokenizer, tmp_path)[TOKEN_IDS][:] == found[TOKEN_IDS][:]
    assert {path: path.stat().st_ino for path in (tmp_path).rglob("*.arrow")} == files  # mapped files stay


def test_files_are_for_all_whom_the_umask_allows(records, tokenizer, tmp_path):
    add(records, tokenizer, tmp_path)
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1


def in_processes(number, call):
    """Results of `call(process_index=, num_processes=, gather=)` in threads that stand for processes."""
    barrier, parts = Barrier(number, timeout=20), {}

    def run(index):
        def gather(own):
            parts[index] = own
            barrier.wait()
            return [path for place in range(number) for path in parts[place]]

        return call(process_index=index, num_processes=number, gather=gather)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


def test_processes_share_the_pictures_and_all_get_all_ids(records, tokenizer, tmp_path, calls):
    tables = in_processes(3, lambda **share: add(records, tokenizer, tmp_path, **share))
    assert sorted(calls) == [2, 2, 3]
    lists = in_processes(8, lambda **share: add(list(records), tokenizer, tmp_path, **share))  # one has nothing to do
    expected = expected_ids(tokenizer, pictures_of(records))
    assert [table[TOKEN_IDS][:] for table in tables] == [expected] * 3
    assert [[record[TOKEN_IDS] for record in rows] for rows in lists] == [expected] * 8


def test_processes_without_a_common_folder_are_told(records, tokenizer, tmp_path):
    options = {"process_index": 1, "num_processes": 2}
    with pytest.raises(ValueError, match=r"elsewhere\.arrow.*all processes need the same cache_dir"):
        add(records, tokenizer, tmp_path, gather=lambda own: ["elsewhere.arrow", *own], **options)
    with pytest.raises(ValueError, match="several need gather"):
        add(records, tokenizer, tmp_path, **options)


def test_any_callable_is_a_tokenizer(records, tokenizer, tmp_path):
    def brightness(pixels):
        return (torch.nn.functional.avg_pool2d(pixels.mean(1), 8).flatten(1) * 70_000).int()

    options = {"fingerprint": "brightness", "num_tokens": 4, "image_size": 16}
    found = add(records, brightness, tmp_path, **options)[TOKEN_IDS]
    processor = MomeImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False)
    views = processor(images=pictures_of(records), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(torch.tensor(found[:]), brightness(views).long(), atol=1, rtol=0)
    other = add(records, lambda pixels: brightness(pixels) + 1, tmp_path, **{**options, "fingerprint": "other"})
    assert other[TOKEN_IDS][0] == [value + 1 for value in found[0]]


@pytest.mark.parametrize(
    "options, missing", [({}, "fingerprint, num_tokens, image_size"), ({"num_tokens": 4, "image_size": 16}, "finger")]
)
def test_callables_that_tell_too_little_are_refused(records, tmp_path, options, missing):
    with pytest.raises(TypeError, match=f"callable with fingerprint .*missing: {missing}"):
        add(records, lambda pixels: pixels, tmp_path, **options)


def test_what_a_tokenizer_tells_itself_is_not_taken(records, tokenizer, tmp_path):
    with pytest.raises(TypeError, match="tells fingerprint, num_tokens, image_size itself"):
        add(records, tokenizer, tmp_path, num_tokens=16)


@pytest.mark.parametrize("find", (lambda pixels: pixels, lambda pixels: torch.zeros(len(pixels), 9).long()))
def test_ids_of_another_kind_are_refused(records, tmp_path, find):
    with pytest.raises(ValueError, match=r"whole numbers of the shape \(7, 4\)"):
        add(records, find, tmp_path, fingerprint="wrong", num_tokens=4, image_size=16)


def test_no_records_have_no_ids(tokenizer, tmp_path):
    table = add(Dataset.from_dict({"image": []}, features=Features({"image": Image()})), tokenizer, tmp_path)
    assert table.column_names == ["image", TOKEN_IDS]
    assert len(table) == 0
    assert add([], tokenizer, tmp_path) == []


def test_a_second_run_tokenizes_nothing(records, tokenizer, tmp_path, calls):
    first = add(records, tokenizer, tmp_path)
    assert sum(calls) == 7
    again = add(records.select([5, 2, 2]), tokenizer, tmp_path)
    assert sum(calls) == 7
    assert again[TOKEN_IDS][:] == [first[place][TOKEN_IDS] for place in (5, 2, 2)]


def test_pictures_are_known_by_their_content_whatever_holds_them(tokenizer, tmp_path, calls):
    contents = [encode(PilImage.new("RGB", (9, 12), colour)) for colour in ("red", "blue")]
    (tmp_path / "red.png").write_bytes(contents[0])
    features = Features({"image": Image(decode=True), "name": Value("string")})
    rows = [{"image": {"bytes": content, "path": None}, "name": str(place)} for place, content in enumerate(contents)]
    first = add(Dataset.from_list(rows, features=features), tokenizer, tmp_path)
    assert calls == [2]
    address = "data:image/png;base64," + base64.b64encode(contents[0] + bytes(400)).decode()  # longer than file names
    second = add([{"image": str(tmp_path / "red.png")}, {"image": contents[0]}], tokenizer, tmp_path)
    assert calls == [2]
    third = add([{"image": address}], tokenizer, tmp_path)
    assert [record[TOKEN_IDS] for record in second + third] == [first[0][TOKEN_IDS]] * 3


def test_a_source_is_read_once(tokenizer, tmp_path, monkeypatch):
    from hf_vlp.data import image_io

    (tmp_path / "red.png").write_bytes(encode(PilImage.new("RGB", (9, 12), "red")))
    opened = []
    open_binary = image_io._open_binary
    monkeypatch.setattr(
        image_io, "_open_binary", lambda source, *rest: (opened.append(source), open_binary(source, *rest))[1]
    )
    add([{"image": str(tmp_path / "red.png")}], tokenizer, tmp_path)
    assert [source for source in opened if not isinstance(source, bytes)] == [str(tmp_path / "red.png")]


def test_repeated_pictures_are_tokenized_once(tokenizer, tmp_path, calls):
    found = add([{"image": PilImage.new("RGB", (8, 8), "red")}] * 5, tokenizer, tmp_path)
    assert sum(calls) == 1
    assert len({tuple(record[TOKEN_IDS]) for record in found}) == 1


def test_another_tokenizer_does_not_find_the_ids(records, tokenizer, tmp_path):
    other = make_tokenizer(seed=1)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)
    add(records, tokenizer, tmp_path)
    assert add(records, other, tmp_path)[TOKEN_IDS][:] == expected_ids(other, pictures_of(records))


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
    assert [record[TOKEN_IDS] is None for record in found] == [place in (2, 3) for place in range(7)]
    assert (policy.counts["bad"], policy.counts["seen"]) == (2, 7)
    table = add(Dataset.from_list(rows[:2] + rows[2:3]), tokenizer, tmp_path)
    assert table[TOKEN_IDS][:] == [found[0][TOKEN_IDS], found[1][TOKEN_IDS], None]
    with pytest.raises(BadSampleError, match="record 2"):
        add(rows, tokenizer, tmp_path, bad_samples=BadSamplePolicy("raise"))
    (tmp_path / "torn.png").write_bytes(rows[2]["image"])
    with pytest.raises(BadSampleError, match=r"record 0 \(.*torn\.png\)"):
        add([{"image": str(tmp_path / "torn.png")}], tokenizer, tmp_path, bad_samples=BadSamplePolicy("raise"))


def test_an_interrupt_keeps_what_was_finished(records, tokenizer, tmp_path, calls, monkeypatch):
    counted = tokenizer.get_token_ids
    monkeypatch.setattr(visual_tokens, "_PART_SIZE", 2)

    def stop(pixels):
        if len(calls) == 2:
            assert len(list(tmp_path.rglob("*.arrow"))) == 2  # kept as it went on, not only by the interrupt
            raise KeyboardInterrupt
        return counted(pixels)

    monkeypatch.setattr(tokenizer, "get_token_ids", stop)
    with pytest.raises(KeyboardInterrupt):
        add(records, tokenizer, tmp_path, batch_size=2)
    monkeypatch.setattr(tokenizer, "get_token_ids", counted)
    assert add(records, tokenizer, tmp_path, batch_size=2)[TOKEN_IDS][:] == expected_ids(
        tokenizer, pictures_of(records)
    )
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
    files = list(tmp_path.rglob("*.arrow"))
    assert len(files) == 2  # the ids under their pictures, and the column
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert add(records, tokenizer, tmp_path)[TOKEN_IDS][:] == expected_ids(tokenizer, pictures_of(records))
    assert calls[:2] == [7, 7]


def test_ids_that_are_there_already_are_replaced(records, tokenizer, tmp_path):
    other = make_tokenizer(seed=1)
    found = add(add(records, other, tmp_path), tokenizer, tmp_path)
    assert found[TOKEN_IDS][:] == expected_ids(tokenizer, pictures_of(records))


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
