"""The code of Embedding Studio's page on fine-tuning, as it stands there, with our imports.

Where the page writes ``...`` or a name like ``YourDataLoader``, the test says what they are.
"""

import gc
import inspect
import textwrap
import typing
from pathlib import Path

import pytest
import torch
from clicks_world import a_worker, write_world
from pydantic import BaseModel

from luthier.clicks import (
    EarlyStopping,
    FineTuner,
    FineTuningParams,
    FineTuningSettings,
    InMemoryDataLoader,
    RankingDataLoader,
    Sessions,
    Trials,
    _finetune_embedding_model_one_step_hyperopt,
    find_method,
)
from luthier.clicks.conversion import convert
from luthier.clicks.rankings import to_rankings
from luthier.clicks.reading import read_sessions
from luthier.errors import SpecError
from luthier.runs import connection
from luthier.testing.models import tiny_text_model

PARAMS = """
class FineTuningParams(BaseModel):
    num_fixed_layers: int
    query_lr: float
    items_lr: float
    query_weight_decay: float
    items_weight_decay: float
    margin: float
    not_irrelevant_only: bool
    negative_downsampling: float
    min_abs_difference_threshold: float = 0.0
    max_abs_difference_threshold: float = 1.0
    examples_order: List[ExamplesType] = [ExamplesType.all_examples]
"""

SETTINGS = """
class FineTuningSettings(BaseModel):
    loss_func: RankingLossInterface
    metric_calculators: Optional[List[MetricCalculator]] = None
    ranker: Optional[Callable[[FloatTensor, FloatTensor], FloatTensor]] = COSINE_SIMILARITY
    is_similarity: Optional[bool] = True
    confidence_calculator: Optional[Callable] = dummy_confidences
    step_size: Optional[int] = 500
    gamma: Optional[float] = 0.9
    num_epochs: Optional[int] = 10
    batch_size: Optional[int] = 1
    test_each_n_inputs: Optional[Union[float, int]] = -1
"""

TRAINER = """
# Configure early stopping to prevent overfitting
early_stop_callback = EarlyStopping(
    monitor="val_loss",
    patience=3,
    strict=False,
    verbose=False,
    mode="min",
)

# Create and configure the trainer
trainer = Trainer(
    max_epochs=settings.num_epochs,
    callbacks=[early_stop_callback],
    val_check_interval=int(
        settings.test_each_n_inputs
        if settings.test_each_n_inputs > 0
        else len(train_dataloader)
    ),
)

# Start the training process
trainer.fit(fine_tuner, train_dataloader, test_dataloader)
"""

HYPEROPT = """
# Define hyperparameter search space
initial_hyper_params = dict()
for key, value in initial_params.items():
    initial_hyper_params[key] = hp.choice(key, value)

# Run the optimization
fmin(
    lambda params: _finetune_embedding_model_one_step_hyperopt(
        initial_model_path,
        settings,
        ranking_data,
        query_retriever,
        params,
        tracker,
    ),
    initial_hyper_params,
    algo=tpe.suggest,
    max_evals=initial_max_evals,
    trials=trials,
    verbose=False,
)
"""

PLUGIN = """
class CustomFineTuningMethod(FineTuningMethod):
    meta = PluginMeta(
        name="CustomFineTuningMethod",
        version="0.0.1",
        description="A custom fine-tuning plugin"
    )

    def __init__(self):
        # Configure components needed for fine-tuning
        self.model_name = "your-model-name"
        self.data_loader = YourDataLoader()
        self.retriever = YourQueryRetriever()
        self.sessions_converter = ClickstreamSessionConverter(item_type=YourItemMeta)
        self.splitter = TrainTestSplitter()
        self.normalizer = DatasetFieldsNormalizer("item", "item_id")
        self.items_set_manager = YourItemSetManager(...)
        self.accumulators = [...]
        self.manager = ExperimentsManager.from_wrapper(...)
        self.initial_params = YOUR_INITIAL_PARAMS
        self.settings = FineTuningSettings(...)

    def upload_initial_model(self) -> None:
        # Upload initial model to experiment manager
        model = context.model_downloader.download_model(...)
        self.manager.upload_initial_model(model)

    def get_fine_tuning_builder(self, clickstream: List[SessionWithEvents]) -> FineTuningBuilder:
        # Prepare data and return builder
        ranking_dataset = prepare_data(...)
        return FineTuningBuilder(
            data_loader=self.data_loader,
            query_retriever=self.retriever,
            clickstream_sessions_converter=self.sessions_converter,
            clickstream_sessions_splitter=self.splitter,
            dataset_fields_normalizer=self.normalizer,
            items_set_manager=self.items_set_manager,
            accumulators=self.accumulators,
            experiments_manager=self.manager,
            fine_tuning_settings=self.settings,
            initial_params=self.initial_params,
            ranking_data=ranking_dataset,
            initial_max_evals=2,
        )
"""

MEMORY = """
# Check for CUDA availability
use_cuda = torch.cuda.is_available()
device = torch.device("cuda" if use_cuda else "cpu")

# Move model to appropriate device
fine_tuner.to(device)

# Clean up memory after use
del model
gc.collect()
torch.cuda.empty_cache()
"""

TEXT = """
# Define hyperparameters
initial_params = {
    "num_fixed_layers": [0, 1],
    "query_lr": [1e-4, 5e-4],
    "items_lr": [1e-4, 5e-4],
    "query_weight_decay": [0.0, 1e-5],
    "items_weight_decay": [0.0, 1e-5],
    "margin": [0.2, 0.5],
    "not_irrelevant_only": [True],
    "negative_downsampling": [0.5],
    "examples_order": [[11]],  # All examples
}

# Configure fine-tuning settings
settings = FineTuningSettings(
    loss_func=CosineProbMarginRankingLoss(),
    step_size=35,
    test_each_n_inputs=0.5,  # Check validation every half epoch
    num_epochs=3,
    batch_size=1,
)

# Set up the item splitter for text
splitter = TokenGroupTextSplitter(
    tokenizer=AutoTokenizer.from_pretrained(model_name),
    blocks_splitter=DummySentenceSplitter(),
    max_tokens=512,
)

# Configure item manager with data augmentation
items_set_manager = TextItemSetManager(
    field_normalizer=DatasetFieldsNormalizer("item", "item_id"),
    items_set_splitter=ItemsSetSplitter(splitter),
    augmenter=ItemsSetAugmentationApplier(
        AugmentationsComposition([ChangeCases(5), Misspellings(5)])
    ),
    do_augment_test=False,
)
"""


def _names():
    """What the page's imports would give."""
    from luthier import clicks

    private = "_finetune_embedding_model_one_step_hyperopt"
    return {
        **{name: getattr(clicks, name) for name in (*clicks.__all__, private)},
        **{name: getattr(typing, name) for name in ("List", "Optional", "Union", "Callable")},
        "BaseModel": BaseModel, "FloatTensor": torch.FloatTensor, "torch": torch, "gc": gc,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "ours"), [(PARAMS, FineTuningParams), (SETTINGS, FineTuningSettings)]
)
def test_the_classes_have_the_fields_and_defaults_of_the_page(text, ours):
    names = _names()
    text = text.replace("(BaseModel)", "(BaseModel, arbitrary_types_allowed=True)")
    exec(text, names)
    page = names[ours.__name__].model_fields
    for name, field in page.items():
        assert ours.model_fields[name].is_required() == field.is_required(), name
        assert ours.model_fields[name].default == field.default, name
    assert list(ours.model_fields)[: len(page)] == list(page)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world, its home, and a worker; the current home of this process meanwhile."""
    folder = tmp_path_factory.mktemp("snippets")
    items = write_world(folder, pairs=40, sessions=160)
    tiny_text_model(folder / "tiny")
    before, patch = connection._current, pytest.MonkeyPatch()
    patch.setenv("LUTHIER_WORKER", "none")
    with a_worker(folder / "home"):
        connection.connect(folder / "home")
        yield folder, items
        connection._current.close()
    connection._current = before
    patch.undo()


@pytest.fixture
def text(world):
    """The page's example of texts, run."""
    from transformers import AutoTokenizer

    names = _names() | {"AutoTokenizer": AutoTokenizer, "model_name": str(world[0] / "tiny")}
    exec(TEXT, names)
    return names


def test_the_example_of_texts(text):
    assert text["settings"].eval_steps(10) == 5
    manager = text["items_set_manager"]
    catalogue = manager.catalogue([{"item_id": 1, "item": "A hat. It is red."}])
    assert len(manager.items_set(catalogue, train=True).texts) > 3
    assert manager.items_set(catalogue, train=False).parts.texts == ["A hat. It is red."]


def test_trainer_memory_and_early_stopping(world, text):
    folder, items = world
    inputs = convert(read_sessions(folder / "log.jsonl"))
    file = to_rankings(inputs, {i["id"]: i["text"] for i in items}, folder / "rankings.arrow")
    settings = FineTuningSettings(
        loss_func=text["CosineProbMarginRankingLoss"](), num_epochs=2, batch_size=1,
    )  # fmt: skip
    params = {name: values[0] for name, values in text["initial_params"].items()}
    names = text | {
        "settings": settings, "model": object(),
        "train_dataloader": RankingDataLoader(file, batch_size=8),
        "test_dataloader": RankingDataLoader(file, batch_size=8),
        "fine_tuner": FineTuner(str(folder / "tiny"), settings, params),
    }  # fmt: skip
    exec(MEMORY, names)
    exec(TRAINER, names)
    tuner = names["fine_tuner"]
    assert tuner.run.status()["status"] == "FINISHED"
    assert tuner.run.spec.callbacks[0].patience == 3
    evaluations = [e.data for e in tuner.run.events() if e.kind == "evaluation"]
    assert [round(e["epoch"]) for e in evaluations] == [1, 2]
    assert all("val_loss" in e for e in evaluations)
    with pytest.raises(SpecError, match="a second EarlyStopping"):
        names["Trainer"](callbacks=[EarlyStopping()] * 2)


def test_hyperopt(world, text):
    folder, items = world
    sessions = read_sessions(folder / "log.jsonl")
    rows = [{"item_id": item["id"], "item": item["text"]} for item in items]
    told = []
    names = text | {
        "initial_model_path": str(folder / "tiny"), "initial_max_evals": 2, "trials": Trials(),
        "query_retriever": None, "tracker": lambda params, metrics: told.append(params),
        "settings": FineTuningSettings(loss_func="ListwiseSoftmaxLoss", num_epochs=1,
                                       batch_size=16),
        "initial_params": text["initial_params"] | {"margin": [None]},
        "ranking_data": text["prepare_data"](
            sessions, text["ClickstreamSessionConverter"](), text["TrainTestSplitter"](),
            text["TextQueryRetriever"](), InMemoryDataLoader(rows), text["TextItemSetManager"](),
        ),
    }  # fmt: skip
    exec(HYPEROPT, names)
    trials = names["trials"]
    assert len(trials) == len(told) == 2
    assert all(0 <= loss <= 1 for loss in trials.losses())


def test_the_custom_method_is_a_plugin(world, tmp_path):
    """As it stands it is found; its gaps filled, it makes a builder."""
    head = "from typing import List\nfrom luthier.clicks import *\n"
    (tmp_path / "custom.py").write_text(head + PLUGIN)
    with pytest.raises(NameError, match="YourDataLoader"):
        find_method("CustomFineTuningMethod", tmp_path)
    folder, items = world
    filled = {
        "YourItemSetManager(...)": "TextItemSetManager(self.normalizer)",
        "[...]": '[MetricsAccumulator("train_loss")]',
        "ExperimentsManager.from_wrapper(...)": "None",
        "FineTuningSettings(...)": "FineTuningSettings(loss_func=CosineProbMarginRankingLoss())",
        "prepare_data(...)": (
            "prepare_data(clickstream, self.sessions_converter, self.splitter, self.retriever, "
            "self.data_loader, self.items_set_manager)"
        ),
    }
    body = PLUGIN
    for gap, what in filled.items():
        assert gap in body
        body = body.replace(gap, what)
    rows = [{"item_id": item["id"], "item": item["text"]} for item in items]
    yours = f"""
        YourDataLoader = lambda: InMemoryDataLoader({rows!r})
        YourQueryRetriever, YourItemMeta = TextQueryRetriever, ItemMeta
        YOUR_INITIAL_PARAMS = {{
            "num_fixed_layers": [0], "query_lr": [1e-4], "items_lr": [1e-4],
            "query_weight_decay": [0.0], "items_weight_decay": [0.0], "margin": [0.2, 0.5],
            "not_irrelevant_only": [True], "negative_downsampling": [0.5],
        }}
    """
    (tmp_path / "custom.py").write_text(head + textwrap.dedent(yours) + body)
    method = find_method("CustomFineTuningMethod", tmp_path)
    builder = method.get_fine_tuning_builder(read_sessions(folder / "log.jsonl"))
    assert (builder.initial_max_evals, builder.experiments_manager) == (2, None)
    assert isinstance(builder.ranking_data.train, Sessions)
    assert inspect.signature(_finetune_embedding_model_one_step_hyperopt)
    assert Path(inspect.getsourcefile(type(method))).name == "custom.py"
