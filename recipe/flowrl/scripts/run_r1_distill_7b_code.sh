#!/usr/bin/env bash
# The paper's 7B programming run (docs/paper_runs.md). Knobs: ALGO, CLUSTER, DATA_DIR, MODEL, PYTHON; whatever follows
# the command is passed on as overrides: run_r1_distill_7b_code.sh trainer.save_freq=25
set -euo pipefail
exec "${PYTHON:-python}" -m recipe.flowrl.main_flowrl experiment=code_7b \
    algo="${ALGO:-flowrl}" cluster="${CLUSTER:-1x8}" \
    ${DATA_DIR:+"data_dir=$DATA_DIR"} ${MODEL:+"actor_rollout_ref.model.path=$MODEL"} "$@"
