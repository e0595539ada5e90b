"""What `distributed=Torchrun()` of SageMaker's SDK 3 starts as each worker of a training."""

import sys

from alexmri.training.worker import main

# The SDK writes the hyperparameters as arguments too, with underscores; the image reads their file.
del sys.argv[1:]
sys.exit(main())
