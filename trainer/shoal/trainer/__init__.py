"""What a training script imports: ``from shoal import trainer``, then ``trainer.join()``."""

from shoal.trainer.describe import Refusal
from shoal.trainer.job import Job
from shoal.trainer.joining import join

__all__ = ["Job", "Refusal", "join"]
