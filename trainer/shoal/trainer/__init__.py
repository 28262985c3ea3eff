"""What a training script imports: ``from shoal import trainer``, then ``trainer.join()``."""

from shoal.trainer.describe import Refusal
from shoal.trainer.job import Job, join

__all__ = ["Job", "Refusal", "join"]
