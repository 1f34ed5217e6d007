"""Image classification: images in every form, features, answers, and what is refused."""

import base64
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from luthier.data.rows import read_rows
from luthier.errors import DataError, ModelError
from luthier.spec import CSVOptions, ProcessingSpec
from luthier.tasks.image_classification import ImageClassification

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def picture(colour, mode="RGB", kind="PNG"):
    """A small picture of one colour, as bytes."""
    made = Image.new("RGB", (20, 16), COLOURS[colour]).convert(mode)
    file = io.BytesIO()
    made.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def plain_vit(tmp_path_factory):
    """A tiny ViT and its processor."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    folder = tmp_path_factory.mktemp("task") / "vit"
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def table(tmp_path):
    """Rows of a Parquet file whose images are ``{"bytes", "path"}``."""

    def make(images, labels):
        column = [{"bytes": value, "path": None} for value in images]
        parquet.write_table(pa.table({"image": column, "label": labels}), tmp_path / "i.parquet")
        return read_rows(tmp_path / "i.parquet", CSVOptions(), name="i.parquet")

    return make


def test_images_are_read_in_every_form(rows, table, tmp_path):
    ours = ImageClassification()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture("red"))
    (tmp_path / "b.jpg").write_bytes(picture("green", "L", "JPEG"))
    text = base64.b64encode(picture("blue")).decode()
    listed = [
        {"image": "pictures/a.png", "label": "red"}, {"image": "b.jpg", "label": "green"},
        {"image": text, "label": "blue"},
        {"image": f"data:image/png;base64,{text}", "label": "blue"},
        {"image": str(tmp_path / "pictures" / "a.png"), "label": "red"},
    ]  # fmt: skip
    examples = ours.read(rows(listed))
    found = examples.values("image")
    assert [image.mode for image in found] == ["RGB"] * 5
    assert [image.getpixel((3, 3)) for image in (found[0], found[2], found[3], found[4])] == [
        COLOURS["red"], COLOURS["blue"], COLOURS["blue"], COLOURS["red"],
    ]  # fmt: skip
    assert examples.labels == ("blue", "green", "red")
    stored = ours.read(table([picture("red"), picture("blue", "RGBA")], [0, 1]))
    assert stored.labels == ("0", "1")
    assert stored.values("image", np.array([1]))[0].getpixel((0, 0)) == COLOURS["blue"]


def test_it_learns_and_features_are_the_processors(table, plain_vit, learn):
    ours = ImageClassification(ProcessingSpec())
    pictures = [picture(colour) for colour in COLOURS]
    examples = ours.read(table(pictures, list(COLOURS)))
    torch.manual_seed(0)
    model, processor = ours.load(plain_vit, examples.labels)
    feature = ours.features(examples, np.array([2]), processor)[0]
    image = Image.open(io.BytesIO(pictures[2]))
    expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(feature["pixel_values"], expected)
    assert feature["labels"] == 0
    assert np.asarray(feature["pixel_values"]).shape == (3, 16, 16)
    learn(ours, model, processor, examples, 40)
    one = ours.predict(model, examples, processor, batch_size=1)
    assert one.values == list(COLOURS)
    many = ours.predict(model, examples, processor, batch_size=3)
    np.testing.assert_allclose(one.arrays["probabilities"], many.arrays["probabilities"], atol=1e-6)
    scores = ours.score(one, examples)
    assert scores.metrics["f1_macro"] == scores.metrics["accuracy"] == 1
    batch = ours.collator(processor)(ours.features(examples, np.arange(3), processor))
    with torch.no_grad():
        assert scores.metrics["loss"] == pytest.approx(model(**batch).loss.item(), abs=1e-5)


def test_images_that_do_not_decode_are_named(rows, table, tmp_path):
    ours = ImageClassification()
    whole = picture("red")
    with pytest.raises(DataError) as caught:
        ours.read(table([whole, whole[:60], b"hello", b""], ["a", "b", "a", "b"]))
    message = str(caught.value)
    assert "i.parquet, row 2, column image: these bytes: the image does not decode" in message
    assert "also row 3, column image: these bytes: not an image of a known format" in message
    assert "also row 4, column image: the image is missing" in message
    listed = [{"image": "gone.png", "label": "a"}, {"image": "../../etc", "label": "b"}]
    with pytest.raises(DataError) as caught:
        ours.read(rows(listed))
    message = str(caught.value)
    assert "row 1, column image: the file gone.png cannot be read: No such file" in message
    assert "also row 2, column image: the file ../../etc cannot be read" in message


def test_a_model_of_texts_is_refused(plain_bert):
    with pytest.raises(ModelError, match="cannot be loaded"):
        ImageClassification().load(plain_bert, ("a", "b"))
