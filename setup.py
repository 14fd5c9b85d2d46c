"""Ships conf/ in the wheel as jepa/conf, where an installed package finds it; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies conf/ beside the modules."""

    def run(self) -> None:
        """Build as ever, then copy; an editable install finds conf/ where it is."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib) / "jepa" / "conf", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
