#!/usr/bin/env bash
# Corpus and model from nothing, on Debian 12 with the project's virtual environment active:
#   bash experiments/pretrain_t5_nano/run.sh WORK_FOLDER
# Run again after an interruption: pretraining goes on from its last checkpoint.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
mkdir -p "$1" && work="$(cd "$1" && pwd)"
export PYTHONPATH="$here/../.."
if [ ! -f "$work/general.txt" ]; then
  cd "$work"
  apt-get download wordnet-base dict-devil dict-jargon python3.11-doc
  for package in *.deb; do dpkg -x "$package" root; done
  python "$here/general.py" root general.partial
  mv general.partial general.txt
fi
cd "$here"
python pretrain.py --general "$work/general.txt" --work "$work" --out "$here/../../kif_lightning/backbones/t5_nano"
