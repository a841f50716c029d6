"""`python -m benchmark quality`: HR and NDCG of the recipe, plain NeuMF and baselines."""
