"""A paper's table: several defenses under several attacks, from records, in LaTeX.

Runs that are already recorded in the folder `paper` are not repeated, so making the table again is cheap.
"""

import robench

DEFENSES = ("standard", "pgd-at", "mimir")
ATTACKS = ("pgd-20", "autoattack")


def main(samples: int = 50, attacks: tuple[str, ...] = ATTACKS) -> None:
    for defense in DEFENSES:
        for attack in attacks:
            robench.run(
                defense, attack, dataset="digits", threat="Linf:0.1", samples=samples, results="paper"
            )
    records = robench.records("paper")
    table = records.pivot_table(index=["defense", "clean"], columns="suite", values="robust", sort=False)
    table = (100 * table.reset_index("clean")).round(1)
    caption = rf"Accuracy in \%, Linf 0.1, {samples} digits."
    print(table.to_latex(float_format="%.1f", caption=caption, escape=True))  # needs the package booktabs


if __name__ == "__main__":
    main()
