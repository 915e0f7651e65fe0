"""Asks an exported model in a process of its own, as its card says: no line of the package runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SCRIPT = '''
import json, re, sys

BATCH = 50


def of_card(job):
    """The names that the card's code makes, with the places put in."""
    card = open(f"{job['folder']}/README.md", encoding="utf-8").read()
    code = re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1]
    for name in ("BASE", "FOLDER", "TASK"):
        value = job[name.lower()]
        code = re.sub(rf"^{name} = .*$", lambda _: f"{name} = {value!r}", code, flags=re.MULTILINE)
    names = {}
    exec(code, names)
    return names


answers, cards = [], {}
for job in json.load(open(sys.argv[1], encoding="utf-8")):
    if job["folder"] not in cards:  # the code runs once, whichever task is then asked
        cards = {job["folder"]: of_card(job)}
    answer, prompts = cards[job["folder"]]["answer"], job["prompts"]
    parts = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
    answers.append([text for part in parts for text in answer(part, job["task"])])
loaded = sorted({name.partition(".")[0] for name in sys.modules})
json.dump({"answers": answers, "loaded": loaded}, open(sys.argv[2], "w", encoding="utf-8"))
'''


def job(folder: Path, base: Path | None, task: str, prompts: Sequence[str]) -> Mapping[str, object]:
    """Prompts of a task for an exported folder; ``base``: where its base model lies."""
    return {"folder": str(folder), "base": str(base), "task": task, "prompts": list(prompts)}


def plain_answers(jobs: Sequence[Mapping[str, object]], work: Path) -> list[list[str]]:
    """The answers of each job, all from one fresh process that knows no hub."""
    (work / "ask.py").write_text(SCRIPT, encoding="utf-8")
    (work / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "ask.py", "jobs.json", "answers.json"],
        cwd=work,
        env={**kept, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((work / "answers.json").read_text(encoding="utf-8"))
    assert "transformers" in found["loaded"]
    assert "kif_lightning" not in found["loaded"]
    answers: list[list[str]] = found["answers"]
    return answers
