"""Where a state cannot go on: every difference told in one sentence, and nothing written."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kif_lightning.backbones.fingerprint import require_same_base, weights_fingerprint
from kif_lightning.continuing import _provenance, continued, rows_digest
from kif_lightning.errors import UserError
from kif_lightning.packing import pack
from tests.helpers.states import Workshop, content, past, state
from tests.helpers.streams import ToyBenchmark, toy_task
from tests.helpers.tiny import save_tiny_t5

MEMORY = ("method=kif_m", "method.memory.share=0.3")


@pytest.fixture(scope="module")
def plain(workshop: Workshop) -> Path:
    """The state of KIF after one task."""
    return workshop.packed("continuing_plain")


@pytest.fixture(scope="module")
def remembering(workshop: Workshop) -> Path:
    """The state of KIF-M after one task, with its memory."""
    return workshop.packed("continuing_memory", ("colour",), *MEMORY)


@contextmanager
def refusing(workshop: Workshop, told: str) -> Iterator[None]:
    """A UserError of one line that says this; no file is there that was not there before."""
    before = content(workshop.folder)
    with pytest.raises(UserError, match=told) as error:
        yield
    assert "\n" not in str(error.value)
    assert content(workshop.folder) == before


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method=ewc"], "penalties were orthonormality and are elastic_weights; .* boundary were"),
        (["method=migu"], "gradient were none and are magnitude_mask"),
        (["method=kif_matrix"], r"importance is of 96 units, the model has 24 now"),
        (["method=kif_full"], r"adapter\._target_ was .*PeftAdapter and is .*FullAdapter"),
        ([*MEMORY], "its method keeps none, the present one keeps rows of past tasks"),
        (["lora.r=4"], r"config\.r was 8 and is 4; of the trained weights, .* \(8, 16\) and is"),
        (["lora.alpha=3"], r"config\.lora_alpha was 32 and is 3\."),
        (["backbone.lora_targets=[q]"], r"target_modules was \['q', 'v'\] and is \['q'\]"),
        (["method=multi_task"], "All tasks at once cannot go on from a state"),
        (["probe=general"], "look back at the stream's beginning: set probe=none"),
        (["evaluation.untrained=true"], r"set evaluation\.untrained=false"),
        (["keep_boundaries=true"], "set keep_boundaries=false"),
        (["benchmark.order=[colour]"], "Nothing is left to learn: colour has been learnt"),
    ],
)
def test_another_model_than_the_states(
    workshop: Workshop, plain: Path, overrides: list[str], told: str
) -> None:
    with refusing(workshop, told):
        workshop.go_on(plain, "continuing_refused", *overrides)


def test_other_base_weights(workshop: Workshop, plain: Path, tiny_llama: Path) -> None:
    other = save_tiny_t5(workshop.folder / "other" / "tiny_t5", seed=1)
    with refusing(workshop, "base weights have other values"):
        workshop.go_on(plain, "continuing_refused", model=other)
    with refusing(workshop, "its base model has 15,488 weights, the present one 14,288"):
        workshop.go_on(plain, "continuing_refused", model=tiny_llama)


def test_a_method_without_a_memory(workshop: Workshop, remembering: Path) -> None:
    with refusing(workshop, "keeps rows of past tasks, the present one keeps none"):
        workshop.go_on(remembering, "continuing_refused")


def test_a_memory_that_was_left_out(workshop: Workshop, remembering: Path) -> None:
    without = workshop.folder / "continuing_without"
    pack(workshop.folder / "continuing_memory_run", without)
    with refusing(workshop, r"left out when it was written \(--with-memory writes them\)"):
        workshop.go_on(without, "continuing_refused", *MEMORY)


def test_what_may_differ(workshop: Workshop, plain: Path) -> None:
    told = workshop.go_on(plain, "continuing_free", "lora.dropout=0.3", "optim.lr=0.1", "plan=true")
    assert "Estimated time" in told
    assert not (workshop.folder / "continuing_free").exists()


def test_no_state_there(workshop: Workshop) -> None:
    with refusing(workshop, "kif pack RUN --to FOLDER"):
        workshop.go_on(workshop.folder / "nowhere", "continuing_refused")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("foo", r"^foo is no setting .*expected key=value"),
        ("method=ewc", r"^method=ewc is no setting .* groups only benchmark, logger, trainer"),
        ("backbone=t5_nano", "no setting that a state can go on with"),
        ("method/units=matrix", "no setting that a state can go on with"),
        ("probe=general", "no setting that a state can go on with"),
        ("continue_from=elsewhere", "no setting that a state can go on with"),
        ("foo=1", r"^foo=1 is no setting of a run .*--cfg job"),
        ("optim.foo=1", r"^optim\.foo=1 is no setting of a run"),
        ("evaluation.foo=1", r"^evaluation\.foo=1 is no setting of a run"),
        ("benchmark=long_sequencee", "benchmark/long_sequencee.*kif list"),
        ("logger=foo", "logger/foo.*kif list"),
        ("benchmark.foo=1", r"benchmark\.foo.*kif list"),
        ("optim.lr=1,2", r"optim\.lr must be a number, got '1,2'"),
        ("lora.r=4", r"config\.r was 8 and is 4"),
        ("evaluation.untrained=true", r"set evaluation\.untrained=false"),
        ("keep_boundaries=true", "set keep_boundaries=false"),
        ("benchmark.order=[colour]", "Nothing is left to learn"),
    ],
)
def test_what_is_no_setting_of_an_extension(
    workshop: Workshop, plain: Path, override: str, told: str
) -> None:
    with refusing(workshop, told):
        workshop.extend(plain, "continuing_refused", ["shape"], override)


def test_a_state_is_never_written_over(workshop: Workshop, plain: Path, remembering: Path) -> None:
    with refusing(workshop, "--to must be a new folder"):
        workshop.extend(plain, remembering.name, ["shape"])


def test_a_task_learnt_before_has_the_same_rows_or_another_name(
    workshop: Workshop, plain: Path
) -> None:
    data = workshop.folder / "continuing_changed"
    shutil.copytree(workshop.data, data)
    file = data / "colour" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["output"] = "bad" if rows[0]["output"] == "good" else "good"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with refusing(workshop, "Task colour was learnt before, from other data.*another name"):
        workshop.extend(
            plain, "continuing_refused", ["colour", "shape"], f"benchmark.data_dir={data}"
        )
    # Drawn otherwise, the rows of the same file are others, too.
    with refusing(workshop, "their number, 3 then and 2 now"):
        workshop.extend(plain, "continuing_refused", ["colour", "shape"], "benchmark.test_rows=2")


def test_of_the_same_file_the_very_rows_count() -> None:
    colour, shape = toy_task("colour"), toy_task("shape")
    before = replace(
        past("colour"), labels=colour.labels, test_rows=6, test_sha256=rows_digest(colour.test)
    )
    origin = state(tasks=(before,))
    found = continued(ToyBenchmark((shape, colour)), origin)
    assert [(task.name, task.at_hand) for task in found.tasks] == [
        ("colour", True),
        ("shape", True),
    ]
    drawn = replace(colour, test=tuple(reversed(colour.test)))
    for other in (drawn, replace(colour, labels=("good",)), replace(colour, metric="rouge_l")):
        with pytest.raises(UserError, match="colour was learnt before"):
            continued(ToyBenchmark((other, shape)), origin)


def test_past_tasks_come_first_and_need_no_rows() -> None:
    found = continued(ToyBenchmark((toy_task("size"), toy_task("paint"))), state())
    assert [(task.name, task.at_hand) for task in found.tasks] == [
        ("colour", False),
        ("shape", False),
        ("size", True),
        ("paint", True),
    ]


def test_of_where_its_rows_came_from_a_task_knows_its_own() -> None:
    shares = {"size": 0.2, "paint": None}
    told = {"source": "own", "mirror": {"size": 1, "elsewhere": 2}, "test_held_out": shares}
    benchmark = ToyBenchmark((toy_task("size"), toy_task("paint")), provenance=told)
    assert _provenance(benchmark, "size") == {**told, "test_held_out": {"size": 0.2}}


def test_copies_of_the_same_weights_in_another_dtype() -> None:
    """Rounded twice, float16 weights have other samples; the sentence must say so."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    before, now = weights_fingerprint(model), weights_fingerprint(copy.deepcopy(model).bfloat16())
    require_same_base(before, now, what="the run", mend="mend it")
    now = weights_fingerprint(copy.deepcopy(model).half())
    told = r"not that of the run: its base weights .* float16 or packed do not\); mend it\.$"
    with pytest.raises(UserError, match=told):
        require_same_base(before, now, what="the run", mend="mend it")


def test_once_on_stand_ins_always_on_stand_ins() -> None:
    tasks = (replace(past("colour"), stand_in=True), past("shape"))
    assert continued(ToyBenchmark((toy_task("size"),)), state(tasks=tasks)).stand_in
    assert not continued(ToyBenchmark((toy_task("size"),)), state()).stand_in
    real = ToyBenchmark((toy_task("size"),), stand_in=True)
    assert continued(real, state()).stand_in
