"""From a prepared folder with any feature spec to Parquet, or to the reference's tensors."""
