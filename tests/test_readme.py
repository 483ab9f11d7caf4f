"""The Python example of the README runs unchanged."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_notebook_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(code.strip().splitlines()) <= 20
    # The whole suite takes long on any model; a short one gives the same kind of result.
    quick = code.replace('"autoattack"', '"pgd(steps=3)"').replace("samples=50", "samples=10")
    assert quick != code
    exec(compile(quick, "README.md", "exec"), {"__name__": "notebook"})
    out = capsys.readouterr().out
    assert out.startswith("clean ") and "forward" in out


def test_the_first_two_shell_blocks_are_the_two_commands():
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[:2]
    assert blocks[0].strip() == "pip install . && robench run --defense mimir --attack autoattack"
    assert "pytest" in blocks[1]
