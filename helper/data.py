"""The data set that the options name, with its failures as one clear line."""

from dataset import DatasetUnavailable, LabelledSet, dataset_dict, load_dataset

from .errors import UserError
from .settings import Data


def load_data(data: Data) -> tuple[LabelledSet, LabelledSet]:
    """(training set, test set) of --dataset from --data_dir, on --device."""
    try:
        return load_dataset(data.dataset, data.data_dir, data.device)
    except DatasetUnavailable as error:
        raise UserError(str(error)) from None
    except (OSError, TypeError, ValueError) as error:  # from the reader of somebody's own data set
        raise UserError(f"--dataset {data.dataset}, --data_dir {data.data_dir}: {error}") from None


def num_classes(dataset: str) -> int:
    return dataset_dict[dataset].num_classes


def class_names(data: Data) -> list[str]:
    """Names of the classes of --dataset in the order of their labels; their numbers where they have no names."""
    info = dataset_dict[data.dataset]
    return info.class_names(data.data_dir) if info.class_names else [str(label) for label in range(info.num_classes)]
