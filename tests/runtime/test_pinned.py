"""``train`` and ``lightning_ext`` are ours, whatever the user's files are called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_import_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", "import sys; import runtime; print(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert {"runtime", "train", "lightning_ext"} <= set(loaded)
    heavy = {"torch", "asyncio", "numpy", "lightning", "pytorch_lightning", "fsspec", "cloudpickle", "msgpack", "uvloop", "dataclasses"}
    assert not heavy & set(loaded)


@pytest.mark.parametrize("name", ["train", "lightning_ext"])
def test_a_script_with_our_name_that_imports_runtime_first(tmp_path: Path, name: str) -> None:
    script = tmp_path / f"{name}.py"
    script.write_text(f"import runtime\nimport {name}\nfrom train import ScalingConfig\nprint({name}.__file__, ScalingConfig.__module__)\n")
    done = run(tmp_path, script.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT / name / "__init__.py"), "train.config"]
    assert done.stderr == ""


def test_submodules_are_ours_too(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import runtime\nimport train.config\nfrom train.errors import TrainingFailedError\n"
                                       "print(train.config.__file__)\n")
    done = run(tmp_path, "train.py")
    assert done.stdout.strip() == str(ROOT / "train" / "config.py"), done.stderr


def test_a_users_module_of_that_name_stays_reachable_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import runtime\nfrom train import ScalingConfig\ndef mine(): return 'mine'\n")
    (tmp_path / "main.py").write_text("from train import mine, ScalingConfig\nimport train\n"
                                      "print(mine(), train.mine(), ScalingConfig.__module__)\n"
                                      "try: train.nobodys\nexcept AttributeError as exc: print('nobodys' in str(exc))\n")
    done = run(tmp_path, "main.py")
    assert done.stdout.split() == ["mine", "mine", "train.config", "True"], done.stderr
    assert done.stderr.count("\n") == 1
    assert "'train'" in done.stderr
    assert "train.py" in done.stderr


def test_a_users_package_of_that_name_is_displaced_with_its_parts(tmp_path: Path) -> None:
    package = tmp_path / "train"
    package.mkdir()
    (package / "__init__.py").write_text("from train.models import model\n")
    (package / "models.py").write_text("def model(): return 'model'\n")
    (tmp_path / "main.py").write_text("import train\nimport runtime\nfrom train import model, ScalingConfig\n"
                                      "print(model(), ScalingConfig.__name__)\n")
    done = run(tmp_path, "main.py")
    assert done.stdout.split() == ["model", "ScalingConfig"], done.stderr


USE = """
class Model:
    def run(self, x): return scale(x), helper.WORD, ScalingConfig.__module__

def scale(x): return 3 * x

def main():
    runtime.init(num_cpus=1)
    print(runtime.get(runtime.remote(Model).remote().run.remote(2)))
    runtime.shutdown()
"""


@pytest.mark.process
@pytest.mark.parametrize("command", [["train.py"], ["-m", "runtime", "run", "train.py"], ["main.py"]])
def test_actors_of_a_script_called_train(tmp_path: Path, command: list[str]) -> None:
    imports = "import helper\nimport runtime\nfrom train import ScalingConfig\n"
    if "run" not in command:
        imports = "import runtime\nimport helper\nfrom train import ScalingConfig\n"
    (tmp_path / "helper.py").write_text("WORD = 'beside'\n")
    (tmp_path / "train.py").write_text(f"{imports}{USE}\nif __name__ == '__main__': main()\n")
    (tmp_path / "main.py").write_text("import train\ntrain.main()\n")
    done = run(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(6, 'beside', 'train.config')\n"
    assert done.stderr.count("\n") == (1 if command == ["main.py"] else 0), done.stderr
