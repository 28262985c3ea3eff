"""The public API for training scripts: ``from shoal import trainer``, then ``trainer.join()``."""

from shoal.tensors.no_compiler import compiler_later
from shoal.trainer.job import Job
from shoal.trainer.joining import join
from shoal.trainer.refusal import Refused

compiler_later()

__all__ = ["Job", "Refused", "join"]
