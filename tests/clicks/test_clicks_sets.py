"""Catalogues from anywhere, items cut and multiplied, sessions converted and split."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.clicks import (
    AugmentationsComposition,
    AwsS3DataLoader,
    ChangeCases,
    ClickstreamSessionConverter,
    CSVDataLoader,
    DatasetFieldsNormalizer,
    DummySentenceSplitter,
    FileDataLoader,
    ImagePreprocessor,
    InMemoryDataLoader,
    ItemMeta,
    ItemsSetAugmentationApplier,
    ItemsSetSplitter,
    JSONLDataLoader,
    Misspellings,
    ParquetDataLoader,
    SeparatorSplitter,
    Sessions,
    TextItemSetManager,
    TextPreprocessor,
    TextQueryRetriever,
    TrainTestSplitter,
    prepare_data,
)
from luthier.clicks.conversion import convert
from luthier.errors import DataError

ROWS = [{"item_id": f"i{n}", "item": f"Item {n}. It is good"} for n in range(6)]


def _files(folder):
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "items.csv").write_text(
        "item_id,item\n" + "".join(f"{r['item_id']},{r['item']}\n" for r in ROWS)
    )
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "items.parquet")
    return folder


@pytest.mark.parametrize(
    ("loader", "name"),
    [(JSONLDataLoader, "items.jsonl"), (CSVDataLoader, "items.csv"),
     (ParquetDataLoader, "items.parquet"), (FileDataLoader, "items.parquet")],
)  # fmt: skip
def test_a_catalogue_in_any_file_is_the_same(tmp_path, loader, name):
    made = loader(_files(tmp_path) / name)
    assert made.load() == ROWS
    assert made.load([ItemMeta("i3"), ItemMeta("elsewhere")]) == [ROWS[3]]
    assert loader(f"file://{tmp_path}/{name}").load() == ROWS


@pytest.mark.real
def test_a_catalogue_in_s3(tmp_path, monkeypatch):
    """From a real server, fetched once."""
    pytest.importorskip("moto")
    import s3fs

    from luthier.testing.s3 import server

    s3fs.S3FileSystem.clear_instance_cache()  # what was connected to another test's server

    content = (_files(tmp_path) / "items.jsonl").read_bytes()
    with server(tmp_path / "s3") as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        s3.put("shop", "catalogue/items.jsonl", content)
        loader = AwsS3DataLoader("shop", "catalogue/items.jsonl", cache=tmp_path / "cache")
        assert loader.load() == loader.load() == ROWS
        assert [how for how, _ in s3.requests("/shop/catalogue/items.jsonl")].count("GET") == 1
        with pytest.raises(DataError, match=r"none\.jsonl"):
            AwsS3DataLoader("shop", "none.jsonl", cache=tmp_path / "cache").load()


def test_a_catalogue_in_memory():
    assert InMemoryDataLoader(ROWS).load([ItemMeta("i0")]) == [ROWS[0]]
    assert InMemoryDataLoader({"a": "text"}).load() == [{"item_id": "a", "item": "text"}]
    with pytest.raises(DataError, match="row 2"):
        InMemoryDataLoader([{}, "no row"])


def test_where_a_catalogue_cannot_be(tmp_path):
    with pytest.raises(DataError, match=r"itemz.jsonl.*no such file(?s:.*)items.jsonl"):
        JSONLDataLoader(_files(tmp_path) / "itemz.jsonl").load()
    assert AwsS3DataLoader("shop", "/items.jsonl").uri == "s3://shop/items.jsonl"
    with pytest.raises(DataError, match="no place in S3"):
        AwsS3DataLoader("shop/items", "")


def test_what_is_wrong_with_a_catalogue_is_told_by_row_and_field(tmp_path):
    manager = TextItemSetManager()
    with pytest.raises(DataError, match=r"items.jsonl, row 2, column item"):
        manager.catalogue([ROWS[0], {"item_id": "x"}], "items.jsonl")
    with pytest.raises(DataError, match=r"item 'x' has no text"):
        manager.catalogue([{"item_id": "x", "item": " \n"}])
    with pytest.raises(DataError, match=r"item 'x': an item is a text or a dict, not int"):
        manager.catalogue([{"item_id": "x", "item": 3}])
    with pytest.raises(DataError, match="there is no item"):
        manager.catalogue([])
    (tmp_path / "bad.jsonl").write_text('{"item_id": "a", "item": "b"}\n{"item_id": \n')
    with pytest.raises(DataError, match=r"bad.jsonl, row 2"):
        JSONLDataLoader(tmp_path / "bad.jsonl").load()


def test_dicts_are_lines():
    rows = [{"sku": 1, "item": {"title": " Red  hat", "colour": "red", "price": None}}]
    manager = TextItemSetManager(DatasetFieldsNormalizer("item", "sku"))
    assert manager.catalogue(rows) == {"1": "colour: red title: Red hat"}
    manager = TextItemSetManager(
        DatasetFieldsNormalizer("item", "sku"), preprocessor=TextPreprocessor(["title"], "; ")
    )
    assert manager.catalogue(rows) == {"1": "title: Red hat"}


def test_the_seeds_items_manager():
    manager = TextItemSetManager(
        field_normalizer=DatasetFieldsNormalizer("item", "item_id"),
        items_set_splitter=ItemsSetSplitter(DummySentenceSplitter()),
        augmenter=ItemsSetAugmentationApplier(
            AugmentationsComposition([ChangeCases(5), Misspellings(5)])
        ),
        do_augment_test=False,
    )
    catalogue = manager.catalogue(ROWS)
    test, train = (
        manager.items_set(catalogue, train=False),
        manager.items_set(catalogue, train=True),
    )
    assert test.parts.texts[:2] == ["Item 0.", "It is good"]
    assert test.names[:3] == ["i0", "i0\x1f1", "i1"]
    assert len(test.texts) == 12
    assert len(train.texts) > 3 * len(test.texts)
    assert {train.ids[owner] for owner in train.parts.owner} == set(catalogue)
    assert "item 0." in train.parts.texts
    augmented = TextItemSetManager(augmenter=manager.augmenter, do_augment_test=True)
    assert not augmented.items_set(catalogue, train=False).is_whole
    with pytest.raises(DataError, match="mean, max or min"):
        TextItemSetManager(aggregation="sum")


def test_parts_share_the_clicks_and_the_trust_of_their_item():
    sessions = Sessions.of([
        {"session": "1", "query": "q", "items": ["a", "b", "gone"], "clicks": [1],
         "scores": [0.3, 0.2, 0.1]},
        {"session": "2", "query": "r", "items": ["b"], "clicks": [0], "scores": [0.5]},
    ])  # fmt: skip
    inputs = convert(sessions)
    manager = TextItemSetManager(items_set_splitter=ItemsSetSplitter(SeparatorSplitter()))
    items = manager.items_set({"a": "one;two;three", "b": "four;five"}, train=True)
    found = items.expand(inputs)
    first, second = found.rows(0), found.rows(1)
    assert [items.texts[n] for n in first["items"]] == ["one", "two", "three", "four", "five"]
    assert first["relevance"] == [0, 0, 0, 1, 1]
    assert first["confidence"] == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)
    assert first["positions"] == [1, 1, 1, 2, 2]
    assert [items.texts[n] for n in second["items"]] == ["four", "five"]
    np.testing.assert_allclose(found.sessions.scores, [0.3] * 3 + [0.2] * 2 + [0.1] + [0.5] * 2)
    whole = TextItemSetManager().items_set({"a": "one", "b": "two"}, train=True)
    assert whole.expand(inputs) is inputs


SESSION = {
    "session_id": "s", "search_query": " red  hat", "search_results": [
        {"object_id": "i0", "rank": 0.9, "meta": {"shelf": 2}}, {"object_id": "i1", "rank": 0.5},
    ], "events": [{"event_id": "e", "object_id": "i1"}],
}  # fmt: skip


def test_sessions_with_events_are_converted():
    converter = ClickstreamSessionConverter(item_type=ItemMeta)
    sessions = converter.convert([SESSION, {**SESSION, "session_id": "t", "events": []}])
    assert sessions.ids == ["s", "t"]
    assert sessions.is_irrelevant.tolist() == [False, True]
    assert sessions.scores.tolist() == [0.9, 0.5] * 2
    assert converter.convert(sessions) is sessions
    assert converter.items([SESSION]) == [ItemMeta("i0", {"shelf": 2}), ItemMeta("i1")]
    assert converter.queries(sessions, TextQueryRetriever()).query_texts == ["red hat"]
    with pytest.raises(DataError, match=r"row 2, column search_query"):
        converter.convert([SESSION, {**SESSION, "session_id": "t", "search_query": None}])
    with pytest.raises(DataError, match=r"row 1: a session is a mapping, not str"):
        converter.convert(["a session"])


def _clickstream(count):
    return [
        {**SESSION, "session_id": f"s{n}", "search_query": f"query {n % 7}", "created_at": 1e9 + n}
        for n in range(count)
    ]


def test_a_split_keeps_queries_apart_and_says_what_is_shared():
    sessions = ClickstreamSessionConverter().convert(_clickstream(70))
    split = TrainTestSplitter(test_size_ratio=0.3, random_state=5).split(sessions)
    assert split.overlap.queries[0] == 0
    assert split.overlap.items == (2, 2)
    assert not set(split.train.query_texts) & set(split.test.query_texts)
    again = TrainTestSplitter(test_size_ratio=0.3, random_state=5).split(sessions)
    assert again.test.ids == split.test.ids
    late = TrainTestSplitter(test_size_ratio=0.3, shuffle=False).split(sessions)
    assert late.by == "time"
    assert min(late.test.times) > max(late.train.times)


def test_prepare_data_puts_it_together():
    data = prepare_data(
        _clickstream(70), ClickstreamSessionConverter(), TrainTestSplitter(),
        TextQueryRetriever(), InMemoryDataLoader(ROWS[:1]), TextItemSetManager(),
    )  # fmt: skip
    assert data.missing == ("i1",)
    assert dict(data.catalogue) == {"i0": "Item 0. It is good"}
    for other in ({"item_id": "z", "item": "z"}, {"name": "z", "item_id": "z", "item": "z"}):
        with pytest.raises(DataError, match=r"no item of the log is in the catalogue(?s:.*)'z'"):
            prepare_data(
                _clickstream(70), ClickstreamSessionConverter(), TrainTestSplitter(),
                TextQueryRetriever(), InMemoryDataLoader([other]), TextItemSetManager(),
            )  # fmt: skip


def test_images_are_squares(tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "wide.png")
    found = ImagePreprocessor(16, fill=7)(tmp_path / "wide.png")
    assert found.shape == (16, 16, 3)
    assert found[8, 8].tolist() == [255, 0, 0]
    assert found[0, 0].tolist() == [7, 7, 7]
    same = ImagePreprocessor(16, fill=7)((tmp_path / "wide.png").read_bytes())
    np.testing.assert_array_equal(found, same)
    np.testing.assert_array_equal(ImagePreprocessor(16)(found), found)
    with pytest.raises(DataError, match="no image that can be read"):
        ImagePreprocessor()(b"no image")
    with pytest.raises(DataError, match=r"none\.png"):
        ImagePreprocessor()(tmp_path / "none.png")


def test_a_catalogue_of_images_is_refused_when_it_is_handed_over(tmp_path):
    """Real images as bytes, as Pillow's, as arrays and as names: none is taken for a text."""
    from PIL import Image

    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "wide.png")
    data = (tmp_path / "wide.png").read_bytes()
    for item in (data, Image.open(tmp_path / "wide.png"), ImagePreprocessor(8)(data)):
        with pytest.raises(DataError, match=r"column picture: item 'a' is an image") as error:
            _pictures().catalogue([{"id": "a", "picture": item}])
        assert "give a caption" in error.value.hint
    made = TextItemSetManager(
        DatasetFieldsNormalizer("picture", "id"), preprocessor=ImagePreprocessor(8)
    )
    with pytest.raises(DataError, match="item 'a' is an image"):
        made.catalogue([{"id": "a", "picture": data}])
    names = ["photos/wide.png", "https://shop.example/hats/2.JPG?w=90", "a red hat"]
    rows = [{"id": str(n), "picture": name} for n, name in enumerate(names)]
    with pytest.raises(DataError, match=r"items are names of images, such as .*wide\.png' of '0'"):
        _pictures().catalogue(rows)
    captions = [{"id": "a", "picture": "logo.png"}, {"id": "b", "picture": "a red hat"}]
    assert len(_pictures().catalogue(captions)) == 2  # one name among texts is a text


def _pictures():
    return TextItemSetManager(DatasetFieldsNormalizer("picture", "id"))
