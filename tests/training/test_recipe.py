import re
from dataclasses import MISSING, fields, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from robench import catalog
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.training import Finetuning, Recipe, read_recipe
from robench.training.recipe import Pretraining, PurifierStage
from robench.training.stages import pretraining_stage


def test_radii_may_be_fractions():
    recipe = read_recipe({"finetuning": {"eps": "8/255", "step_size": "2/255"}}, "a.toml")
    assert recipe == Recipe(finetuning=Finetuning(eps=8 / 255, step_size=2 / 255))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"epoch": 3}, 'recipe: unknown field "epoch": expected some of'),
        ({"finetuning": {"learning_rate": 1.0}}, r'recipe\.finetuning: unknown field "learning_rate"'),
        ({"finetuning": 3}, r"expected a table \[recipe\.finetuning\]"),
        ({"finetuning": {"epochs": "many"}}, "epochs = 'many': expected a whole number"),
        ({"finetuning": {"epochs": True}}, "epochs = True: expected a whole number"),
        ({"finetuning": {"epochs": 2.5}}, "epochs = 2.5: expected a whole number"),
        ({"finetuning": {"epochs": 0}}, "at least 1"),
        ({"finetuning": {"lr": -0.1}}, "above 0"),
        ({"finetuning": {"lr": float("nan")}}, "above 0"),
        ({"finetuning": {"lr": float("inf")}}, "finite"),
        ({"finetuning": {"eps": -0.1}}, "at least 0"),
        ({"finetuning": {"eps": "8/0"}}, "radius of threat"),
        ({"finetuning": {"drop_path": 1.0}}, "below 1"),
        ({"pretraining": {"mask_ratio": 1}}, "below 1"),
        ({"flip": "yes"}, "flip = 'yes': expected True or False"),
        ({"evaluation": "Linf:-1"}, "malformed radius"),
        ({"evaluation": "L2:1"}, "expected an Linf threat"),
        ({"finetuning": {"accumulate": 0}}, "at least 1"),
        ({"finetuning": {"precision": "fp16"}}, "precision = 'fp16': expected fp32 or bf16"),
        ({"finetuning": {"method": 3}}, "method = 3: expected a string"),
        ({"finetuning": {"method": "trads"}}, r'recipe\.finetuning: unknown method "trads": did you mean'),
        ({"finetuning": {"method": "trades(beta=-1)"}}, "beta=-1: expected a finite number, at least 0"),
        ({"finetuning": {"method": "trades", "steps": 0}}, "trades with steps = 0: expected at least 1"),
        ({"finetuning": {"method": "fast-at", "steps": 2}}, "fast-at with steps = 2: expected 1"),
        (
            {"purifying": [{"method": "mim"}], "pretraining": {"epochs": 1}},
            r"\[\[recipe.purifying\]\] and \[recipe.pretraining\]: a purifier has only the former",
        ),
        ({"finetuning": {"method": "generalist"}}, "give its decay, such as average = 0.999"),
    ],
)
def test_mistakes_are_named_with_the_card(table, said):
    with pytest.raises(UsageError, match=said) as caught:
        read_recipe(table, "a.toml")
    assert "threat" in said or "radius" in said or str(caught.value).startswith("a.toml: ")


def test_the_robust_digits_cards_differ_where_they_say():
    recipes = {name: read_recipe(card.recipe, name) for name, card in catalog.cards().items() if card.recipe}
    mimir, mae, pgd = (recipes[f"{family}-digits"] for family in ("mimir", "mae-at", "pgd-at"))
    assert mimir.finetuning == mae.finetuning == pgd.finetuning
    assert pgd.pretraining is None
    assert (mimir.pretraining.mi_weight, mae.pretraining.mi_weight) == (1e-5, 0.0)
    classifiers = [name for name, recipe in recipes.items() if not recipe.purifying]
    builders = {name: catalog.cards()[name].builder for name in classifiers if name.endswith("-digits")}
    doubled = builders.pop("dbat-digits")
    assert len(set(builders.values())) == 1
    assert doubled == f'dbat(base="{builders["pgd-at-digits"]}")'


def test_the_baselines_have_the_budget_of_pgd_at():
    """Network, epochs, batches and learning rates; what differs is named in the method's card."""
    own = {
        "trades": {},
        "mart": {},
        "apgd-at": {"step_size": 2 / 255},  # not used
        "fast-at": {"step_size": 0.125, "steps": 1},
        "generalist": {},
        "dbat": {"label_smoothing": 0.5},
    }
    cards = catalog.cards()
    pgd = read_recipe(cards["pgd-at-digits"].recipe, "pgd-at-digits")
    for method, changes in own.items():
        card = cards[f"{method}-digits"]
        assert (card.checkpoint, card.threat) == ("", "Linf:0.1")
        changed = replace(pgd.finetuning, method=method, **changes)
        assert read_recipe(card.recipe, method) == replace(pgd, finetuning=changed)


PRETRAINED = {
    name: card
    for name, card in catalog.cards().items()
    if "pretraining" in card.recipe and not card.checkpoint
}


class Unfilled(TorchFunctionMode):
    """Initial weights are not drawn: without values, that takes most of the time of building a network."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        drawn = getattr(func, "__name__", "") in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_")
        return args[0] if drawn and args else func(*args, **kwargs or {})


@pytest.mark.parametrize("name", sorted(PRETRAINED))
def test_the_recipe_cards_networks_can_be_masked_as_they_say(name):
    """Shapes alone: 12 of 49 patches at 32 pixels, 49 of 196 at 16, 64 of 256 else, 20 of 49 by SparK."""
    card = PRETRAINED[name]
    recipe, spec = read_recipe(card.recipe, name), specs.parse(card.builder)
    with torch.device("meta"), Unfilled():
        defense = specs.build(spec, registry.defenses.get(spec.name))
        stage = pretraining_stage(
            defense.classifier, recipe.pretraining, torch.device("meta"), defense.image_size
        )
    sparse = recipe.pretraining.decoder == "unet"
    shown = {32: (20 if sparse else 12, 49), 16: (49, 196), 4: (64, 256), 2: (64, 256)}
    assert (stage.model.visible, stage.model.patches) == shown[stage.model.patch]
    assert (recipe.pretraining.epochs, recipe.pretraining.mi_weight) == (800, 1e-5)
    assert recipe.evaluation == card.threat


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("[recipe]", Recipe),
        ("[recipe.pretraining]", Pretraining),
        ("[recipe.finetuning]", Finetuning),
        ("[[recipe.purifying]]", PurifierStage),
    ],
)
def test_the_documentation_has_every_field_with_its_default(heading, table):
    document = Path(__file__).parents[2].joinpath("docs", "training.md").read_text()
    part = document.partition(f"| `{heading}` |")[2].partition("\n\n")[0]
    found = {}
    for names, defaults in re.findall(r"^\| (`.+?) \| (.+?) \|", part, re.M):
        found |= dict(zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True))
    own = {f.name: f.default for f in fields(table) if f.default is not MISSING}
    tables = {"pretraining", "purifying"} if table is Recipe else set()
    assert found.keys() == own.keys() - tables
    for name, default in found.items():
        assert _read(default) == own[name], name


def _read(text):
    quoted = re.fullmatch(r'`"(.*)"`', text)
    if quoted or text == "required":
        return quoted[1] if quoted else ""
    return {"true": True, "false": False}[text] if text in ("true", "false") else float(Fraction(text))
