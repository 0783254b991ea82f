"""Puts the YAML files of `configs/` into the wheel; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path(__file__).parent / "configs"


class BuildWithConfigs(build_py):
    """Also copies `configs/` beside the modules, where `config_io` finds it without a checkout."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if self.editable_mode:  # the checkout's own folder is used
            return
        for source, target in self._copies().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What is built, the copies included."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs + [str(target) for target in self._copies().values()]

    def _copies(self) -> dict[Path, Path]:
        folder = Path(self.build_lib) / "deformable_detr" / "configs"
        return {
            source: folder / source.relative_to(CONFIGS)
            for source in sorted(CONFIGS.rglob("*.yaml"))
        }


setup(cmdclass={"build_py": BuildWithConfigs})
