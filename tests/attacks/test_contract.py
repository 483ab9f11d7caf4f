"""The engine only uses declared attributes of attacks, and never their names."""

import ast
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch import Tensor

import robench
from robench.attacks import Ask, Attack, State
from robench.attacks.build import build_attacks
from robench.core import index, registry
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.models import images, small_net

SOURCES = sorted(Path(robench.__file__).parent.rglob("*.py"))
NAMES = {*registry.attacks, "exact"}


def names_an_attack(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in NAMES


def offences(source: str) -> list[str]:
    """Undeclared attributes of attacks that are read, and decisions by the name of an attack."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            first = ast.unparse(node.args[0]).split(".")[-1] if node.args else ""
            if function in ("getattr", "hasattr") and first in ("attack", "inner"):
                lines.append(ast.unparse(node))
            if function == "startswith" and any(map(names_an_attack, ast.walk(node))):
                lines.append(ast.unparse(node))
        if isinstance(node, ast.Compare) and any(map(names_an_attack, ast.walk(node))):
            lines.append(ast.unparse(node))
    return lines


def test_undeclared_attributes_and_decisions_by_name_are_detected():
    found = offences(
        "getattr(self.attack, 'eot', 1)\nspec.startswith('square')\nname == 'fab'\nx in ('nes', 'y')"
    )
    assert len(found) == 4
    assert not offences("getattr(self, 'eot', 1)\nname.startswith('robench.')\nattack.eot")


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in SOURCES
        if path.parent.name in ("engine", "verification", "diagnosis", "reports", "evaluation")
    ],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_the_engine_uses_declared_attributes_only(path):
    assert not offences(path.read_text())


@dataclass(frozen=True)
class OldState(State):
    best: Tensor
    step: Tensor


def test_an_attack_written_for_release_0_1_works():
    with pytest.warns(DeprecationWarning, match=r"Old\.(questions|heard) is now") as warned:

        @dataclass(frozen=True)
        class Old(Attack[OldState]):
            transfers = True
            in_pixels = True

            rounds: int = 4
            minimise: bool = False

            @property
            def questions(self):
                return self.rounds

            def init(self, problem, rows):
                return OldState(rows.x, rows.y * 0)

            def ask(self, problem, rows, state):
                noise = problem.stream.uniform(rows.sample, rows.rank, state.step, tuple(rows.x.shape[1:]))
                return Ask((rows.x + problem.threat.eps * (noise - 0.5).sign()).clamp(0, 1))

            def heard(self, problem, rows, state, answer):
                return replace(answer, logits=answer.logits + 0)

            def tell(self, problem, rows, state, answer):
                return replace(state, best=answer.x, step=state.step + 1)

            def finished(self, state):
                return state.step >= self.rounds

    assert len(warned) == 2
    old = Old()
    assert old.num_queries == old.questions == 4 and (old.eot, old.group, old.layers) == (1, 1, "")
    registry.attacks._builders["old"] = Old
    try:
        model, x = small_net(), images(6)
        shown = []
        result = attack(
            "old(minimise=True)", model, x, model(x).argmax(1), threat="Linf:0.3", progress=shown.append
        )
    finally:
        del registry.attacks._builders["old"]
    # Rows run to their end even if they fool.
    assert (result.forward == 4).all() and not result.robust.all()


def test_only_the_last_iterate_is_judged_in_parameters_too():
    ((_, last),) = build_attacks(["pgd(last=True, eot=3)"], Threat.parse("fog:0.3"))
    assert last.judged_at_end and last.eot == 3 and last.num_queries == 21


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "pgd(eot=0)",
            "apgd(restarts=0)",
            "apgd-mi(layers='')",
            "fab(targets=-1)",
            "pgd(random_start='no')",
        ),
        *(
            "apgd(rho=75)",
            "apgd(rho='x')",
            "apgd-mi(rho=-1)",
            "apgd-feature(rho=2)",
            "fab(eta='x')",
            "fab(eta=0)",
        ),
        *("fab(alpha_max=-1)", "fab(beta=2)", "cw(confidence=-1)", "cw(confidence='x')"),
        *("sigma-zero(threshold=2)", "sigma-zero(threshold_step=-1)", "mifgsm(translation=True)"),
    ],
)
def test_parameters_of_the_contract_are_checked(spec):
    with pytest.raises(robench.core.errors.UsageError, match="expected"):
        build_attacks([spec], Threat.parse("Linf:0.1"))


def test_class_attributes_of_attacks():
    blind = {name for name in registry.attacks if registry.attacks.get(name).gradient_free}
    assert blind == {"grid", "hopskipjump", "nes", "patch-rs", "sparse-rs", "spsa", "square"}
    nearest = {name for name in registry.attacks if registry.attacks.get(name).minimum_norm}
    assert nearest == {"cw", "ddn", "fab", "fmn", "hopskipjump", "sigma-zero"}


def test_parameters_of_a_base_class_are_described():
    text = index.describe(registry.attacks.get("apgd")).documentation
    assert "rho: a checkpoint" in text and "eot: draws of a randomized surrogate" in text
    # PGD documents its steps itself.
    assert index.describe(registry.attacks.get("pgd")).documentation.count("    steps: ") == 1
