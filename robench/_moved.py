"""Module names of release 0.1. Importing one returns the module that replaced it, with a DeprecationWarning."""

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar, cast

Target = TypeVar("Target", bound=Callable[..., Any])

# Modules that kept their name in another package: the old package, the new one, the names.
_SAME_NAME = (
    ("", "core", "cache errors hsic interrupts memory precision registry specs torch_state trust"),
    ("", "evaluation", "finetune inputs sweep"),
    ("", "threats", "coordinates threat"),
    (
        "results",
        "records",
        "_tensors certificates collection findings identity jobs migration provenance reading "
        "record samples store",
    ),
    ("results", "reports", "board finetune page papers plots robustbench unforeseen"),
    ("results", "statistics", "corruption sequential"),
    ("results.page", "reports.page", "pictures view"),
    ("results.plots", "reports.plots", "curves scatter settings style"),
    ("training.purifying", "training.purifier_training", "_base ddpm maep nim"),
    (
        "transformations",
        "threats.transformations",
        "_base blur elastic fog gabor jpeg low_frequency pixel recolor snow spatial stadv",
    ),
)
MOVED = {
    **{
        f"{old}.{name}".lstrip("."): f"{new}.{name}"
        for old, new, names in _SAME_NAME
        for name in names.split()
    },
    "attacks._estimated": "attacks._gradient_estimation",
    "attacks._foreign": "attacks._external",
    "attacks._inside": "attacks._feature_losses",
    "attacks._objectives": "attacks._losses",
    "attacks._steered": "attacks._custom_objective",
    "attacks._through": "attacks._parameter_space",
    "baselines": "verification.baselines",
    "check": "verification.regression",
    "choice": "evaluation.protocol",
    "cli.finetuning": "cli.transfer",
    "cli.progress": "evaluation.progress",
    "cli.transferring": "cli.transfer",
    "content": "catalog",
    "corrupt": "data.export_corrupted",
    "curve": "evaluation.security_curve",
    "data._lists": "data._image_lists",
    "data._npy": "data._numpy_files",
    "data._pictures": "data._image_files",
    "data._pixels": "data._lazy_images",
    "data.corruptions": "data.corrupted",
    "defenses._choice": "defenses._resolve_checkpoint",
    "defenses._features": "defenses._feature_hooks",
    "defenses._fit": "defenses._image_size",
    "defenses._official": "defenses._checkpoint_layouts",
    "defenses.facts": "defenses.describe",
    "direct": "evaluation.attack",
    "doctor": "cli._examine",
    "engine.adversarials": "engine.outputs",
    "engine.attackers": "attacks.build",
    "engine.battle": "engine.attack_context",
    "engine.corruption": "engine.corruption_run",
    "engine.found": "engine.adversarial_examples",
    "engine.groups": "engine.lanes",
    "engine.health": "engine.result_warnings",
    "engine.loop": "engine.attack_loop",
    "engine.meter": "engine.query_cost",
    "engine.network": "engine.batched_model",
    "engine.store": "engine.checkpoint",
    "engine.suite": "engine.run",
    "engine.team": "engine.workers",
    "engine.watch": "engine.loss_monitor",
    "evaluate": "evaluation.run",
    "files": "core.io",
    "plain": "core.sanitize",
    "preprocessing": "data.preprocessing",
    "random": "core.rng",
    "results.answering": "evaluation.answering",
    "results.checks": "verification.ci_report",
    "results.corruption_record": "records.corruption",
    "results.corruption_text": "reports.corruption",
    "results.doubts": "records.cross_checks",
    "results.draws": "records.randomized",
    "results.grid": "reports.table",
    "results.heatmap": "reports.plots.corruption_heatmap",
    "results.ladder": "reports.purifiers",
    "results.moving": "records.archive",
    "results.picture": "reports.plots.adversarial_examples",
    "results.plots.matrix": "reports.plots.heatmaps",
    "results.pruning": "records.prune",
    "results.security": "reports.security_curve",
    "results.statistics": "statistics.accuracy",
    "results.strict_json": "core.strict_json",
    "results.table": "reports.run_summary",
    "results.transfer": "reports.dataset_transfer",
    "results.verify": "verification.verify",
    "results.verify_corruption": "verification.corruption",
    "results.wording": "reports.formatting",
    "subset": "data.class_subset",
    "training.run": "training.trainer",
    "training.settings": "core.fields",
    "training.team": "training.distributed",
    "transfer": "evaluation.dataset_transfer",
    "verification.marks": "verification.result_warnings",
}
# Names that were renamed, or moved to a different module than the rest of their old module.
NAMES = {
    "corruption.suite.NO_THREAT": "threats.threat.NO_THREAT",
    "defenses._base.behind": "defenses._base.with_purifier",
    "defenses._fit.Fitting": "defenses._image_size.FixedSizePurifier",
    "defenses._image_size.Fitting": "defenses._image_size.FixedSizePurifier",
    "defenses.behind": "defenses._base.with_purifier",
    "defenses.counting": "defenses.restrict_to_classes",
    "engine.attackers.Attacker": "engine.knowledge.Attacker",
    "engine.battle.Battle": "engine.attack_context.AttackContext",
    "engine.battle.Table": "engine.attack_context.SampleResults",
    "engine.device.choose_lanes": "engine.device.choose_batch_size",
    "engine.found.Found": "engine.adversarial_examples.AdversarialExamples",
    "engine.outcome.Mark": "engine.outcome.ResultWarning",
    "engine.team.Part": "engine.run_state.ShareResult",
    "engine.watch.Counts": "engine.loss_monitor.LossStats",
    "engine.watch.Watch": "engine.loss_monitor.LossMonitor",
    "evaluate.check_fit": "evaluation.planning.check_fit",
    "evaluate.prepared": "evaluation.planning.with_preprocessing",
    "evaluate.prepared_by_defense": "evaluation.planning.prepared_by_defense",
    "results.answering.MARGIN": "engine.tolerances.MARGIN",
    "results.findings.MARGIN": "engine.tolerances.MARGIN",
    **{
        f"results.wording.{name}": f"core.formatting.{name}"
        for name in ("count", "duration", "latex", "location", "markdown", "one_of", "size")
    },
    **{f"results.wording.{name}": f"statistics.accuracy.{name}" for name in ("interval", "percent", "span")},
    **{f"sweep.{name}": f"reports.sweep.{name}" for name in ("grid", "picture", "unconverged")},
    "training.purifying.Purifying": "training.purifier_training.PurifierTraining",
    "training.purifying.find_purifying": "training.purifier_training.find_purifier_training",
    "training.purifying.purifying": "training.purifier_training.purifier_trainings",
    "training.purifying._base.Purifying": "training.purifier_training._base.PurifierTraining",
    "training.purifying._base.purifying": "training.purifier_training._base.purifier_trainings",
    "training.team.Team": "training.distributed.ProcessGroup",
}
# Packages whose modules moved to several packages, and the package that replaces them.
PACKAGES = {
    "results": "records",
    "training.purifying": "training.purifier_training",
    "transformations": "threats.transformations",
}


class OldNames(MetaPathFinder, Loader):
    """Import hook that finds the modules of MOVED and PACKAGES under their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.removeprefix("robench.")
        if name == fullname or (name not in MOVED and name not in PACKAGES):
            return None
        return ModuleSpec(fullname, self, is_package=name in PACKAGES)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.removeprefix("robench.")
        new = PACKAGES.get(name) or MOVED[name]
        # Frames of the import system are skipped, so the warning shows the line of the import.
        warnings.warn(f"robench.{name} is now robench.{new}", DeprecationWarning, stacklevel=2)
        renamed = any(old.rpartition(".")[0] == name for old in NAMES)
        if name in MOVED and not renamed:
            sys.modules[module.__name__] = import_module(f"robench.{new}")
            return

        def attribute(wanted: str) -> Any:
            old = f"{name}.{wanted}"
            if old in MOVED:
                return import_module(f"robench.{MOVED[old]}")
            return named(old) if old in NAMES else getattr(import_module(f"robench.{new}"), wanted)

        module.__dict__["__getattr__"] = attribute


def named(old: str) -> Any:
    """The object with an old name of NAMES, written without the prefix "robench."."""
    home, _, name = NAMES[old].rpartition(".")
    return getattr(import_module(f"robench.{home}"), name)


def old_names(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that did not move, for names of NAMES that did."""

    def attribute(wanted: str) -> Any:
        old = f"{module.removeprefix('robench.')}.{wanted}"
        if old not in NAMES:
            raise AttributeError(f"module {module!r} has no attribute {wanted!r}")
        warnings.warn(f"robench.{old} is now robench.{NAMES[old]}", DeprecationWarning, stacklevel=2)
        return named(old)

    return attribute


def old_arguments(**names: str) -> Callable[[Target], Target]:
    """Decorator: a function or class also takes arguments under their old names, `old="new"`; a class also has
    attributes of those names."""

    def decorate(target: Target) -> Target:
        function: Any = vars(target)["__init__"] if isinstance(target, type) else target

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                warnings.warn(f"argument {old} is now {names[old]}", DeprecationWarning, stacklevel=2)
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        if not isinstance(target, type):
            return cast(Target, call)
        setattr(target, "__init__", call)  # noqa: B010 - pyright refuses the assignment
        for old, new in names.items():
            setattr(target, old, _old_attribute(old, new))
        return cast(Target, target)

    return decorate


def _old_attribute(old: str, new: str) -> property:
    def get(instance: Any) -> Any:
        warnings.warn(f"attribute {old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(instance, new)

    return property(get)


def install() -> None:
    """Make the old names importable."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        # First, because leftovers of an old folder, such as compiled modules, would be found instead.
        sys.meta_path.insert(0, OldNames())
