"""From files and data in memory to checked, memory-mapped datasets. Loads no torch."""

from luthier.data.dataset import Dataset
from luthier.data.load import load_dataset
from luthier.data.memory import to_arrow
from luthier.data.splitting import split
from luthier.spec import CSVOptions  # where Finetuner's users look for it

__all__ = ["CSVOptions", "Dataset", "load_dataset", "split", "to_arrow"]
