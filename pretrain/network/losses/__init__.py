"""The parts of the loss of pre-training, a file each."""
