"""What of RecBole 1.2.1 breaks with current libraries, and its mends: one function each.

RecBole was written for torch 1, NumPy 1.2x and SciPy 1.10. Only what a later release of a library
broke is mended here. RecBole's own design stays, and so do its mistakes (``Pop`` counts wrongly).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from logging import getLogger
from os import PathLike
from types import ModuleType
from typing import Any

import scipy.sparse
import torch

# RecBole's models that read another model's checkpoint, which the user names (`pre_model_path`, …).
_MODELS_THAT_LOAD_CHECKPOINTS = frozenset(
    {
        "recbole.model.context_aware_recommender.kd_dagfm",
        "recbole.model.general_recommender.convncf",
        "recbole.model.general_recommender.nais",
        "recbole.model.general_recommender.neumf",
        "recbole.model.general_recommender.ract",
        "recbole.model.sequential_recommender.s3rec",
    }
)

# Message, category and module of what RecBole's code and its ray set off, which a user can do
# nothing about, with the release that showed it. The patterns match from the start, as in
# `warnings.filterwarnings`.
_HOST_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    # setuptools 80, by ray 2.6.3.
    (r"pkg_resources is deprecated as an API", UserWarning, r"ray\."),
    # pandas 2.3: `feat[field].fillna(value=…, inplace=True)` still works up to pandas 2.
    (
        r"A value is trying to be set on a copy of a DataFrame or Series through chained",
        FutureWarning,
        r"recbole\.data\.",
    ),
    # pandas 2.3: `feat[field].agg(len)` still gives the lengths up to pandas 2.
    (r"using <built-in function len> in Series\.agg", FutureWarning, r"recbole\.data\."),
    # torch 2.13, and the next three too.
    (r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated", FutureWarning, r"recbole\.trainer\."),
    # `torch.sparse.FloatTensor(…)` in the graph models.
    (r"torch\.sparse\.SparseTensor\(.*\) is deprecated", UserWarning, r"recbole\.model\."),
    # `scores[[rows, columns]]` in the autoencoders' `predict`. Torch announced
    # another meaning for 2.9; 2.13 still indexes pairs, and a test holds that.
    (
        r"Using a non-tuple sequence for multidimensional indexing",
        UserWarning,
        r"recbole\.model\.",
    ),
    # Slow for a moment in the graph models, and right.
    (
        r"Creating a tensor from a list of numpy\.ndarrays is extremely slow",
        UserWarning,
        r"recbole\.",
    ),
)


def apply() -> None:
    """Mend everything below; a second call changes nothing.

    No model is imported by this; those that need a mend of their own get it at their import.
    """
    trust_checkpoints_in_trainers()
    trust_checkpoints_in_models()
    replace_load_data_and_model()
    restore_dok_matrix_update()


def quiet_host_warnings() -> None:
    """Hide the warnings that RecBole's use of old APIs sets off at every run, and no others.

    Those of ray come at RecBole's import, so call this before it. A second call changes nothing.
    """
    for message, category, module in _HOST_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)


class _TorchThatTrustsCheckpoints(ModuleType):
    """``torch`` as one module of RecBole sees it: all the same, apart from ``load``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """``torch.load`` as it was before release 2.6, for a file that the user named.

        Args:
            file: as in ``torch.load``.
            **options: as in ``torch.load``; ``weights_only`` and ``map_location`` have defaults.

        Returns:
            What the file holds; its tensors where they were saved, or on the CPU where this
            machine has no such device.
        """
        return torch.load(
            file, **{"weights_only": False, "map_location": _on_cpu_if_unusable, **options}
        )


_TRUSTING_TORCH = _TorchThatTrustsCheckpoints("torch", torch.__doc__)


def trust_checkpoints_in_trainers() -> None:
    """Let ``Trainer.evaluate`` and ``resume_checkpoint`` read RecBole's own checkpoints.

    For torch >= 2.6, whose ``load`` has ``weights_only=True`` as default: a checkpoint holds its
    ``Config``, so every run with ``saved=True`` dies after training. ``safe_globals`` do not help,
    RecBole writes pickle protocol 4. Reading such a file runs what is in it, which is why
    ``torch.load`` is left as it is for anyone but RecBole.
    """
    import recbole.trainer.trainer as trainer

    trainer.torch = _TRUSTING_TORCH


def trust_checkpoints_in_models() -> None:
    """Let a model that starts from another one's checkpoint read it.

    For torch >= 2.6, as above. The models are imported when a run names them, not here.
    """
    for name in _MODELS_THAT_LOAD_CHECKPOINTS & sys.modules.keys():
        _give_trusting_torch(sys.modules[name])
    if not any(isinstance(finder, _FinderOfModelsThatLoad) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FinderOfModelsThatLoad())


class _FinderOfModelsThatLoad(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MODELS_THAT_LOAD_CHECKPOINTS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _LoaderOfModelsThatLoad(spec.loader.name, spec.loader.path)
        return spec


class _LoaderOfModelsThatLoad(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _give_trusting_torch(module)


def _give_trusting_torch(module: ModuleType) -> None:
    vars(module)["torch"] = _TRUSTING_TORCH


def replace_load_data_and_model() -> None:
    """Let RecBole's ``load_data_and_model`` read a checkpoint, in a fresh process too.

    For torch >= 2.6, as above, and for NumPy >= 1.24, which has no ``np.float``: RecBole puts it
    back when a ``Config`` is made, but this one is unpickled. The original imports torch inside
    the function, so the whole function is replaced.
    """
    import recbole.quick_start
    import recbole.quick_start.quick_start

    recbole.quick_start.load_data_and_model = load_data_and_model
    recbole.quick_start.quick_start.load_data_and_model = load_data_and_model


def load_data_and_model(model_file: str | PathLike[str]) -> tuple[Any, ...]:
    """RecBole's function of this name: the saved model, and its data prepared again.

    Unlike the original it also takes a checkpoint from a machine with another device.

    Args:
        model_file: a checkpoint of RecBole's trainer. It is a pickle: name only files you trust.

    Returns:
        ``config, model, dataset, train_data, valid_data, test_data``.
    """
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_logger, init_seed

    checkpoint: Mapping[str, Any] = _TRUSTING_TORCH.load(model_file)
    config = checkpoint["config"]
    config.compatibility_settings()
    saved_device = config["device"]
    if not _is_usable(saved_device):
        config["device"] = torch.device("cpu")
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logger = getLogger()
    logger.info(config)
    if config["device"] != saved_device:
        logger.warning(f"{model_file} was saved on {saved_device}; it is loaded on the CPU")

    dataset = create_dataset(config)
    logger.info(dataset)
    train_data, valid_data, test_data = data_preparation(config, dataset)

    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint.get("other_parameter"))

    return config, model, dataset, train_data, valid_data, test_data


def _on_cpu_if_unusable(storage: Any, location: str) -> Any:
    """A ``map_location``: the storage, which is on the CPU; or ``None``, to move it back."""
    return None if _is_usable(location) else storage


def _is_usable(device: str | torch.device) -> bool:
    try:
        torch.empty(0, device=device)
    # A build without the device asserts; a missing or unknown device is a runtime error.
    except (AssertionError, RuntimeError):
        return False
    return True


def restore_dok_matrix_update() -> None:
    """Give ``scipy.sparse.dok_matrix`` its ``_update`` back.

    For SciPy >= 1.13 (https://github.com/RUCAIBox/RecBole/issues/2034). LightGCN, NGCF, NCL, GCMC,
    SpectralCF, KGIN and MCCLK fill their graph with it.
    """
    if not hasattr(scipy.sparse.dok_matrix, "_update"):
        scipy.sparse.dok_matrix._update = _update_dok_matrix


def _update_dok_matrix(
    matrix: scipy.sparse.dok_matrix, values: Mapping[tuple[int, int], float]
) -> None:
    # Like the old one without a check of the indices, and fast: assigning 1e6 cells takes seconds.
    matrix._dict.update(values)
