"""`robustbench:NAME[@dataset/threat]`: the model zoo of RobustBench.

Croce et al., "RobustBench: a standardized adversarial robustness benchmark", arXiv 2010.09670.

robustbench 1.1.1 cannot be imported as installed; `import_robustbench` contains all workarounds.
"""

import argparse
import contextlib
import importlib
import pickle
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robench.core import registry
from robench.core.cache import cache_folder
from robench.core.errors import ResourceError, UsageError, unknown_name
from robench.core.formatting import install
from robench.data.preprocessing import side
from robench.defenses.loaders._base import Found, Source, attempt, needed, one_line, wrap

# robustbench pins an old timm, so it can be installed beside robench only without its dependencies.
INSTALL = f"{install('robustbench')}, then pip install --no-deps robustbench==1.1.1"
# RobustBench's own defaults.
_DATASET, _THREAT = "cifar10", "Linf"
_SIZES = {"cifar10": 32, "cifar100": 32, "imagenet": 224}


@registry.loaders.register("robustbench")
def load(source: Source) -> Found:
    """A model of RobustBench's zoo; the default of `@dataset/threat` is `@cifar10/Linf`.

    The models take images in [0, 1] and normalize by themselves. robustbench downloads their weights into
    ~/.cache/robench/robustbench (or ROBENCH_CACHE); --checkpoint accepts a file that it published.

    Raises:
        UsageError: for a name that the zoo does not have.
        ResourceError: if robustbench is not installed, or the weights are missing or incomplete.
    """
    name, dataset, threat = _split(source)
    package = import_robustbench(source)
    enums = needed("robustbench.model_zoo.enums", source, INSTALL)
    zoo = importlib.import_module("robustbench.model_zoo").model_dicts
    datasets = [entry.value for entry in enums.BenchmarkDataset]
    if dataset not in datasets:
        raise unknown_name("dataset of RobustBench", dataset, datasets)
    threats = [entry.value for entry in zoo[enums.BenchmarkDataset(dataset)]]
    if threat not in threats:
        raise unknown_name(f"threat of RobustBench on {dataset}", threat, threats)
    models = zoo[enums.BenchmarkDataset(dataset)][enums.ThreatModel(threat)]
    if name not in models:
        raise unknown_name(f"model of RobustBench on {dataset}/{threat}", name, models)
    file = None
    if source.bare:
        network = attempt(source, models[name]["model"])
    else:
        network, file = _with_weights(source, package, name, dataset, threat, models[name].get("gdrive_id"))
    # A name, or one of timm's functions, which has no name.
    declared = models[name].get("preprocessing")
    preprocessing = declared if isinstance(declared, str) else ""
    return Found(
        wrap(source, network, side(preprocessing) or _SIZES[dataset], preprocessing=preprocessing), file
    )


def _split(source: Source) -> tuple[str, str, str]:
    name, _, place = source.target.partition("@")
    dataset, _, threat = (place or f"{_DATASET}/{_THREAT}").partition("/")
    if not (name and dataset and threat):
        raise UsageError(
            f'malformed "{source}": expected robustbench:NAME or robustbench:NAME@dataset/threat'
        )
    return name, dataset, threat


def _with_weights(
    source: Source, package: Any, name: str, dataset: str, threat: str, parts: Any
) -> tuple[nn.Module, Path | None]:
    if source.checkpoint and not isinstance(parts, str):
        raise UsageError(f"the weights of {source} are not a single file of RobustBench: omit --checkpoint")
    with contextlib.ExitStack() as stack:
        folder = cache_folder("robustbench")
        if source.checkpoint:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            place = folder / dataset / threat / f"{name}.pt"
            place.parent.mkdir(parents=True)
            place.symlink_to(source.file.resolve())
        # It prints to stdout, which is reserved for the output of `--json`.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(torch.serialization.safe_globals([argparse.Namespace]))
        stack.enter_context(_whole(source))
        stack.enter_context(warnings.catch_warnings(action="ignore"))

        def get() -> nn.Module:
            try:
                return package.load_model(name, model_dir=folder, dataset=dataset, threat_model=threat)
            except pickle.UnpicklingError as error:
                raise ResourceError(
                    f"the checkpoint of {source} is damaged, or holds more than tensors and is not unpickled: "
                    "save only its tensors with torch.save, and pass that file with --checkpoint"
                ) from error
            # load_model may raise anything.
            except Exception as error:
                if not source.checkpoint or isinstance(error, ResourceError):
                    raise
                raise ResourceError(
                    f"checkpoint {source.checkpoint} does not fit {source} ({one_line(error)}): does it belong "
                    "to another network?"
                ) from error

        network = attempt(source, get)
    file = source.checkpoint or folder / dataset / threat / f"{name}.pt"
    return network, file if file.is_file() else None


@contextlib.contextmanager
def _whole(source: Source) -> Iterator[None]:
    """Refuse a checkpoint that leaves parameters at random values, since robustbench loads some leniently."""
    load_state_dict = nn.Module.load_state_dict

    def strict(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        result = load_state_dict(self, *arguments, **options)
        missing = sorted(set(result.missing_keys) & {name for name, _ in self.named_parameters()})
        if missing:
            raise ResourceError(
                f"the checkpoint of {source} lacks {missing[0]}: does it belong to another network?"
            )
        return result

    nn.Module.load_state_dict = strict
    try:
        yield
    finally:
        nn.Module.load_state_dict = load_state_dict


def import_robustbench(source: Source) -> ModuleType:
    """Import the package although two modules that it imports are missing.

    `autoattack` is on PyPI only as `pyautoattack`; `pkg_resources` left setuptools in release 82. Both are replaced
    during the import and removed afterwards, so no other module finds the replacements.

    Raises:
        ResourceError: if it is not installed.
    """
    if "robustbench" in sys.modules:
        return sys.modules["robustbench"]
    reference = needed("pyautoattack", source, INSTALL)
    stand_ins = {
        "autoattack": reference,
        "autoattack.state": needed("pyautoattack.state", source, INSTALL),
        "pkg_resources": _pkg_resources(),
    }
    missing = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(missing)
    try:
        return needed("robustbench", source, INSTALL)
    finally:
        for name in missing:
            sys.modules.pop(name, None)


def _pkg_resources() -> ModuleType:
    module = ModuleType("pkg_resources")

    def resource_filename(package: str, resource: str) -> str:
        file = sys.modules[package].__file__
        assert file is not None
        return str(Path(file).parent / resource)

    vars(module)["resource_filename"] = resource_filename
    return module
