"""Where the configs are: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path


def conf_dir() -> str:
    """Absolute path of the config tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError("The config tree of kif_lightning is missing: reinstall the package.")
