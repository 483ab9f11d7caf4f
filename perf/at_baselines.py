"""Adversarial training methods on a ViT and on a small CNN, with the same budget.

    python perf/at_baselines.py
    python perf/at_baselines.py --method generalist --method dbat --network vit --epochs 20

The MIMIR paper (arXiv 2312.04960) states that Generalist and DBAT, designed for convolutional networks, do not transfer
to ViTs. This script trains every method from scratch with the recipe of its digits card and the given network and
epochs, and measures clean accuracy and accuracy under PGD-20 and AutoAttack on the test split, with 95 % Wilson
intervals. A method that transfers keeps its rank among the others on both networks.

Checkpoints are stored in --folder, from which an interrupted run continues. --output gets one JSON line for each
training.
"""

import argparse
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import robench
from robench import catalog
from robench.data import load_dataset
from robench.statistics.accuracy import wilson
from robench.training import train

METHODS = ("pgd-at", "apgd-at", "trades", "mart", "fast-at", "generalist", "dbat")
# Builder, and changes to the recipe for a convolutional network without blocks; its learning rate is our choice.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit(image_size=16, patch_size=4, width=64, depth=4, heads=4, num_classes=10)", {}),
    "cnn": ("cnn(image_size=16, width=16, hidden=100, num_classes=10)", {"drop_path": 0.0, "lr": 1e-3}),
}


@dataclass(frozen=True)
class Measured:
    """One training and its evaluation; counts refer to `n` test images, times are in seconds."""

    network: str
    method: str
    epochs: int
    seed: int
    n: int
    clean: int
    pgd_20: int
    autoattack: int
    threat: str
    training_seconds: float
    attack_seconds: float
    threads: int
    torch: str
    machine: str


def write_card(folder: Path, network: str, method: str, epochs: int) -> Path:
    """Write the digits card of a method with another network and number of epochs; warm-up and ramp are scaled."""
    card = catalog.cards()[f"{method}-digits"]
    builder, changes = NETWORKS[network]
    builder = f'dbat(base="{builder}")' if method == "dbat" else builder
    tuning = {**card.recipe["finetuning"], **changes, "epochs": epochs}
    for name in ("warmup", "ramp"):
        tuning[name] = tuning[name] * epochs / card.recipe["finetuning"]["epochs"]
    recipe = {key: value for key, value in card.recipe.items() if key != "finetuning"}
    path = folder / f"{network}-{method}-{epochs}.toml"
    top = {"builder": builder, "dataset": card.dataset, "threat": card.threat}
    path.write_text(
        f"{_toml(top)}\n[recipe]\n{_toml(recipe)}\n[recipe.finetuning]\n{_toml(tuning)}", encoding="utf-8"
    )
    return path


def _toml(table: Mapping[str, Any]) -> str:
    # Strings, numbers and booleans have the same syntax in JSON and TOML.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def run(folder: Path, network: str, method: str, epochs: int, seed: int) -> Measured:
    """Train unless a checkpoint exists, then evaluate."""
    card = write_card(folder, network, method, epochs)
    weights = folder / f"{card.stem}-seed{seed}.safetensors"
    facts = weights.with_suffix(".json")
    if not (weights.exists() and facts.exists()):
        result = train(str(card), output=weights, seed=seed)
        facts.write_text(json.dumps({"pgd_20": result.robust, "seconds": result.seconds}))
    trained = json.loads(facts.read_text())
    test = load_dataset("digits", "test")
    begun = time.perf_counter()
    defense = robench.load_defense(str(card), checkpoint=weights)
    threat = catalog.cards()[f"{method}-digits"].threat
    outcome = robench.attack("autoattack", defense, test.x, test.y, threat=threat, seed=seed)
    return Measured(
        network=network,
        method=method,
        epochs=epochs,
        seed=seed,
        n=len(test),
        clean=sum(name != "clean" for name in outcome.fooled_by),
        pgd_20=trained["pgd_20"],
        autoattack=int(outcome.robust.sum()),
        threat=threat,
        training_seconds=trained["seconds"],
        attack_seconds=time.perf_counter() - begun,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        machine=platform.machine(),
    )


def _share(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{k / n:.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated; all by default")
    parser.add_argument(
        "--network", action="append", choices=NETWORKS, help="may be repeated; both by default"
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=Path("at-baselines"), help="folder of cards and checkpoints"
    )
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| network | method | epochs | clean | PGD-20 | AutoAttack | training, s | n |")
    print("|---|---|---|---|---|---|---|---|")
    for network in options.network or NETWORKS:
        for method in options.method or METHODS:
            measured = run(options.folder, network, method, options.epochs, options.seed)
            print(
                f"| {network} | {method} | {measured.epochs} | {_share(measured.clean, measured.n)} | "
                f"{_share(measured.pgd_20, measured.n)} | {_share(measured.autoattack, measured.n)} | "
                f"{measured.training_seconds:.0f} | {measured.n} |",
                flush=True,
            )
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(asdict(measured)) + "\n")


if __name__ == "__main__":
    main()
