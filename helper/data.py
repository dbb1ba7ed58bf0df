"""The data set that the options name, with its failures as one clear line."""

from dataset import DatasetUnavailable, ImageSet, dataset_dict, load_dataset

from .options import UserError


def load_data(args) -> tuple[ImageSet, ImageSet]:
    """(training set, test set) of --dataset from --data_dir, on --device."""
    try:
        return load_dataset(args.dataset, args.data_dir, args.device)
    except DatasetUnavailable as error:
        raise UserError(str(error)) from None
    except (OSError, TypeError, ValueError) as error:  # from the reader of somebody's own data set
        raise UserError(f"--dataset {args.dataset}, --data_dir {args.data_dir}: {error}") from None


def num_classes(args) -> int:
    return dataset_dict[args.dataset].num_classes


def class_names(args) -> list[str]:
    """Names of the classes of --dataset, which must have been loaded; their numbers where they have no names."""
    info = dataset_dict[args.dataset]
    return info.class_names(args.data_dir) if info.class_names else [str(i) for i in range(info.num_classes)]
