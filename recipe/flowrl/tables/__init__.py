"""The paper's tables from evaluations, with the published figures beside ours."""
