"""Tools that try something with a trainer and leave it as it was: finders of a learning rate and a micro-batch size."""

from jepa.tools.find_batch_size import BatchSizeFinding, find_batch_size
from jepa.tools.find_lr import LearningRateFinding, find_learning_rate, learning_rate_range_test
