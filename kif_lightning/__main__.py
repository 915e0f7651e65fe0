"""``python -m kif_lightning +experiment=NAME``: train a task stream (Hydra's grammar)."""

import hydra
from omegaconf import DictConfig

from kif_lightning.paths import conf_dir
from kif_lightning.sweep import failures_told


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def main(config: DictConfig) -> None:
    """Run one cell; the heavy imports come only now, so that --help answers at once."""
    from kif_lightning.launch import launch

    launch(config)


if __name__ == "__main__":
    with failures_told():
        main()
