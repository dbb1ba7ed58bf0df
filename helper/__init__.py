"""What the scripts share: options, run folders, checkpoints, the training loop, clouds on disk, the student's loss."""
