"""A prepared folder as batches: of samples for training, of users, of series for evaluation."""
