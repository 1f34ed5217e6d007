"""The model and the data: handwritten digits, two new ones an update."""

from luthier.tuning import ClassIncrementalScenario, MultiLayerPerceptron
from luthier.tuning.arrays import DigitsDataModule


def data_module_fn(data_path: str, chunk_id: int, seed: int = 0) -> ClassIncrementalScenario:
    return ClassIncrementalScenario(
        data_module=DigitsDataModule(val_size=0.2, seed=seed),
        class_groupings=[[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
        chunk_id=chunk_id,
    )


def model_fn(model_state_url: None = None, hidden_size: int = 200) -> MultiLayerPerceptron:
    return MultiLayerPerceptron(
        num_inputs=64, num_outputs=10, num_hidden_layers=1, hidden_size=hidden_size
    )
