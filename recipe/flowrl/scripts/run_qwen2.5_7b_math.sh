#!/usr/bin/env bash
# The paper's 7B mathematics run (docs/paper_runs.md). Knobs: ALGO, CLUSTER, DATA_DIR, MODEL, PYTHON; whatever follows
# the command is passed on as overrides: run_qwen2.5_7b_math.sh trainer.save_freq=25
set -euo pipefail
exec "${PYTHON:-python}" -m recipe.flowrl.main_flowrl experiment=math_7b \
    algo="${ALGO:-flowrl}" cluster="${CLUSTER:-1x8}" \
    ${DATA_DIR:+"data_dir=$DATA_DIR"} ${MODEL:+"actor_rollout_ref.model.path=$MODEL"} "$@"
