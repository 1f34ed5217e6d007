"""Turned images and sorted rows, against plain Python, PIL and colorsys."""

import colorsys
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from luthier.errors import DataError, SpecError
from luthier.tuning import datasets
from luthier.tuning.data_modules import DataModule, DigitsDataModule
from luthier.tuning.datasets import TransformedDataset, column
from luthier.tuning.scenarios import (
    FeatureSortingScenario,
    HueShiftScenario,
    ImageRotationScenario,
)
from luthier.tuning.transforms import Rotation, dominant_hues, hues


class Given(DataModule):
    def __init__(self, train, val=None, test=None):
        super().__init__("")
        self.given = (train, val, test)

    def setup(self):
        self._train_data, self._val_data, self._test_data = self.given


class OneByOne(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def turned(image, degrees):
    """Counterclockwise about the centre: for each pixel, the nearest one that it comes from, or
    None where two are about as near."""
    height, width = len(image), len(image[0])
    angle = math.radians(degrees)
    found = []
    for row in range(height):
        found.append([])
        for col in range(width):
            x, up = col - (width - 1) / 2, (height - 1) / 2 - row
            from_x = math.cos(angle) * x + math.sin(angle) * up
            from_up = -math.sin(angle) * x + math.cos(angle) * up
            where = (height - 1) / 2 - from_up, from_x + (width - 1) / 2
            if any(abs(abs(place - math.floor(place)) - 0.5) < 1e-3 for place in where):
                found[-1].append(None)
                continue
            i, j = round(where[0]), round(where[1])
            inside = 0 <= i < height and 0 <= j < width
            found[-1].append(image[i][j] if inside else 0)
    return found


@pytest.mark.parametrize("shape", [(7, 7), (8, 8), (5, 9), (1, 3)])
@pytest.mark.parametrize("degrees", [0, 10, 45, 90, 135, 180, 270, 360, -30, -90, 720.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64])
def test_images_are_turned(shape, degrees, dtype):
    image = (torch.rand(shape) * 200 + 1).to(dtype)
    expected = turned(image.tolist(), degrees)
    for found in (
        Rotation(degrees)(image),
        Rotation(degrees)(image[None])[0],
        Rotation(degrees).many(image[None].repeat(3, 1, 1))[2],
        Rotation(degrees).many(image[None, None].repeat(2, 3, 1, 1))[1, 2],
    ):
        assert (found.dtype, found.shape) == (dtype, shape)
        for ours, theirs in zip(found.tolist(), expected, strict=True):
            for mine, right in zip(ours, theirs, strict=True):
                assert right is None or mine == right


def test_turning_goes_the_way_of_pil():
    image = torch.randint(0, 256, (31, 31), dtype=torch.uint8)
    for degrees in (15, 90, 200):
        theirs = Image.fromarray(image.numpy()).rotate(degrees)
        ours = Rotation(degrees)(Image.fromarray(image.numpy()))
        assert ours.tobytes() == theirs.tobytes()
        same = torch.from_numpy(np.array(theirs)) == Rotation(degrees)(image)
        assert same.float().mean() > 0.97  # what lies between two pixels may go to either


def test_what_is_turned_bilinearly_is_between_its_neighbours():
    image = torch.arange(9.0)[None].repeat(9, 1)
    found = Rotation(30, "bilinear")(image)
    x = (torch.arange(9.0) - 4)[None].repeat(9, 1)
    plane = 4 + math.cos(math.radians(30)) * x - math.sin(math.radians(30)) * x.T
    assert torch.allclose(found[2:7, 2:7], plane[2:7, 2:7], atol=1e-5)  # a plane stays a plane


def test_whole_pixels_are_rounded_not_cut():
    turn = Rotation(33, "bilinear")
    image = torch.arange(81, dtype=torch.uint8).reshape(9, 9)
    assert torch.equal(turn(image), turn(image.float()).round().byte())


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.zeros(1, 2, 3, 4), "image"])
def test_what_is_no_image_is_not_turned(bad):
    with pytest.raises(DataError, match="rotation needs"):
        Rotation(30)(bad)


@pytest.mark.parametrize("wrap", [lambda rows: rows, OneByOne], ids=["tensors", "one by one"])
def test_a_chunk_is_turned_and_so_are_its_tests(wrap):
    rows = TensorDataset(torch.rand(20, 1, 6, 6), torch.arange(20))
    module = Given(wrap(rows), wrap(rows), wrap(rows))
    scenario = ImageRotationScenario(module, [0, 45, 90], 1, seed=2)
    scenario.setup()
    for part in (scenario.train_data(), scenario.val_data(), scenario.test_data()[1]):
        for x, y in part:
            assert torch.equal(x, Rotation(45)(rows[int(y)][0]))
    assert [len(part) for part in scenario.test_data()] == [20, 20, 20]
    assert torch.equal(scenario.test_data()[0][3][0], rows[3][0])
    assert torch.equal(scenario.test_data()[2][3][0], torch.rot90(rows[3][0], 1, (-2, -1)))


def test_what_would_take_too_much_memory_is_turned_late(monkeypatch):
    rows = TensorDataset(torch.rand(20, 1, 6, 6), torch.arange(20))
    monkeypatch.setattr(datasets, "_KEPT_BYTES", 100)
    scenario = ImageRotationScenario(Given(rows, None, rows), [0, 45], 0)
    scenario.setup()
    late = scenario.test_data()[1]
    assert isinstance(late, TransformedDataset)
    expected = torch.stack([Rotation(45)(x) for x, _ in rows])
    backwards = list(range(19, -1, -1))
    for of in (late, Subset(Subset(late, backwards), backwards)):  # in batches, under subsets
        batches = list(DataLoader(of, batch_size=8))
        assert torch.equal(torch.cat([x for x, _ in batches]), expected)
        assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(20))
        assert torch.equal(column(of, 0), expected)
    assert torch.equal(late[3][0], expected[3])
    nested = TransformedDataset(Subset(rows, backwards), Rotation(45))
    xs, ys = next(iter(DataLoader(nested, batch_size=4)))
    assert ys.tolist() == [19, 18, 17, 16]
    assert torch.equal(xs, expected[ys])


@pytest.mark.parametrize(
    ("degrees", "said"),
    [([], "none given"), (["a"], "'a' is no number"), ([float("inf")], "inf is no number")],
)
def test_what_is_no_angle_is_refused(degrees, said):
    with pytest.raises(SpecError, match=f"degrees: {said}"):
        ImageRotationScenario(Given(None), degrees, 0)


@pytest.mark.parametrize("wrap", [lambda rows: rows, OneByOne], ids=["tensors", "one by one"])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
def test_rows_are_sorted_by_a_feature(wrap, shape):
    torch.manual_seed(0)
    rows = TensorDataset(torch.rand(31, *shape), torch.arange(31))
    expected = sorted(range(31), key=lambda i: float(rows[i][0][2].double().mean()))
    chunks = []
    for chunk in range(3):
        module = Given(wrap(rows), wrap(rows), wrap(rows))
        scenario = FeatureSortingScenario(module, 3, 2, 0.0, chunk)
        scenario.setup()
        chunks.append([int(y) for _, y in scenario.train_data()])
        assert [int(y) for _, y in scenario.val_data()] == chunks[-1]
        assert [int(y) for _, y in scenario.test_data()[chunk]] == chunks[-1]
    assert [len(chunk) for chunk in chunks] == [10, 11, 10]
    assert chunks[0] + chunks[1] + chunks[2] == expected


def test_rows_that_are_equal_keep_their_order():
    rows = TensorDataset(torch.arange(200.0)[:, None] % 2, torch.arange(200))
    scenario = FeatureSortingScenario(Given(rows), 2, 0, 0.0, 1)
    scenario.setup()
    assert [int(y) for _, y in scenario.train_data()] == list(range(1, 200, 2))


@pytest.mark.parametrize(("randomness", "low", "high"), [(0.1, 0.02, 0.2), (1.0, 0.5, 0.75)])
def test_random_pairs_are_swapped(randomness, low, high):
    """k swaps of random pairs leave about (1 - 2/n)^k of n rows: exp(-randomness)."""
    rows = TensorDataset(torch.arange(1000.0)[:, None], torch.arange(1000))

    def order(seed):
        found = []
        scenario = FeatureSortingScenario(Given(rows, None, rows), 2, 0, randomness, 0, seed)
        scenario.setup()
        for part in scenario.test_data():
            found += [int(y) for _, y in part]
        return found

    moved = sum(i != place for place, i in enumerate(order(1))) / 1000
    assert low < moved < high
    assert abs(moved - (1 - math.exp(-randomness))) < 0.05
    assert sorted(order(1)) == list(range(1000))
    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda m: FeatureSortingScenario(m, 2, 1, 0.0, 0), SpecError, "there is no feature 1"),
        (lambda m: FeatureSortingScenario(m, 2, -1, 0.0, 0), SpecError, "feature_idx: -1 is not"),
        (lambda m: FeatureSortingScenario(m, 2, 0, 1.1, 0), SpecError, "randomness: 1.1 is not"),
        (lambda m: FeatureSortingScenario(m, 2, 0, None, 0), SpecError, "randomness: None is no"),
        (lambda m: FeatureSortingScenario(m, 2, 0, 0, 2), SpecError, "there is no chunk 2"),
        (lambda m: FeatureSortingScenario(m, 9, 0, 0, 0), DataError, "3 rows to learn from cannot"),
        (lambda m: FeatureSortingScenario(m, 2, 0, 0, 0), DataError, "row 1 cannot be sorted"),
        (lambda m: HueShiftScenario(m, 2, 0, 0), DataError, "hue needs"),
        (
            lambda m: FeatureSortingScenario(Given([("text", 0), ("more", 1)]), 2, 0, 0, 0),
            DataError,
            "the input of row 0 is a str, not a tensor",
        ),
        (
            lambda m: FeatureSortingScenario(
                Given([(torch.zeros(2), 0), (torch.zeros(3), 1)]), 2, 0, 0, 0
            ),
            DataError,
            r"row 0 has the shape \(2,\), row 1 has \(3,\)",
        ),
    ],
)
def test_what_cannot_be_sorted_is_refused(make, error, said):
    x = torch.tensor([[1.0], [float("nan")], [0.0]])
    with pytest.raises(error, match=said):
        make(Given(TensorDataset(x, torch.arange(3)))).setup()


def test_hues_are_those_of_colorsys_and_of_pil():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    images[0, :, 0, 0] = 7  # grey
    found = hues(images)
    for n in range(4):
        pixels = images[n].permute(1, 2, 0)
        theirs = np.array(Image.fromarray(pixels.numpy()).convert("HSV"))[:, :, 0]
        for i in range(5):
            for j in range(6):
                right = colorsys.rgb_to_hsv(*(v / 255 for v in pixels[i, j].tolist()))[0]
                assert float(found[n, i, j]) == pytest.approx(right, abs=1e-6)
                assert abs(float(found[n, i, j]) * 255 - int(theirs[i, j])) < 1.01
    assert torch.allclose(hues(images.float() / 255), found, atol=1e-5)


@pytest.mark.parametrize("bins", [6, 100])
def test_the_dominant_hue_is_the_fullest_bin(bins, monkeypatch):
    torch.manual_seed(1)
    images = torch.rand(30, 3, 12, 12) ** 3
    expected = []
    for each in hues(images):
        counts = Counter(math.floor(hue * bins) for hue in each.flatten().tolist())
        expected.append(min(counts, key=lambda b: (-counts[b], b)) / bins)
    assert dominant_hues(images, bins).tolist() == pytest.approx(expected)
    monkeypatch.setattr("luthier.tuning.transforms._HUE_PIXELS", 300)  # two images at a time
    assert dominant_hues(images, bins).tolist() == pytest.approx(expected)


def test_the_last_hue_before_red_is_in_the_last_bin():
    almost_red = torch.tensor([1.0, 0.0, 1e-7])[None, :, None, None].repeat(1, 1, 2, 2)
    assert dominant_hues(almost_red).tolist() == pytest.approx([0.99])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_come_by_their_colour(dtype):
    """Shuffled images, of orange, of a green with some blue, and of violet, are a chunk each."""
    torch.manual_seed(2)
    colours = torch.tensor([0, 1, 2] * 8)[torch.randperm(24)]
    images = torch.rand(24, 3, 4, 4) * 0.1
    images[torch.arange(24), colours] += 0.7
    images[torch.arange(24), (colours + 1) % 3] += 0.2
    if dtype == torch.uint8:
        images = (images * 255).to(dtype)
    rows = TensorDataset(images, colours)
    for chunk in range(3):
        scenario = HueShiftScenario(Given(rows, None, rows), 3, 0.0, chunk)
        scenario.setup()
        assert [int(y) for _, y in scenario.train_data()] == [chunk] * 8
        assert {int(y) for _, y in scenario.test_data()[2]} == {2}


def test_normalised_images_have_no_hue():
    with pytest.raises(DataError, match="pixels go from -1 to 1, not from 0 to 1"):
        hues(torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2))


def test_digits_turned_as_people_do_it():
    scenario = ImageRotationScenario(
        data_module=DigitsDataModule(val_size=0.1), degrees=[0, 60, 120], chunk_id=2, num_tasks=3
    )
    scenario.setup()
    assert len(scenario.train_data()) == 431
    assert len(scenario.val_data()) == 48
    assert scenario.train_data()[0][0].shape == (1, 8, 8)
