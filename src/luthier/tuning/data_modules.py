"""All data modules.

| data module | rows come from |
|---|---|
| ``DataModule`` (``RenateDataModule``) | a class of your own derives from it |
| ``TensorDataModule`` | arrays at hand |
| ``CSVDataModule`` | train.csv and test.csv, numbers and a column to predict |
| ``NPZDataModule`` | x_train, y_train, x_test, y_test in a .npz file |
| ``DigitsDataModule`` | 1,797 handwritten digits that come with scikit-learn |
| ``DataIncrementalDataModule`` | several data sets with ids: a class of your own derives from it |

    >>> rows = TensorDataModule([[0.0], [1.0], [2.0], [3.0], [4.0]], [0, 1, 0, 1, 0])
    >>> rows.setup()
    >>> len(rows.train_data()), len(rows.test_data())
    (4, 1)
"""

from luthier.tuning.arrays import DigitsDataModule, NPZDataModule, TensorDataModule
from luthier.tuning.csv_data import CSVDataModule
from luthier.tuning.data_module import DataIncrementalDataModule, DataModule, RenateDataModule

__all__ = [
    "CSVDataModule",
    "DataIncrementalDataModule",
    "DataModule",
    "DigitsDataModule",
    "NPZDataModule",
    "RenateDataModule",
    "TensorDataModule",
]
