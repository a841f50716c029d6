"""`python -m benchmark recommend`: recommendation against a forward pass over all items."""
