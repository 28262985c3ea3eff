"""What a training script imports: ``from shoal import trainer``, then ``trainer.join()``."""

from shoal.pserver.eager import compiler_later
from shoal.trainer.describe import Refusal
from shoal.trainer.job import Job
from shoal.trainer.joining import join

compiler_later()

__all__ = ["Job", "Refusal", "join"]
