"""Where the configs are, and where what can be made again is kept."""

import os
from pathlib import Path


def conf_dir() -> str:
    """Absolute path of the config tree: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError("The config tree of kif_lightning is missing: reinstall the package.")


def option_names(group: str) -> list[str]:
    """The options of a config group, without the shared bases (leading underscore)."""
    folder = Path(conf_dir()) / group
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


def cache_dir() -> Path:
    """``$KIF_CACHE``, else ``$XDG_CACHE_HOME/kif_lightning``, else ``~/.cache/kif_lightning``."""
    own = os.environ.get("KIF_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "kif_lightning"
