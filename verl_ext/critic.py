"""The critic's worker."""

from verl.utils.import_utils import import_external_libs
from verl.workers.config import TrainingWorkerConfig

from verl_ext.patches import patch_models
from verl_ext.reshard import ReshardingTrainingWorker


class CriticWorker(ReshardingTrainingWorker):
    """verl's, in whose process the model's ``external_lib`` is imported.

    verl imports it where a model's configuration is made: for the actor in the worker, for the critic in the trainer.
    """

    def __init__(self, config: TrainingWorkerConfig) -> None:
        patch_models()
        import_external_libs(config.model_config.external_lib)
        super().__init__(config)
